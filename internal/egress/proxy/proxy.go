package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// acceptPause is how long the listener waits when the process is out of
// descriptors or memory, which no event announces the end of.
const acceptPause = 50 * time.Millisecond

// Proxy serves redirected connections. Make one with New, run Serve, and Close
// it.
type Proxy struct {
	o Options
	// ctx ends with Close and takes every connection with it.
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	open     int
	sessions map[netip.Addr]map[*session]struct{}
	wg       sync.WaitGroup

	stats struct{ served, denied, refused, failed atomic.Int64 }
}

// Stats is a view of what a Proxy has done since it was made.
type Stats struct {
	Served  int64 // connections that were allowed
	Denied  int64 // connections and requests that the policy refused
	Refused int64 // connections beyond a limit
	Failed  int64 // connections whose destination could not be reached
	Conns   int   // open now
}

// New checks the options. Nothing is accepted before Serve.
func New(o Options) (*Proxy, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	p := &Proxy{o: o, sessions: map[netip.Addr]map[*session]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Stats may be called at any time.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	return Stats{p.stats.served.Load(), p.stats.denied.Load(), p.stats.refused.Load(), p.stats.failed.Load(), open}
}

// Serve accepts connections until the context ends or Close is called, and then
// returns nil; or until the listener breaks. The proxy is closed when it returns.
func (p *Proxy) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.shut)
	defer stop()
	errs := make(chan error, len(p.o.Listeners))
	for _, l := range p.o.Listeners {
		p.wg.Go(func() {
			errs <- p.accept(l)
			p.shut()
		})
	}
	err := <-errs // what the others say follows from it
	if p.ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, p.Close())
}

func (p *Proxy) accept(l *net.TCPListener) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case isShortage(err):
			select {
			case <-p.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		case errors.Is(err, syscall.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("proxy: accepting connections: %w", err)
		}
		s := &session{p: p, client: c, source: p.source(c)}
		s.ctx, s.cancel = context.WithCancel(p.ctx)
		if !p.add(s) {
			p.stats.refused.Add(1)
			s.cancel()
			reset(c)
		}
	}
}

func isShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// source is the sandbox's end of a connection, by the address that the sandbox is
// known by.
func (p *Proxy) source(c *net.TCPConn) netip.AddrPort {
	from := unmapped(c.RemoteAddr())
	if p.o.Identify == nil {
		return from
	}
	return netip.AddrPortFrom(p.o.Identify(from.Addr()), from.Port())
}

func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// add starts a session within the limits.
func (p *Proxy) add(s *session) bool {
	src := s.source.Addr()
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.sessions[src]
	if p.closed || p.open >= p.o.MaxConns || len(own) >= p.o.MaxConnsPerSandbox {
		return false
	}
	if own == nil {
		own = map[*session]struct{}{}
		p.sessions[src] = own
	}
	own[s] = struct{}{}
	p.open++
	p.wg.Go(func() {
		defer p.remove(s)
		s.serve()
	})
	return true
}

func (p *Proxy) remove(s *session) {
	s.cancel()
	src := s.source.Addr()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	delete(p.sessions[src], s)
	if len(p.sessions[src]) == 0 {
		delete(p.sessions, src)
	}
}

// of lists the sessions of a sandbox.
func (p *Proxy) of(src netip.Addr) []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*session, 0, len(p.sessions[src]))
	for s := range p.sessions[src] {
		list = append(list, s)
	}
	return list
}

// Recheck judges the connections of a sandbox again, after its policy has
// changed, and cuts those that are forbidden now. It does not wait for their
// ends.
func (p *Proxy) Recheck(src netip.Addr) {
	for _, s := range p.of(src) {
		s.recheck()
	}
}

// Cut ends the connections of a sandbox. It does not wait for their ends.
func (p *Proxy) Cut(src netip.Addr) {
	for _, s := range p.of(src) {
		s.cancel()
	}
}

// Close ends every connection and returns when nothing is left of them. It may
// be called more than once.
func (p *Proxy) Close() error {
	p.shut()
	p.wg.Wait()
	return nil
}

func (p *Proxy) shut() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	for _, l := range p.o.Listeners {
		_ = l.Close()
	}
}
