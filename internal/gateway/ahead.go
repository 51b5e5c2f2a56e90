package gateway

import (
	"errors"
	"io"
	"sync"
)

// ahead reads a body while what came before is being written. A body of unknown
// length comes in the client's chunks and leaves in those of this gateway: read
// and written in turn each small chunk would cost a system call on every side of
// the way, while like this the chunks grow as fast as the other side is slow.
// Nothing waits for more than there is.
type ahead struct {
	mu      sync.Mutex
	changed sync.Cond
	buf     *[largeBuffer]byte
	// buf[at:at+n], modulo its length, was read and not written.
	at, n int
	// err ends the reading, io.EOF among them.
	err error
	// stopped is set when nothing more will be written.
	stopped bool
}

// copyAhead copies r to w until the end of r. When w fails it returns while r may
// still be read from; that ends with the next bytes that r gives.
func copyAhead(w io.Writer, r io.Reader) (written int64, err error) {
	a := &ahead{buf: largeBuffers.Get().(*[largeBuffer]byte)}
	a.changed.L = &a.mu
	go a.read(r)
	for {
		p, err := a.next()
		if len(p) == 0 {
			// The reader has ended, so nobody has the buffer any more.
			largeBuffers.Put(a.buf)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return written, err
		}
		n, err := w.Write(p)
		written += int64(n)
		a.consumed(len(p), err != nil)
		if err != nil {
			return written, err
		}
	}
}

func (a *ahead) read(r io.Reader) {
	for {
		p := a.room()
		if p == nil {
			return
		}
		n, err := r.Read(p)
		a.mu.Lock()
		a.n += n
		a.err = err
		a.mu.Unlock()
		a.changed.Signal()
		if err != nil {
			return
		}
	}
}

// room waits until there is some, and returns nil when none is needed any more.
func (a *ahead) room() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.n == len(a.buf) && !a.stopped {
		a.changed.Wait()
	}
	if a.stopped {
		return nil
	}
	end := (a.at + a.n) % len(a.buf)
	return a.buf[end:min(len(a.buf), end+len(a.buf)-a.n)]
}

// next waits for bytes to write. There are none when reading has ended.
func (a *ahead) next() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.n == 0 && a.err == nil {
		a.changed.Wait()
	}
	return a.buf[a.at:min(len(a.buf), a.at+a.n)], a.err
}

func (a *ahead) consumed(n int, stop bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = (a.at + n) % len(a.buf)
	a.n -= n
	a.stopped = stop
	a.changed.Signal()
}
