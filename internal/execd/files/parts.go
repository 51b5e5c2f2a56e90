package files

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/textproto"
)

// maxPartHeader bounds the header of a part, in bytes.
const maxPartHeader = 16 << 10

// maxBoundary is the longest boundary that is allowed (RFC 2046, 5.1.1).
const maxBoundary = 70

// parts reads a multipart body. Go's own reader hands out content in pieces of
// 4 KiB; this one in pieces of its buffer, and straight to a writer.
//
// The content of a part ends with a delimiter: a line end, "--", the boundary,
// and either "--", which ends the body, or blanks and a line end.
type parts struct {
	r   io.Reader
	buf []byte
	// buf[at:end] is what was read and not consumed.
	at, end int
	// err is why nothing more can be read.
	err error
	// delimiter is without what follows the boundary. Its line end is that of
	// the first delimiter: some clients send bare line feeds.
	delimiter []byte
	// dashed is how much of it is the dashes and the boundary.
	dashed int
	// found is the length of the delimiter that content has found.
	found   int
	begun   bool
	over    bool
	current *part
}

// part is one part's content. It is valid until the next one is asked for.
type part struct {
	p *parts
	// name is that of the form's field.
	name string
	// err is why reading failed, nil when it did not.
	err error
	// begun is set when content has been seen.
	begun bool
	done  bool
}

// newParts reads from r through buf, which must be much larger than a boundary.
func newParts(r io.Reader, boundary string, buf []byte) (*parts, error) {
	if len(boundary) > maxBoundary {
		return nil, fmt.Errorf("the boundary has %d characters; at most %d are allowed", len(boundary), maxBoundary)
	}
	return &parts{r: r, buf: buf, delimiter: []byte("\r\n--" + boundary), dashed: 2 + len(boundary)}, nil
}

// more reads on. It makes room first, and fails when there is none. It returns
// nil when there is something new.
func (p *parts) more() error {
	if p.err != nil {
		return p.err
	}
	if p.at > 0 {
		p.end = copy(p.buf, p.buf[p.at:p.end])
		p.at = 0
	}
	if p.end == len(p.buf) {
		return io.ErrShortBuffer
	}
	for range 100 {
		n, err := p.r.Read(p.buf[p.end:])
		p.end += n
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // a body ends with its last delimiter
		}
		p.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// next returns the next part, or io.EOF after the last one. What is left of the
// one before is skipped.
func (p *parts) next() (*part, error) {
	if p.current != nil {
		if _, err := p.current.WriteTo(io.Discard); err != nil {
			return nil, err
		}
	}
	if !p.begun {
		if err := p.begin(); err != nil {
			return nil, err
		}
		p.begun = true
	}
	if p.over {
		return nil, io.EOF
	}
	name, err := p.header()
	if err != nil {
		return nil, err
	}
	p.current = &part{p: p, name: name}
	return p.current, nil
}

// begin finds the first delimiter, which may have text in front of it.
func (p *parts) begin() error {
	dashed := p.delimiter[2:]
	atLineStart := true
	for {
		line, whole, err := p.line()
		if err != nil {
			return err
		}
		if atLineStart && whole && bytes.HasPrefix(line, dashed) {
			rest := line[len(dashed):]
			switch {
			case bytes.HasPrefix(rest, []byte("--")):
				p.over = true
				return nil
			case isBlank(rest):
				if !bytes.HasSuffix(line, []byte("\r\n")) {
					p.delimiter = append([]byte{'\n'}, dashed...)
				}
				return nil
			}
		}
		atLineStart = whole
	}
}

// line consumes a line with its end, or, when it is longer than the buffer, a
// piece of it, and then whole is false. The last line of a body needs no end.
func (p *parts) line() (line []byte, whole bool, err error) {
	looked := 0
	for {
		if i := bytes.IndexByte(p.buf[p.at+looked:p.end], '\n'); i >= 0 {
			line = p.buf[p.at : p.at+looked+i+1]
			p.at += len(line)
			return line, true, nil
		}
		looked = p.end - p.at
		switch err := p.more(); {
		case errors.Is(err, io.ErrShortBuffer):
			line, p.at = p.buf[p.at:p.end], p.end
			return line, false, nil
		case errors.Is(err, io.ErrUnexpectedEOF) && looked > 0:
			line, p.at = p.buf[p.at:p.end], p.end
			return line, true, nil
		case err != nil:
			return nil, false, err
		}
	}
}

// isBlank reports whether what follows a boundary is blanks and a line end.
func isBlank(rest []byte) bool {
	rest, ok := bytes.CutSuffix(rest, []byte{'\n'})
	return ok && len(bytes.Trim(rest, " \t\r")) == 0
}

// header reads a part's header and returns the name of the form's field.
func (p *parts) header() (string, error) {
	name := ""
	for size := 0; ; {
		line, whole, err := p.line()
		if err != nil {
			return "", err
		}
		if size += len(line); size > maxPartHeader || !whole {
			return "", fmt.Errorf("the header of a part is larger than %d bytes", maxPartHeader)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return name, nil
		}
		key, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return "", fmt.Errorf("a part's header has a line without a colon: %.80q", line)
		}
		if textproto.CanonicalMIMEHeaderKey(string(key)) != "Content-Disposition" {
			continue
		}
		kind, params, err := mime.ParseMediaType(string(bytes.TrimSpace(value)))
		if err != nil || kind != "form-data" {
			return "", fmt.Errorf("a part's Content-Disposition is %.80q; form-data with a name is needed", value)
		}
		name = params["name"]
	}
}

