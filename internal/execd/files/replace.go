package files

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

type replacement struct {
	Old *string `json:"old"`
	New string  `json:"new"`
}

type replaced struct {
	Count int `json:"replacedCount"`
}

// replace replaces all occurrences of a text in files, streaming them.
func replace(c *call) error {
	verbose := false
	if text := c.query("verbose"); text != "" {
		var err error
		// Checked before anything is changed.
		if verbose, err = strconv.ParseBool(text); err != nil {
			return web.BadBody("verbose is %q; it must be true or false", text)
		}
	}
	var body map[string]replacement
	if err := c.readBody(&body); err != nil {
		return err
	}
	type job struct{ asked, path, old, new string }
	var jobs []job
	for asked, rep := range body {
		path, err := c.path(asked)
		if err != nil {
			return err
		}
		if rep.Old == nil || *rep.Old == "" {
			return web.BadBody("%s: \"old\" is empty; give the text to replace", asked)
		}
		jobs = append(jobs, job{asked, path, *rep.Old, rep.New})
	}
	out := map[string]replaced{}
	for _, j := range jobs {
		n, err := replaceIn(j.path, []byte(j.old), []byte(j.new))
		if err != nil {
			return err
		}
		out[j.asked] = replaced{n}
	}
	if verbose {
		web.JSON(c.w, http.StatusOK, out)
		return nil
	}
	return c.ok()
}

func replaceIn(path string, old, new []byte) (int, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := &substituter{in: bufio.NewReaderSize(f, max(writeBuffer, 2*len(old))), old: old, new: new}
	// A first pass that finds nothing leaves the file untouched.
	if n, err := s.count(); err != nil || n == 0 {
		return 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	s.in.Reset(f)
	s.n = 0
	if err := write(path, s, unchanged); err != nil {
		return 0, err
	}
	return s.n, nil
}

// substituter reads its input with every occurrence of old replaced by new.
type substituter struct {
	in       *bufio.Reader
	old, new []byte
	out      []byte // what is ready to be read, a part of buf
	buf      []byte
	n        int
}

func (s *substituter) count() (int, error) {
	_, err := io.Copy(io.Discard, s)
	return s.n, err
}

func (s *substituter) Read(p []byte) (int, error) {
	for len(s.out) == 0 {
		if err := s.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

// more takes the next stretch of input: what is in the buffer, as far as no
// occurrence can begin that goes on behind it. It stops when there is enough to
// be read, because the new text may be much longer than the old.
func (s *substituter) more() error {
	window, err := s.in.Peek(s.in.Size())
	if len(window) == 0 {
		return err
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	out, taken := s.buf[:0], 0
	for len(out) < writeBuffer {
		i := bytes.Index(window[taken:], s.old)
		if i < 0 {
			end := len(window)
			if err == nil {
				end = max(taken, end-(len(s.old)-1))
			}
			out, taken = append(out, window[taken:end]...), end
			break
		}
		out = append(append(out, window[taken:taken+i]...), s.new...)
		taken += i + len(s.old)
		s.n++
	}
	s.buf, s.out = out, out
	_, err = s.in.Discard(taken)
	return err
}
