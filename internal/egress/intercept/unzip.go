package intercept

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"iter"
)

// unzipSize is how much comes out of compressed data at a time, in bytes.
const unzipSize = 16 << 10

// unzipper takes compressed data apart and masks what comes out. The reader of
// such data wants to be given more while it reads; here more is given when it
// comes, so the reader stands still in between.
type unzipper struct {
	in   bytes.Buffer
	last bool
	next func() (piece, bool)
	stop func()
}

type piece struct {
	b    []byte
	done bool
	err  error
}

func newUnzipper(r *replacer) *unzipper {
	u := &unzipper{}
	u.next, u.stop = iter.Pull(func(yield func(piece) bool) {
		err := u.run(r, yield)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		yield(piece{done: err == nil, err: err})
	})
	return u
}

var errStopped = errors.New("nobody wants more")

// starving reads what was pushed, and stands still when that is used up.
type starving struct {
	u     *unzipper
	yield func(piece) bool
}

// Read implements io.Reader.
func (s starving) Read(b []byte) (int, error) {
	for s.u.in.Len() == 0 {
		if s.u.last {
			return 0, io.EOF
		}
		if !s.yield(piece{}) {
			return 0, errStopped
		}
	}
	return s.u.in.Read(b)
}

func (u *unzipper) run(r *replacer, yield func(piece) bool) error {
	from := starving{u, yield}
	zip, err := gzip.NewReader(from)
	if err != nil {
		return err // io.EOF when there was nothing, not even a header
	}
	buf := make([]byte, unzipSize)
	for err == nil {
		var n int
		n, err = zip.Read(buf)
		if b := r.replace(buf[:n], err != nil); len(b) > 0 && !yield(piece{b: b}) {
			return errStopped
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	_, err = io.Copy(io.Discard, from) // what is behind the compressed data
	return err
}

// Push implements h2.Expander.
func (u *unzipper) Push(b []byte, last bool) {
	u.in.Write(b)
	u.last = last
}

// Next implements h2.Expander.
func (u *unzipper) Next() ([]byte, bool, error) {
	p, ok := u.next()
	if !ok {
		return nil, true, nil
	}
	return p.b, p.done, p.err
}

// Close implements h2.Expander.
func (u *unzipper) Close() { u.stop() }