// chunk returns the next piece of content, without consuming it. It returns
// io.EOF when the delimiter has been consumed.
func (c *part) chunk() ([]byte, error) {
	p := c.p
	if c.done {
		return nil, io.EOF
	}
	for c.err == nil {
		content, found := p.content(!c.begun)
		if len(content) > 0 {
			c.begun = true
			return content, nil
		}
		if found {
			return nil, c.finish()
		}
		c.err = p.more()
	}
	return nil, c.err
}

// content is what of the buffer is certainly a part's, and whether a delimiter
// follows it. At a part's beginning the delimiter may lack its line end: the
// header's serves for both.
func (p *parts) content(atStart bool) (content []byte, found bool) {
	window := p.buf[p.at:p.end]
	if dashed := p.delimiter[len(p.delimiter)-p.dashed:]; atStart {
		if len(window) < len(dashed) && bytes.HasPrefix(dashed, window) {
			return nil, false
		}
		if bytes.HasPrefix(window, dashed) {
			switch p.closes(window[len(dashed):]) {
			case yes:
				p.found = len(dashed)
				return nil, true
			case unknown:
				return nil, false
			}
		}
	}
	for from := 0; ; {
		i := bytes.Index(window[from:], p.delimiter)
		if i < 0 {
			break
		}
		i += from
		switch p.closes(window[i+len(p.delimiter):]) {
		case yes:
			p.found = len(p.delimiter)
			return window[:i], true
		case unknown:
			return window[:i], false
		}
		// The boundary is the beginning of another text.
		from = i + len(p.delimiter)
	}
	// A delimiter may have begun at the end.
	keep := min(len(window), len(p.delimiter)-1)
	tail := window[len(window)-keep:]
	for {
		i := bytes.IndexByte(tail, p.delimiter[0])
		if i < 0 {
			return window, false
		}
		if tail = tail[i:]; bytes.HasPrefix(p.delimiter, tail) {
			return window[:len(window)-len(tail)], false
		}
		tail = tail[1:]
	}
}

type verdict int

const (
	no verdict = iota
	yes
	unknown
)

// closes says whether what follows a boundary makes it a delimiter. It is
// unknown when more has to be read.
func (p *parts) closes(rest []byte) verdict {
	if bytes.HasPrefix(rest, []byte("--")) {
		return yes
	}
	end := bytes.IndexByte(rest, '\n')
	if end >= 0 {
		if isBlank(rest[:end+1]) {
			return yes
		}
		return no
	}
	// Blanks go on at most as far as a header may.
	atEnd := p.err != nil
	if len(bytes.Trim(rest, " \t\r")) > 0 && string(rest) != "-" || len(rest) > maxPartHeader || atEnd {
		return no
	}
	return unknown
}

// finish consumes the delimiter, which is at the beginning of the buffer.
func (c *part) finish() error {
	p := c.p
	p.at += p.found
	rest := p.buf[p.at:p.end]
	if bytes.HasPrefix(rest, []byte("--")) {
		p.over = true
	} else {
		p.at += bytes.IndexByte(rest, '\n') + 1
	}
	c.done, p.current = true, nil
	return io.EOF
}

// Read implements io.Reader.
func (c *part) Read(b []byte) (int, error) {
	piece, err := c.chunk()
	if err != nil {
		return 0, err
	}
	n := copy(b, piece)
	c.p.at += n
	return n, nil
}

// WriteTo implements io.WriterTo: content goes from the buffer to w. An error of
// w is returned; one of reading is in err as well.
func (c *part) WriteTo(w io.Writer) (total int64, err error) {
	for {
		piece, err := c.chunk()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(piece)
		c.p.at += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}
