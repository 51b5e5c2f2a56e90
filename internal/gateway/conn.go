package gateway

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection into a sandbox. The gateway knows all of them, so that
// they can be closed when their sandbox goes.
type conn struct {
	net.Conn
	g    *Gateway
	id   string
	used atomic.Int64 // when bytes last moved, nanoseconds since g.start
	once sync.Once
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.touch()
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.touch()
	return n, err
}

// ReadFrom copies a request's body in pieces that are larger than the
// transport's own.
func (c *conn) ReadFrom(r io.Reader) (total int64, err error) {
	err = pump(r, func(p []byte) error {
		n, err := c.Write(p)
		total += int64(n)
		return err
	})
	return total, err
}

// enlarge sets the socket's send buffer, beyond the limit for everyone
// (net.core.wmem_max) where this process may do that. It is only faster, so it
// may fail.
func (c *conn) enlarge(size int) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}
	})
}

func (c *conn) touch() { c.used.Store(int64(time.Since(c.g.start))) }

// Close may be called more than once and from any goroutine.
func (c *conn) Close() error {
	c.once.Do(func() { c.g.conns.remove(c) })
	return c.Conn.Close()
}

// CloseWrite ends the stream towards the sandbox, if the connection can do that.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// connSet is every open connection, by sandbox.
type connSet struct {
	mu     sync.Mutex
	closed bool
	by     map[string]map[*conn]struct{}
}

// add answers false when the set takes no more.
func (s *connSet) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.by[c.id] == nil {
		s.by[c.id] = make(map[*conn]struct{})
	}
	s.by[c.id][c] = struct{}{}
	return true
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by[c.id], c)
	if len(s.by[c.id]) == 0 {
		delete(s.by, c.id)
	}
}

// ids returns the sandboxes that have connections.
func (s *connSet) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.by))
	for id := range s.by {
		ids = append(ids, id)
	}
	return ids
}

// of returns the connections of one sandbox.
func (s *connSet) of(id string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	cs := make([]*conn, 0, len(s.by[id]))
	for c := range s.by[id] {
		cs = append(cs, c)
	}
	return cs
}

func (s *connSet) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, cs := range s.by {
		n += len(cs)
	}
	return n
}

// handoff carries a connection that was dialed while a request was held to the
// transport that will use it.
type handoff struct{ conn atomic.Pointer[conn] }

func (h *handoff) take() *conn { return h.conn.Swap(nil) }

// drop closes the connection if nobody took it.
func (h *handoff) drop() {
	if c := h.take(); c != nil {
		c.Close()
	}
}

type handoffKey struct{}

// dial connects to a port of a sandbox and registers the connection.
func (g *Gateway) dial(ctx context.Context, id string, port int) (*conn, error) {
	raw, err := g.dialer.Dial(ctx, id, port)
	if err != nil {
		return nil, &dialError{err}
	}
	c := &conn{Conn: raw, g: g, id: id}
	c.touch()
	if !g.conns.add(c) {
		raw.Close()
		return nil, &dialError{net.ErrClosed}
	}
	return c, nil
}

// Evict closes every connection to a sandbox: pooled ones, and those with
// requests on them, whose clients see them break off. Call it when a sandbox
// has gone.
func (g *Gateway) Evict(id string) {
	for _, c := range g.conns.of(id) {
		c.Close()
	}
}

// sweep closes connections to sandboxes that have gone without the gateway
// being told, and those on which nothing has moved for the idle limit.
func (g *Gateway) sweep() {
	now := int64(time.Since(g.start))
	for _, id := range g.conns.ids() {
		if g.opts.Gone != nil && g.opts.Gone(id) {
			g.Evict(id)
			continue
		}
		for _, c := range g.conns.of(id) {
			if now-c.used.Load() > int64(g.opts.StreamIdle) {
				g.log.Debug("connection closed because nothing moved on it", "sandbox", id)
				c.Close()
			}
		}
	}
}
