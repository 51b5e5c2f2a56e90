package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxEventLine bounds one line of an event stream, whose bytes come from inside a
// sandbox. The API's other clients allow 4 MiB (OpenSandbox execd API); a piece of 1 MiB
// of output that is all control characters, or no UTF-8, takes up to 7.4 MiB.
const maxEventLine = 8 << 20

var errEventTooLong = fmt.Errorf("an event of the stream is longer than %d MiB", maxEventLine>>20)

// eventReader takes an event stream apart. It understands server-sent events
// ("data: {…}" and a blank line) and the older form of the API, one bare JSON
// value per line. Memory is bounded by maxEventLine.
type eventReader struct {
	r    *bufio.Reader
	data []byte
	line []byte
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the payload of the next event, which is valid until the next
// call. io.EOF is a clean end; an event that the end cut off is
// io.ErrUnexpectedEOF.
func (e *eventReader) next() ([]byte, error) {
	e.data = e.data[:0]
	pending := false
	for {
		line, err := e.readLine()
		if err != nil {
			if errors.Is(err, io.EOF) && (pending || len(line) > 0) {
				return e.atEnd(line, pending)
			}
			return nil, err
		}
		switch {
		case len(line) == 0:
			if pending {
				return e.data, nil
			}
		case line[0] == '{' || line[0] == '[':
			if !pending {
				return line, nil
			}
			return nil, errors.New("the event stream mixes bare JSON into an event")
		default:
			value, ok := dataField(line)
			if !ok {
				continue // a comment, or a field that carries no payload
			}
			if pending {
				e.data = append(e.data, '\n')
			}
			if len(e.data)+len(value) > maxEventLine {
				return nil, errEventTooLong
			}
			e.data = append(e.data, value...)
			pending = true
		}
	}
}

// more reports whether another line is here already, so that the next call to
// next need not wait for the network.
func (e *eventReader) more() bool {
	here, _ := e.r.Peek(e.r.Buffered())
	for len(here) > 0 && (here[0] == '\n' || here[0] == '\r') {
		here = here[1:]
	}
	return bytes.IndexByte(here, '\n') >= 0
}

// atEnd settles an event whose blank line never came. Some servers leave the
// last one out, so a complete JSON value counts; the caller finds out.
func (e *eventReader) atEnd(line []byte, pending bool) ([]byte, error) {
	if pending && len(line) == 0 {
		return e.data, nil
	}
	if !pending {
		if line[0] == '{' || line[0] == '[' {
			return line, nil
		}
		if value, ok := dataField(line); ok {
			return value, nil
		}
		return nil, io.EOF
	}
	return nil, io.ErrUnexpectedEOF
}

// readLine returns one line without its end (LF or CRLF). At the end of the
// stream it returns what is left together with io.EOF.
func (e *eventReader) readLine() ([]byte, error) {
	e.line = e.line[:0]
	for {
		part, err := e.r.ReadSlice('\n')
		if len(e.line)+len(part) > maxEventLine {
			return nil, errEventTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			e.line = append(e.line, part...)
			continue
		}
		line := part
		if len(e.line) > 0 {
			e.line = append(e.line, part...)
			line = e.line
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		return line, err
	}
}

// dataField returns the value of a "data" line.
func dataField(line []byte) ([]byte, bool) {
	value, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return nil, false
	}
	return bytes.TrimPrefix(value, []byte(" ")), true
}
