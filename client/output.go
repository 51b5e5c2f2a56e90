package client

import (
	"bytes"
	"fmt"
	"io"
)

// event is one event of a run (behaviour.md 10.2). EOL and Raw are paddock's
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

// simpleOutput reads the commonest event by far, a line of output without an
// escape in it, ten times as fast as a JSON decoder. Anything else is not ok.
func simpleOutput(raw []byte) (stream int, text []byte, ok bool) {
	rest, ok := bytes.CutPrefix(raw, []byte(`{"type":"std`))
	if !ok || len(rest) < 3 {
		return 0, nil, false
	}
	switch string(rest[:3]) {
	case "out":
	case "err":
		stream = stderr
	default:
		return 0, nil, false
	}
	rest, ok = bytes.CutPrefix(rest[3:], []byte(`","text":"`))
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return 0, nil, false
	}
	text = rest[:end]
	number, ok := bytes.CutPrefix(rest[end:], []byte(`","timestamp":`))
	if !ok || len(number) < 2 || number[len(number)-1] != '}' {
		return 0, nil, false
	}
	for _, c := range number[:len(number)-1] {
		if c < '0' || c > '9' {
			return 0, nil, false
		}
	}
	if string(text) == `\n` { // an empty line
		return stream, nil, true
	}
	return stream, text, bytes.IndexByte(text, '\\') < 0
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

// line prints a line, whose end the wire leaves out.
func (p *printer) line(stream int, text []byte) error {
	ok, err := p.room(stream, len(text)+1)
	if ok {
		p.buf = append(append(p.buf, text...), '\n')
	}
	return err
}

// event prints what an output event stands for. A text "\n" is an empty line.
func (p *printer) event(stream int, ev *event) error {
	eol := "\n"
	if ev.EOL != nil {
		eol = *ev.EOL
	}
	text := ev.Raw
	if text == nil && ev.Text != "\n" {
		text = []byte(ev.Text)
	}
	ok, err := p.room(stream, len(text)+len(eol))
	if ok {
		p.buf = append(append(p.buf, text...), eol...)
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
