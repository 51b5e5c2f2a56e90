package intercept

import (
	"bufio"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// recordSize is what a record of TLS holds at most (RFC 8446, 5.1), and
	// copySize what is passed on at a time when there is as much; in bytes.
	recordSize = 16 << 10
	copySize   = 4 * recordSize
	// maxChunkLine bounds the line before a chunk, and maxTrailer what follows
	// the last, in bytes.
	maxChunkLine = 4 << 10
	maxTrailer   = 16 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// source reads one body from a connection, and no byte beyond it.
type source struct {
	r *bufio.Reader
	// left is what is left of the body, or of the chunk.
	left    int64
	chunks  bool
	started bool
	ended   bool
	trailer []field
}

func newSource(r *bufio.Reader, length int64) *source {
	s := &source{r: r, left: length, chunks: length == chunked}
	if s.chunks {
		s.left = 0
	}
	return s
}

// Read implements io.Reader. A body that ends early is io.ErrUnexpectedEOF.
func (s *source) Read(b []byte) (int, error) {
	if s.chunks && s.left == 0 && !s.ended {
		if err := s.nextChunk(); err != nil {
			return 0, early(err)
		}
	}
	if s.ended || s.left == 0 {
		return 0, io.EOF
	}
	if s.left != untilEnd && int64(len(b)) > s.left {
		b = b[:s.left]
	}
	n, err := s.r.Read(b)
	if s.left == untilEnd {
		return n, err
	}
	s.left -= int64(n)
	if errors.Is(err, io.EOF) && s.left == 0 {
		err = nil
	}
	return n, early(err)
}

func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// nextChunk reads the line before a chunk, and the end of the one before (RFC
// 9112, 7.1).
func (s *source) nextChunk() error {
	if s.started {
		if line, err := readLine(s.r, 2); err != nil || line != "" {
			return either(err, malformed("a chunk of the body does not end where it said"))
		}
	}
	s.started = true
	line, err := readLine(s.r, maxChunkLine)
	if err != nil {
		return err
	}
	digits, _, _ := strings.Cut(line, ";")
	digits = strings.TrimRight(digits, " \t")
	if digits == "" || len(digits) > 15 || strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return malformed("the size of a chunk is no number")
	}
	size, err := strconv.ParseInt(digits, 16, 64)
	if err != nil {
		return malformed("the size of a chunk is no number")
	}
	if s.left = size; size > 0 {
		return nil
	}
	s.ended = true
	for most := maxTrailer; ; {
		line, err := readLine(s.r, most)
		if err != nil || line == "" {
			return err
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		// Framing comes before a body (RFC 9110, 6.5.1); some readers would take
		// it from here all the same.
		if slices.Contains(framingHeaders, strings.ToLower(f.name)) {
			return malformed("the trailer has a field that must be in the head")
		}
		most -= len(line)
		s.trailer = append(s.trailer, f)
	}
}

func either(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// sink writes one body in the framing of its head.
type sink struct {
	w      *bufio.Writer
	chunks bool
}

// Write implements io.Writer.
func (s *sink) Write(b []byte) (int, error) {
	if !s.chunks || len(b) == 0 {
		return s.w.Write(b)
	}
	var size [18]byte
	line := append(strconv.AppendInt(size[:0], int64(len(b)), 16), '\r', '\n')
	if _, err := s.w.Write(line); err != nil {
		return 0, err
	}
	if n, err := s.w.Write(b); err != nil {
		return n, err
	}
	_, err := s.w.WriteString("\r\n")
	return len(b), err
}

// end writes what follows the last chunk.
func (s *sink) end(trailer []field) error {
	if s.chunks {
		s.w.WriteString("0\r\n")
		for _, f := range trailer {
			s.w.WriteString(f.name + ": " + f.value + "\r\n")
		}
		s.w.WriteString("\r\n")
	}
	return s.w.Flush()
}

// stream copies a body that comes from a side, and replaces in it if there is a
// replacer. As much as there is goes on at once, and whenever the side would
// wait.
func stream(to *sink, from io.Reader, r *replacer, side *side) error {
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	start, end := 0, 0
	pass := func(last bool) error {
		b := buf[start:end]
		start = end
		if r != nil {
			b = r.replace(b, last)
		}
		if len(b) == 0 {
			return nil
		}
		_, err := to.Write(b)
		return err
	}
	side.wire.wait = func() error {
		if err := pass(false); err != nil {
			return err
		}
		return to.w.Flush()
	}
	defer func() { side.wire.wait = nil }()
	for {
		n, err := from.Read(buf[end:])
		end += n
		if err == nil && len(buf)-end >= recordSize {
			continue
		}
		if werr := pass(err != nil); werr != nil {
			return werr
		}
		if start, end = 0, 0; errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			_ = to.w.Flush() // what came is passed on all the same
			return err
		}
	}
}
