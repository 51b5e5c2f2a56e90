package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// dialTimeout bounds a connection attempt; nothing is further away than a veth.
const dialTimeout = 5 * time.Second

// Dial connects to a port of the sandbox. execd is reached through its Unix
// listener, which no process of the sandbox can take over. Other ports are
// tried at the sandbox's address and, for services that listen on loopback
// only, through execd.
func (e *Engine) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	s, err := e.find(id)
	if err != nil {
		return nil, err
	}
	if port == sandbox.IsolatedPort {
		return e.dialIsolated(s)
	}
	if port == sandbox.ExecdPort {
		return e.dialExecdConn(ctx, s)
	}
	c, err := s.dialTCP(ctx, port)
	if err == nil || !errors.Is(err, unix.ECONNREFUSED) {
		return c, err
	}
	return e.dialThroughExecd(ctx, s, port)
}

// dialExecdConn connects to the sandbox's execd.
func (e *Engine) dialExecdConn(ctx context.Context, s *shell) (net.Conn, error) {
	if s.behindGVisor() {
		return s.dialTCP(ctx, hostapi.Port)
	}
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "unix", e.in.socket(s.id))
}

// dialThroughExecd asks execd for a connection to a loopback port.
func (e *Engine) dialThroughExecd(ctx context.Context, s *shell, port int) (net.Conn, error) {
	c, err := e.dialExecdConn(ctx, s)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(dialTimeout)
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = fmt.Fprintf(c, "GET %s?port=%d HTTP/1.1\r\nHost: execd\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n%s: %s\r\n\r\n",
		hostapi.DialPath, port, hostapi.TokenHeader, s.token)
	if err != nil {
		c.Close()
		return nil, err
	}
	r := bufio.NewReaderSize(c, 4096)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("asking execd for a connection: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		c.Close()
		// What execd says about it is not to be trusted; that it refused is
		// all that matters.
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: s.addr.AsSlice(), Port: port}, Err: unix.ECONNREFUSED}
	}
	if !stop() {
		c.Close()
		return nil, ctx.Err()
	}
	c.SetDeadline(time.Time{})
	return &tunnel{Conn: c, r: r}, nil
}

// tunnel is a connection whose first bytes may already be in a buffer.
type tunnel struct {
	net.Conn
	r *bufio.Reader
}

func (t *tunnel) Read(p []byte) (int, error) { return t.r.Read(p) }

// CloseWrite passes a half-close on.
func (t *tunnel) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
