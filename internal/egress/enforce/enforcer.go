package enforce

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

// Filter is the packet filter. Its methods return when the kernel has what they
// say. They are safe for concurrent use.
type Filter interface {
	// SetPolicy replaces a sandbox's policy in one step; nil takes it away.
	// Addresses in forget are learned no longer.
	SetPolicy(ctx context.Context, sandbox netip.Addr, c *policy.Compiled, forget []netip.Addr) error
	// CutForbidden ends the connections that the policy does not let pass.
	CutForbidden(sandbox netip.Addr) error
	// Learn makes addresses reachable for a while; with tcpOnly not over UDP,
	// unless they are already.
	Learn(ctx context.Context, sandbox netip.Addr, addrs []netip.Addr, lifetime time.Duration, tcpOnly bool) error
	// Reaches reports whether the host has a route to an address.
	Reaches(a netip.Addr) bool
	// Opens reports whether an address is public, or opened by a rule or by the
	// configuration.
	Opens(a netip.Addr, c *policy.Compiled) bool
}

// Connections are those that the proxy has.
type Connections interface {
	// Recheck judges those of a sandbox again.
	Recheck(sandbox netip.Addr)
	// Cut ends those of a sandbox.
	Cut(sandbox netip.Addr)
}

// denialBuffer is how many denials may wait to be taken.
const denialBuffer = 1024

// Enforcer applies policies. It is safe for concurrent use.
type Enforcer struct {
	filter Filter
	// now is replaced by tests.
	now func() time.Time

	mu    sync.RWMutex
	by    map[netip.Addr]*sandbox
	conns Connections

	denials chan Denial
	lost    atomic.Int64
	asker   atomic.Pointer[func(sandbox string, from egress.Asker) string]
}

// sandbox is one under a policy.
type sandbox struct {
	id   string
	addr netip.Addr

	// change serialises what changes the packet filter for this sandbox.
	change sync.Mutex
	gone   bool // guarded by change

	mu      sync.RWMutex
	rules   *policy.Compiled
	learned map[netip.Addr]*binding
	names   int // in all of learned
	lookups budget
	fresh   budget
	seen    map[string]struct{}

	telling sync.Mutex
	told    budget
}

// New makes an Enforcer without policies.
func New(f Filter) *Enforcer {
	return &Enforcer{filter: f, now: time.Now, by: map[netip.Addr]*sandbox{}, denials: make(chan Denial, denialBuffer)}
}

// Attach tells whose connections to cut when a policy changes.
func (e *Enforcer) Attach(c Connections) {
	e.mu.Lock()
	e.conns = c
	e.mu.Unlock()
}

func (e *Enforcer) connections() Connections {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.conns
}

func (e *Enforcer) find(addr netip.Addr) *sandbox {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.by[addr]
}

// Adopt takes a policy over that the packet filter has already, as it does when
// it was made with it.
func (e *Enforcer) Adopt(id string, addr netip.Addr, p policy.Policy) {
	s := newSandbox(id, addr)
	s.rules = policy.Compile(p)
	e.mu.Lock()
	e.by[addr] = s
	e.mu.Unlock()
}

func newSandbox(id string, addr netip.Addr) *sandbox {
	return &sandbox{id: id, addr: addr, learned: map[netip.Addr]*binding{}, seen: map[string]struct{}{},
		lookups: budget{rate: lookupRate, most: lookupBurst}, fresh: budget{rate: freshRate, most: freshBurst},
		told: budget{rate: reportRate, most: reportBurst}}
}

// ErrGone is returned by Set when the sandbox was removed meanwhile.
var ErrGone = errors.New("the sandbox is gone")

// Begin puts a sandbox under a policy that runs nothing of a user's yet and so
// has no connections.
func (e *Enforcer) Begin(ctx context.Context, id string, addr netip.Addr, p policy.Policy) error {
	return e.set(ctx, id, addr, p, false)
}

// Set puts a sandbox under a policy in normal form, or replaces its policy. When
// it returns nil the policy is in force and connections that it forbids are cut;
// when it fails the old one still is.
func (e *Enforcer) Set(ctx context.Context, id string, addr netip.Addr, p policy.Policy) error {
	return e.set(ctx, id, addr, p, true)
}

func (e *Enforcer) set(ctx context.Context, id string, addr netip.Addr, p policy.Policy, cut bool) error {
	e.mu.Lock()
	s := e.by[addr]
	if s == nil {
		s = newSandbox(id, addr)
		// Nothing is decided by it before it has rules.
		e.by[addr] = s
	}
	e.mu.Unlock()

	s.change.Lock()
	defer s.change.Unlock()
	if s.gone {
		return ErrGone
	}
	old, next := s.state(), policy.Compile(p)
	forget := s.forbiddenBy(next, e.now())
	if err := e.filter.SetPolicy(ctx, addr, next, forget); err != nil {
		if old == nil {
			e.forget(s)
		}
		return err
	}
	s.apply(next, forget)
	if !cut {
		return nil
	}
	if err := e.filter.CutForbidden(addr); err != nil {
		return errors.Join(err, e.restore(context.WithoutCancel(ctx), s, old))
	}
	if c := e.connections(); c != nil {
		c.Recheck(addr)
	}
	return nil
}

// restore undoes a change; s.change is held. Names that were forgotten with it
// must be looked up again.
func (e *Enforcer) restore(ctx context.Context, s *sandbox, old *policy.Compiled) error {
	if err := e.filter.SetPolicy(ctx, s.addr, old, nil); err != nil {
		return err
	}
	if old == nil {
		e.forget(s)
		return nil
	}
	s.apply(old, nil)
	return nil
}

// Remove takes a sandbox's policy away, for one whose processes have ended. It
// does nothing for a sandbox without one.
func (e *Enforcer) Remove(ctx context.Context, addr netip.Addr) error {
	s := e.find(addr)
	if s == nil {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	if c := e.connections(); c != nil {
		c.Cut(addr)
	}
	if err := e.filter.SetPolicy(ctx, addr, nil, s.addresses()); err != nil {
		return err
	}
	e.forget(s)
	return nil
}

func (e *Enforcer) forget(s *sandbox) {
	s.gone = true
	e.mu.Lock()
	if e.by[s.addr] == s {
		delete(e.by, s.addr)
	}
	e.mu.Unlock()
}

// apply makes a policy the one that decisions are made by.
func (s *sandbox) apply(next *policy.Compiled, forget []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = next
	for _, a := range forget {
		s.drop(a)
	}
	for a, b := range s.learned {
		for n := range b.names {
			if !next.Connect(n, a).Allow {
				delete(b.names, n)
				s.names--
			}
		}
	}
}

// state is the policy to decide by; nil while there is none.
func (s *sandbox) state() *policy.Compiled {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rules
}
