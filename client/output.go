package client

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
)

// event is one event of a run (OpenSandbox execd API). EOL and Raw are paddock's
// additions, which make output exact to the byte; without them a text is a line
// without its end.
type event struct {
	Type string `json:"type"`
	Text string `json:"text"`
	// EOL is the line end, empty when none has come (yet).
	EOL *string `json:"eol"`
	// Raw is what stands for Text when that is no valid UTF-8.
	Raw   []byte `json:"raw"`
	Error *struct {
		Name      string   `json:"ename"`
		Value     string   `json:"evalue"`
		Traceback []string `json:"traceback"`
	} `json:"error"`
}

// The two streams of a command.
const (
	stdout = iota
	stderr
)

// piece is a piece of output, and where it came from. text is valid until the
// next event is read.
type piece struct {
	stream int
	text   []byte
	eol    string
}

// readOutput reads an event of output as paddock writes it, ten times as fast as a
// JSON decoder. Anything else is not ok. What escapes and base64 stand for goes
// into scratch, which is returned for the next call.
func readOutput(raw, scratch []byte) (out piece, _ []byte, ok bool) {
	rest, ok := bytes.CutPrefix(raw, []byte(`{"type":"std`))
	if !ok || len(rest) < 3 {
		return out, scratch, false
	}
	switch string(rest[:3]) {
	case "out":
	case "err":
		out.stream = stderr
	default:
		return out, scratch, false
	}
	rest, ok = bytes.CutPrefix(rest[3:], []byte(`","text":"`))
	end := stringEnd(rest)
	if !ok || end < 0 {
		return out, scratch, false
	}
	text, rest := rest[:end], rest[end+1:]
	out.eol, rest = readEOL(rest)
	if encoded, found := bytes.CutPrefix(rest, []byte(`,"raw":"`)); found {
		end := bytes.IndexByte(encoded, '"')
		if end < 0 {
			return out, scratch, false
		}
		var err error
		if scratch, err = base64.StdEncoding.AppendDecode(scratch[:0], encoded[:end]); err != nil {
			return out, scratch, false
		}
		out.text = scratch
		return out, scratch, isTimestamp(encoded[end+1:])
	}
	if !isTimestamp(rest) {
		return out, scratch, false
	}
	switch {
	case string(text) == `\n`: // an empty line
	case bytes.IndexByte(text, '\\') < 0:
		out.text = text
	default:
		if scratch, ok = appendUnescaped(scratch[:0], text); !ok {
			return out, scratch, false
		}
		out.text = scratch
	}
	return out, scratch, true
}

// stringEnd is where the quotation mark is that ends a JSON string, of which b is
// what follows the first; -1 when there is none.
func stringEnd(b []byte) int {
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '"')
		if i < 0 {
			return -1
		}
		end := from + i
		escapes := 0
		for escapes < end && b[end-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end
		}
		from = end + 1
	}
}

// readEOL reads the member eol, if it is there, and returns what follows.
func readEOL(b []byte) (eol string, rest []byte) {
	if rest, ok := bytes.CutPrefix(b, []byte(`,"eol":""`)); ok {
		return "", rest
	}
	if rest, ok := bytes.CutPrefix(b, []byte(`,"eol":"\r\n"`)); ok {
		return "\r\n", rest
	}
	return "\n", b
}

// isTimestamp reports whether b is the end of an event, its time.
func isTimestamp(b []byte) bool {
	number, ok := bytes.CutPrefix(b, []byte(`,"timestamp":`))
	if !ok || len(number) < 2 || number[len(number)-1] != '}' {
		return false
	}
	for _, c := range number[:len(number)-1] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// appendUnescaped adds what is within the marks of a JSON string. Escapes that
// output has seldom are not ok.
func appendUnescaped(dst, s []byte) (_ []byte, ok bool) {
	for {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return append(dst, s...), true
		}
		if i+1 == len(s) {
			return dst, false
		}
		dst = append(dst, s[:i]...)
		c := s[i+1]
		s = s[i+2:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			var b [1]byte
			if len(s) < 4 || s[0] != '0' || s[1] != '0' || s[2] > '7' {
				return dst, false
			}
			if _, err := hex.Decode(b[:], s[2:4]); err != nil {
				return dst, false
			}
			dst, s = append(dst, b[0]), s[4:]
		default:
			return dst, false
		}
	}
}

// printSize is how much output is put together for one write.
const printSize = 64 << 10

// printer writes output in the order in which it came, with few writes.
type printer struct {
	to     [2]io.Writer
	buf    []byte
	stream int // whose output buf holds
}

func newPrinter(out Output) *printer {
	return &printer{to: [2]io.Writer{out.Stdout, out.Stderr}}
}

// room makes the buffer ready for n bytes of a stream; false when nobody wants
// them.
func (p *printer) room(stream, n int) (bool, error) {
	if p.to[stream] == nil {
		return false, nil
	}
	if p.stream != stream || len(p.buf)+n > printSize {
		if err := p.flush(); err != nil {
			return false, err
		}
		p.stream = stream
	}
	return true, nil
}

// event prints what an output event stands for. A text "\n" is an empty line.
func (p *printer) event(stream int, ev *event) error {
	out := piece{stream: stream, text: ev.Raw, eol: "\n"}
	if ev.EOL != nil {
		out.eol = *ev.EOL
	}
	if out.text == nil && ev.Text != "\n" {
		out.text = []byte(ev.Text)
	}
	return p.print(out)
}

func (p *printer) print(out piece) error {
	ok, err := p.room(out.stream, len(out.text)+len(out.eol))
	if ok {
		p.buf = append(append(p.buf, out.text...), out.eol...)
	}
	return err
}

// flush writes what is there.
func (p *printer) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.to[p.stream].Write(p.buf)
	if p.buf = p.buf[:0]; cap(p.buf) > 4*printSize {
		p.buf = nil
	}
	if err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}
