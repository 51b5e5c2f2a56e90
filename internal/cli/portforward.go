package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// maxForwarded bounds the connections that are forwarded at one time.
	maxForwarded = 512
	// acceptPause is how long the listener rests when the system gives it no
	// connection, for want of descriptors, say.
	acceptPause = 100 * time.Millisecond
)

// forward is a local listener and where its connections go.
type forward struct {
	local, remote int
}

func (a *app) portForwardCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward ID [LOCAL:]REMOTE...",
		Short: "Make ports of a sandbox ports of this machine",
		Long: `Listen on this machine and carry every connection to a TCP port of a sandbox, through
the server, until Ctrl-C or the end of the sandbox. Any protocol over TCP goes
through, such as that of ssh or of a database.

LOCAL is the port here; it is the same as REMOTE when left out, and a free one when
it is 0 or empty. Whoever can connect to it reaches the sandbox without a key: it is
on 127.0.0.1 unless --address says otherwise.`,
		Example: `  paddock port-forward $id 8000
  paddock port-forward $id 15432:5432 2222:22
  paddock port-forward $id :8000`,
		Args: args(2, -1, "ID [LOCAL:]REMOTE..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			var forwards []forward
			for _, text := range args[1:] {
				f, err := parseForward(text)
				if err != nil {
					return usagef(cmd, "%q: %s", text, err)
				}
				forwards = append(forwards, f)
			}
			if net.ParseIP(address) == nil && address != "localhost" {
				return usagef(cmd, "--address %q: want an IP address, such as 127.0.0.1", address)
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			return a.portForward(cmd.Context(), conn, args[0], address, forwards)
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	return cmd
}

// parseForward reads [LOCAL:]REMOTE.
func parseForward(s string) (forward, error) {
	local, remote, two := strings.Cut(s, ":")
	if !two {
		local, remote = s, s
	}
	var f forward
	var err error
	if f.remote, err = strconv.Atoi(remote); err != nil || f.remote < 1 || f.remote > 65535 {
		return f, fmt.Errorf("the port of the sandbox is %q, want a number from 1 to 65535", remote)
	}
	if local == "" {
		return f, nil
	}
	if f.local, err = strconv.Atoi(local); err != nil || f.local < 0 || f.local > 65535 {
		return f, fmt.Errorf("the port here is %q, want a number from 0 to 65535", local)
	}
	return f, nil
}

// portForward listens and carries connections until ctx ends, which is the usual
// end and no error, or until the sandbox is gone.
func (a *app) portForward(ctx context.Context, c *connection, id, address string, forwards []forward) error {
	sb, err := c.Get(ctx, id)
	if err != nil {
		return err
	}
	if sb.Status.Ended() {
		return fmt.Errorf("sandbox %s is %s (%s): there is nothing to connect to", id, sb.Status.State, sanitize(sb.Status.Reason))
	}
	serving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &forwarder{app: a, c: c, id: id, cancel: cancel, slots: make(chan struct{}, maxForwarded)}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
		p.wg.Wait()
	}()
	for _, f := range forwards {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(f.local)))
		if err != nil {
			return fmt.Errorf("listening for port %d: %w", f.remote, err)
		}
		listeners = append(listeners, l)
		if err := a.printForward(l.Addr(), id, f.remote); err != nil {
			return err
		}
	}
	p.wg.Go(func() { p.watch(serving) })
	for i, l := range listeners {
		p.wg.Go(func() { p.accept(serving, l, forwards[i].remote) })
	}
	<-serving.Done()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(serving)
}

// printForward says where a port of the sandbox is now.
func (a *app) printForward(at net.Addr, id string, remote int) error {
	if a.output == "json" {
		return json.NewEncoder(a.streams.Out).Encode(map[string]any{"address": at.String(), "sandbox": id, "port": remote})
	}
	_, err := fmt.Fprintf(a.streams.Out, "%s -> %s:%d\n", at, id, remote)
	return err
}

// forwarder carries the connections of one command.
type forwarder struct {
	*app
	c      *connection
	id     string
	cancel context.CancelCauseFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu   sync.Mutex
	last string // what was complained about last
}

// watch ends everything when the sandbox has ended. When it can't know, the next
// connection tells.
func (p *forwarder) watch(ctx context.Context) {
	err := p.c.FollowEvents(ctx, p.id, 0, func(client.Event) error { return nil })
	if err == nil && ctx.Err() == nil {
		p.cancel(fmt.Errorf("sandbox %s has ended", p.id))
	}
}

// accept takes connections until the listener is closed.
func (p *forwarder) accept(ctx context.Context, l net.Listener, remote int) {
	for {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		local, err := l.Accept()
		if err != nil {
			<-p.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.complain(fmt.Sprintf("accepting a connection: %v", err))
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return
			}
		}
		p.wg.Go(func() {
			defer func() { <-p.slots }()
			defer local.Close()
			p.carry(ctx, local, remote)
		})
	}
}

// carry connects one connection to the sandbox.
func (p *forwarder) carry(ctx context.Context, local net.Conn, remote int) {
	tunnel, err := p.c.DialPort(ctx, p.id, remote)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		if _, gone := p.c.Get(ctx, p.id); client.IsNotFound(gone) {
			p.cancel(fmt.Errorf("sandbox %s is gone", p.id))
		}
		p.complain(err.Error())
		reset(local)
		return
	}
	defer tunnel.Close()
	stop := context.AfterFunc(ctx, func() {
		local.Close()
		tunnel.Close()
	})
	defer stop()
	exchange(local, tunnel)
}

// reset closes a connection so that its other side sees a failure, and not an
// answer that ends here.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// complain prints an error, but not the same one again and again.
func (p *forwarder) complain(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == p.last {
		return
	}
	p.last = text
	fmt.Fprintf(p.streams.Err, "paddock: %s\n", client.Printable(text))
}

// halfCloser is one end of a connection whose directions end by themselves.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// exchange copies in both directions until both have ended. An error ends both.
func exchange(local net.Conn, tunnel halfCloser) {
	one, ok := local.(halfCloser)
	if !ok {
		return
	}
	direction := func(to, from halfCloser) {
		_, err := io.Copy(to, from)
		if err != nil || to.CloseWrite() != nil {
			reset(local)
			tunnel.Close()
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { direction(tunnel, one) })
	direction(one, tunnel)
	wg.Wait()
}
