package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"unicode/utf8"
)

const (
	// binaryHead is how much of a file is looked at for NUL bytes, in bytes;
	// git takes the same for telling text from binary.
	binaryHead = 8000
	// maxShown bounds the text of a match, in bytes.
	maxShown = 512
)

// Match is a line with a hit.
type Match struct {
	// Line counts from 1.
	Line int `json:"line"`
	// Text is the line without its end, or the part of a long one around the
	// hit.
	Text string `json:"text"`
}

// needle is a text that is searched for.
type needle struct {
	text []byte
	// most is how many lines of one file are wanted.
	most int
}

type finding struct {
	matches []Match
	// truncated: there is more, or there may be.
	truncated bool
}

// buffers for content that is copied or searched.
var buffers = sync.Pool{New: func() any { return new([writeBuffer]byte) }}

// inFile searches a file. One that is binary has no matches.
func (n *needle) inFile(ctx context.Context, path string) (finding, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return finding{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return finding{}, err
	}
	buf := buffers.Get().(*[writeBuffer]byte)
	defer buffers.Put(buf)
	return n.in(ctx, f, buf[:])
}

// in searches a stream in windows of the size of buf, which must be larger than
// the needle and binaryHead. A window ends with the end of a line if it can; a
// line that is longer than buf is searched in overlapping pieces.
func (n *needle) in(ctx context.Context, r io.Reader, buf []byte) (finding, error) {
	s := &scan{needle: n, line: 1}
	kept, read, atEnd := 0, 0, false
	for !atEnd {
		if err := ctx.Err(); err != nil {
			return finding{}, err
		}
		got, err := io.ReadFull(r, buf[kept:])
		atEnd = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !atEnd {
			return finding{}, err
		}
		window := buf[:kept+got]
		if i := bytes.IndexByte(window[kept:], 0); i >= 0 {
			if read+i < binaryHead {
				return finding{}, nil
			}
			// Binary further down, or the hole of a sparse file, which may be
			// endless: text up to here.
			window, atEnd = window[:kept+i], true
			s.found.truncated = true
		}
		read += got
		whole := len(window)
		overlap := 0
		if !atEnd {
			if whole = bytes.LastIndexByte(window, '\n') + 1; whole == 0 {
				whole, overlap = len(window), len(n.text)-1
			}
		}
		if full := s.window(window[:whole]); full {
			s.found.truncated = true
			return s.found, nil
		}
		kept = copy(buf, window[whole-overlap:])
	}
	if len(s.found.matches) == 0 {
		return finding{}, nil
	}
	return s.found, nil
}

// scan is the state of a search in one file.
type scan struct {
	needle *needle
	// line is the number of the line that comes next.
	line  int
	found finding
}

// window looks at the next part of the file. It reports true when there are more
// hits than are wanted.
func (s *scan) window(text []byte) (full bool) {
	for {
		hit := bytes.Index(text, s.needle.text)
		if hit < 0 {
			s.line += bytes.Count(text, newline)
			return false
		}
		s.line += bytes.Count(text[:hit], newline)
		first := bytes.LastIndexByte(text[:hit], '\n') + 1
		end := len(text)
		if i := bytes.IndexByte(text[hit:], '\n'); i >= 0 {
			end = hit + i
		}
		// Each line is shown once.
		if last := len(s.found.matches) - 1; last < 0 || s.found.matches[last].Line != s.line {
			if len(s.found.matches) == s.needle.most {
				return true
			}
			s.found.matches = append(s.found.matches, Match{s.line, shown(text[first:end], hit-first)})
		}
		text = text[end:]
	}
}

var newline = []byte{'\n'}

// shown cuts a line to the part around the hit, at whole characters.
func shown(line []byte, hit int) string {
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if len(line) <= maxShown {
		return toUnicode(string(line))
	}
	from := max(0, min(hit-maxShown/4, len(line)-maxShown))
	to := from + maxShown
	for range utf8.UTFMax {
		if from > 0 && !utf8.RuneStart(line[from]) {
			from++
		}
		if to < len(line) && !utf8.RuneStart(line[to]) {
			to--
		}
	}
	return toUnicode(string(line[from:to]))
}
