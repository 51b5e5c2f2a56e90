package jupyter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"
)

// Conn carries messages between a client and one kernel.
type Conn interface {
	// Send sends a message on its channel. It may be called in parallel and
	// takes bounded time.
	Send(m *Message) error
	// Close ends the connection, and with it the calls of the handler.
	Close()
	// Done is closed when everything that came has been handed over and no more
	// will come.
	Done() <-chan struct{}
}

// Handler is told what comes from a kernel. Its functions are called in
// parallel for different channels, and one after another for the messages of
// one channel. A function that blocks blocks its channel.
type Handler struct {
	// Message is called for every message that can be understood.
	Message func(*Message)
	// Skipped is called for one of size bytes that was too long.
	Skipped func(channel Channel, size int64)
	// Broken is called once at most, when a channel is of no use any more and
	// was not closed by Close. What the others still have comes nevertheless.
	Broken func(error)
}

// Connection says where the sockets of a kernel are. It is the content of the
// file that a kernel is started with ("Connection files").
type Connection struct {
	// Transport is tcp, or ipc for sockets in the file system.
	Transport string `json:"transport"`
	// IP is an address for tcp, and the beginning of the sockets' paths for
	// ipc.
	IP      string `json:"ip"`
	Shell   int    `json:"shell_port"`
	Control int    `json:"control_port"`
	IOPub   int    `json:"iopub_port"`
	Stdin   int    `json:"stdin_port"`
	Beat    int    `json:"hb_port"`
	// Key signs the messages. It is a secret between a kernel and its clients.
	Key    string `json:"key"`
	Scheme string `json:"signature_scheme"`
	Name   string `json:"kernel_name"`
}

// OverIPC returns a connection by sockets whose paths begin with prefix. They
// must fit into 107 bytes each (unix(7)).
func OverIPC(prefix, name string) *Connection {
	return &Connection{
		Transport: "ipc", IP: prefix, Shell: 1, IOPub: 2, Stdin: 3, Control: 4, Beat: 5,
		Key: NewID() + NewID(), Scheme: "hmac-sha256", Name: name,
	}
}

// OverTCP returns a connection by ports of the loopback interface that are free
// at the moment. Somebody else may take one before the kernel does, which then
// ends with an error.
func OverTCP(name string) (*Connection, error) {
	c := &Connection{Transport: "tcp", IP: "127.0.0.1", Key: NewID() + NewID(), Scheme: "hmac-sha256", Name: name}
	for _, port := range []*int{&c.Shell, &c.Control, &c.IOPub, &c.Stdin, &c.Beat} {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("finding free ports for the kernel: %w", err)
		}
		// All are held until the last one is found, so that they differ.
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	return c, nil
}

// File is the content of the connection file.
func (c *Connection) File() []byte {
	// Strings and numbers always encode.
	b, _ := json.MarshalIndent(c, "", "  ")
	return b
}

func (c *Connection) address(port int) (network, address string) {
	if c.Transport == "ipc" {
		return "unix", c.IP + "-" + strconv.Itoa(port)
	}
	return "tcp", net.JoinHostPort(c.IP, strconv.Itoa(port))
}

// There is no event for "somebody listens now", so connecting is tried again:
// at first quickly, because most kernels take a few hundred milliseconds.
const (
	firstTry = 5 * time.Millisecond
	lastTry  = 100 * time.Millisecond
)

// dial connects one channel, as soon as the kernel listens.
func (c *Connection) dial(ctx context.Context, port int, kind, identity string) (*socket, error) {
	network, address := c.address(port)
	var d net.Dialer
	for wait := firstTry; ; wait = min(2*wait, lastTry) {
		conn, err := d.DialContext(ctx, network, address)
		if err == nil {
			var s *socket
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			if s, err = greet(conn, kind, identity); err == nil && stop() {
				return s, nil
			}
			conn.Close()
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("connecting to the kernel at %s: %w", address, errors.Join(ctx.Err(), err))
		}
	}
}

// wire is a Conn over the kernel's own sockets.
type wire struct {
	key     []byte
	handler Handler
	sockets map[Channel]*socket
	reading sync.WaitGroup
	done    chan struct{}

	mu sync.Mutex
	// ended is set by Close, and when a channel broke.
	ended bool
}

// Dial connects to a kernel, and waits until ctx ends for one that does not
// listen yet.
func Dial(ctx context.Context, c *Connection, h Handler) (Conn, error) {
	w := &wire{key: []byte(c.Key), handler: h, sockets: make(map[Channel]*socket), done: make(chan struct{})}
	identity := NewID()
	for _, to := range []struct {
		channel Channel
		port    int
		kind    string
	}{
		{Shell, c.Shell, dealer}, {Control, c.Control, dealer}, {Stdin, c.Stdin, dealer}, {IOPub, c.IOPub, subscriber},
	} {
		s, err := c.dial(ctx, to.port, to.kind, identity)
		if err == nil && to.kind == subscriber {
			err = s.subscribe()
		}
		if err != nil {
			w.Close()
			return nil, err
		}
		w.sockets[to.channel] = s
	}
	for channel, s := range w.sockets {
		w.reading.Go(func() { w.read(channel, s) })
	}
	go func() {
		w.reading.Wait()
		close(w.done)
	}()
	return w, nil
}

// Send implements Conn.
func (w *wire) Send(m *Message) error {
	s := w.sockets[m.Channel]
	if s == nil {
		return fmt.Errorf("there is no channel %q", m.Channel)
	}
	frames, err := m.encode(w.key)
	if err != nil {
		return err
	}
	return s.send(frames...)
}

// Done implements Conn.
func (w *wire) Done() <-chan struct{} { return w.done }

// Close implements Conn.
func (w *wire) Close() {
	w.end()
	for _, s := range w.sockets {
		s.conn.Close()
	}
}

// end is true for the first call.
func (w *wire) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := !w.ended
	w.ended = true
	return first
}

// read hands over what comes on a channel until the connection ends.
func (w *wire) read(channel Channel, s *socket) {
	for {
		frames, err := s.receive()
		var long *tooLongError
		switch {
		case errors.As(err, &long):
			w.handler.Skipped(channel, long.size)
			continue
		case err != nil:
			if w.end() {
				w.handler.Broken(fmt.Errorf("the connection to the kernel broke: %w", err))
			}
			return
		}
		if m, err := decode(channel, w.key, frames); err == nil {
			w.handler.Message(m)
		}
	}
}

// Beat asks a kernel for a sign of life, which kernels give even while they
// run code, and returns nil when it came before ctx ended.
func Beat(ctx context.Context, c *Connection) error {
	s, err := c.dial(ctx, c.Beat, dealer, NewID())
	if err != nil {
		return err
	}
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	// The empty frame is what a REQ socket sends in front.
	ping := []byte("ping")
	if err := s.send(nil, ping); err != nil {
		return err
	}
	frames, err := s.receive()
	if err != nil {
		return fmt.Errorf("the kernel's heartbeat: %w", errors.Join(ctx.Err(), err))
	}
	if n := len(frames); n == 0 || !bytes.Equal(frames[n-1], ping) {
		return errors.New("the kernel's heartbeat answers something else")
	}
	return nil
}
