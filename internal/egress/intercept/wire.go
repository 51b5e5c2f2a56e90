package intercept

import (
	"net"
	"sync"
)

const (
	// wireRead is how much is read at a time from a connection that always has
	// more: TLS itself reads a record, of at most 16 KiB, with each call.
	wireRead = 64 << 10
	// bulk is what a read or write has at least, in bytes, that is one of many.
	bulk = 8 << 10
)

// wire is a TCP connection as the code above it, TLS or HTTP, sees it. Large
// transfers take fewer system calls than that code would make. One goroutine may
// read and others write.
type wire struct {
	net.Conn
	// wait, if not nil, is called before a read waits, so that nothing that has
	// come is held back. It belongs to whoever reads.
	wait  func() error
	buf   []byte // nil unless much comes
	in    []byte // what is left in buf
	bulky bool

	mu   sync.Mutex
	held *[]byte // what is written while a batch is open; nil otherwise
}

var batches = sync.Pool{New: func() any { b := make([]byte, 0, 72<<10); return &b }}

// Read implements net.Conn.
func (w *wire) Read(b []byte) (int, error) {
	if len(w.in) > 0 {
		n := copy(b, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	if w.wait != nil {
		if err := w.wait(); err != nil {
			return 0, err
		}
	}
	if !w.bulky {
		n, err := w.Conn.Read(b)
		w.bulky = n >= bulk
		return n, err
	}
	if w.buf == nil {
		w.buf = make([]byte, wireRead)
	}
	n, err := w.Conn.Read(w.buf)
	w.in = w.buf[:n]
	if n < bulk {
		w.bulky, w.buf = false, nil // most connections are idle most of the time
	}
	c := copy(b, w.in)
	w.in = w.in[c:]
	return c, err
}

// Write implements net.Conn.
func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.Conn.Write(b)
	}
	*w.held = append(*w.held, b...)
	return len(b), nil
}

// batched writes to a connection over a wire such that what that makes of one
// write is one system call.
type batched struct {
	net.Conn
	w *wire
}

// Write implements io.Writer.
func (b batched) Write(p []byte) (int, error) {
	if len(p) < bulk || net.Conn(b.w) == b.Conn {
		return b.Conn.Write(p)
	}
	b.w.mu.Lock()
	b.w.held = batches.Get().(*[]byte)
	b.w.mu.Unlock()
	n, err := b.Conn.Write(p)
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	held := b.w.held
	b.w.held = nil
	if _, werr := b.w.Conn.Write(*held); err == nil {
		err = werr
	}
	*held = (*held)[:0]
	batches.Put(held)
	return n, err
}

// CloseWrite ends what is sent, as net.TCPConn does.
func (b batched) CloseWrite() error {
	if c, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return b.Close()
}

// CloseWrite ends what is sent, as net.TCPConn does.
func (w *wire) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return w.Conn.Close()
}

// onWait has f called before a read waits.
func (w *wire) onWait(f func()) { w.wait = func() error { f(); return nil } }
