package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Resolver answers the DNS questions of sandboxes. Make one with NewResolver,
// run Serve, and Close it.
type Resolver struct {
	opts      Options
	log       *slog.Logger
	upstreams upstreamSource
	udp       []*net.UDPConn
	tcp       []*net.TCPListener
	queries   *limiter
	conns     *limiter
	stats     counters

	// ctx ends with Close and takes everything in flight with it.
	ctx    context.Context
	cancel context.CancelFunc
	// wg counts the goroutines that Serve started. The mutex keeps them
	// from being started after Close has begun to wait for them.
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

type counters struct {
	answered, denied, failed, overloaded, ignored atomic.Int64
}

// Stats is a view of what a Resolver has done since it was made.
type Stats struct {
	Answered   int64 // with what an upstream said
	Denied     int64 // by Options.Decide
	Failed     int64 // because no upstream answered
	Overloaded int64 // questions and connections beyond a limit
	Ignored    int64 // from outside Options.Sources, or not worth an answer
	Inflight   int   // questions being answered now
	Conns      int   // TCP connections open now
}

// NewResolver checks the options and binds all addresses; it answers nothing
// before Serve. A host without a usable resolver is no error: its configuration
// may still come, and until then questions are answered SERVFAIL.
func NewResolver(opts Options) (*Resolver, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	r := &Resolver{
		opts:    opts,
		log:     opts.Logger,
		queries: newLimiter(opts.MaxInflight, opts.MaxInflightPerSource),
		conns:   newLimiter(opts.MaxConns, opts.MaxConnsPerSource),
	}
	list, err := parseUpstreams(opts.Upstreams)
	if err != nil {
		return nil, err
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.bind(); err != nil {
		r.closeSockets()
		return nil, err
	}
	if len(list) == 0 {
		r.upstreams = newResolvConf(opts.ResolvConf, r.isOwn, r.log)
		return r, nil
	}
	for _, up := range list {
		if r.isOwn(up.addr) {
			r.closeSockets()
			return nil, fmt.Errorf("egress: upstream %s is this resolver itself: name the resolver that the host uses", up.addr)
		}
	}
	r.upstreams = list
	return r, nil
}

// bind opens UDP and TCP on every address, on the same port of both.
func (r *Resolver) bind() error {
	for _, a := range r.opts.Listen {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		if err != nil {
			return fmt.Errorf("egress: serving DNS on %s: %w", a, err)
		}
		r.tcp = append(r.tcp, l)
		bound := netip.AddrPortFrom(a.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
		if err != nil {
			return fmt.Errorf("egress: serving DNS on %s: %w", bound, err)
		}
		r.udp = append(r.udp, u)
	}
	return nil
}

// Addrs is where the resolver listens, in the order of Options.Listen.
func (r *Resolver) Addrs() []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(r.udp))
	for _, u := range r.udp {
		out = append(out, unmap(u.LocalAddr().(*net.UDPAddr).AddrPort()))
	}
	return out
}

func (r *Resolver) isOwn(a netip.AddrPort) bool {
	for _, own := range r.Addrs() {
		if own == a {
			return true
		}
	}
	return false
}

// Stats may be called at any time.
func (r *Resolver) Stats() Stats {
	return Stats{
		Answered:   r.stats.answered.Load(),
		Denied:     r.stats.denied.Load(),
		Failed:     r.stats.failed.Load(),
		Overloaded: r.stats.overloaded.Load(),
		Ignored:    r.stats.ignored.Load(),
		Inflight:   r.queries.inUse(),
		Conns:      r.conns.inUse(),
	}
}

// Serve answers questions until the context ends or Close is called, and then
// returns nil; or until a socket breaks, and returns why. In each case the
// resolver is closed when it returns. Call it once.
func (r *Resolver) Serve(ctx context.Context) error {
	broken := make(chan error, len(r.udp)+len(r.tcp))
	for _, u := range r.udp {
		if !r.start(func() { broken <- r.serveUDP(u) }) {
			return nil
		}
	}
	for _, l := range r.tcp {
		if !r.start(func() { broken <- r.serveTCP(l) }) {
			return nil
		}
	}
	var err error
	select {
	case <-ctx.Done():
	case <-r.ctx.Done():
	case err = <-broken:
	}
	if r.ctx.Err() != nil {
		err = nil // the socket broke because Close closed it
	}
	return errors.Join(err, r.Close())
}

// start runs f in a goroutine that Close waits for, unless Close has begun.
func (r *Resolver) start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.wg.Go(f)
	return true
}

// Close stops answering, gives up what is in flight, and returns when no
// goroutine is left. It may be called more than once and from anywhere but
// Options.Decide.
func (r *Resolver) Close() error {
	r.mu.Lock()
	first := !r.closed
	r.closed = true
	r.mu.Unlock()
	var err error
	if first {
		r.cancel()
		err = r.closeSockets()
	}
	r.wg.Wait()
	return err
}

func (r *Resolver) closeSockets() error {
	r.cancel()
	var errs []error
	for _, u := range r.udp {
		errs = append(errs, u.Close())
	}
	for _, l := range r.tcp {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// serveUDP reads questions and answers each in a goroutine of its own, as many
// as the limits allow. It returns when the socket is closed.
func (r *Resolver) serveUDP(u *net.UDPConn) error {
	// One byte more than a question may have, to see that it has more.
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("egress: reading DNS questions: %w", err)
		}
		from = unmap(from)
		if n > maxQuery || !r.opts.answers(from.Addr()) {
			r.stats.ignored.Add(1)
			continue
		}
		q, answer := parse(buf[:n], from, false)
		if q == nil {
			r.sendUDP(u, from, answer)
			continue
		}
		if !r.queries.take(from.Addr()) {
			r.sendUDP(u, from, r.overloaded(q))
			continue
		}
		started := r.start(func() {
			defer r.queries.give(from.Addr())
			r.sendUDP(u, from, r.answer(r.ctx, q))
		})
		if !started {
			r.queries.give(from.Addr())
			return nil
		}
	}
}

// sendUDP sends an answer. Whether it arrives is the asker's business: it asks
// again when it hears nothing.
func (r *Resolver) sendUDP(u *net.UDPConn, to netip.AddrPort, answer []byte) {
	if answer == nil {
		r.stats.ignored.Add(1)
		return
	}
	_, _ = u.WriteToUDPAddrPort(answer, to)
}

func (r *Resolver) overloaded(q *query) []byte {
	r.stats.overloaded.Add(1)
	return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions at a time; ask again later")
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
