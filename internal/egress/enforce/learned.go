package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
)

const (
	// An address stays reachable for so much longer than its answer lives, but
	// neither shorter nor longer than this in all: programs connect a while
	// after they have asked.
	extraLife = 60 * time.Second
	minLife   = 60 * time.Second
	maxLife   = 360 * time.Second
	// renewal is how much more than its answer's time an address must have left
	// for the packet filter not to be told again.
	renewal = 10 * time.Second
	// maxAddresses is how many addresses a sandbox has at a time, maxNames how
	// many pairs of a name and one of its addresses.
	maxAddresses = 4096
	maxNames     = 16384
)

// binding is what is known of an address.
type binding struct {
	// until is how long the packet filter has it, datagrams how long over UDP.
	until, datagrams time.Time
	names            map[string]time.Time
}

// lifetime is how long an address with that time to live stays reachable.
func lifetime(ttl time.Duration) time.Duration {
	return min(max(ttl+extraLife, minLife), maxLife)
}

var errTooMany = errors.New("the sandbox has asked for too many addresses; they are forgotten after some minutes")

// Learn implements egress.Options.Learn.
func (e *Enforcer) Learn(ctx context.Context, src netip.Addr, name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
	s := e.find(src)
	if s == nil {
		return addrs, nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	rules := s.state()
	if rules == nil || s.gone {
		return addrs, nil
	}
	name = canonical(name)
	// Where a rule looks at requests, UDP would be a way round.
	var kept, named, watched []netip.Addr
	for _, a := range addrs {
		// The proxy, which accepts before it connects, would hide from a client
		// that this family leads nowhere.
		if a.Is6() && !e.filter.Reaches(a) {
			continue
		}
		d := rules.Connect(name, a)
		why := ""
		switch {
		case !d.Allow:
			why = denied(d)
		case !d.Named && d.Rule >= 0:
			// A rule about addresses opens it, and nothing must be learned.
		case policy.Never(a), !e.filter.Opens(a, rules):
			why = fmt.Sprintf("%q has the address %s, which is private or special: a rule must name its range", name, a)
		case d.Named && d.HTTP != nil:
			watched = append(watched, a)
		case d.Named:
			named = append(named, a)
		}
		if why != "" {
			e.report(s, Denial{Protocol: "dns", Name: name, To: netip.AddrPortFrom(a, 0), Rule: d.Rule, Reason: why})
			continue
		}
		kept = append(kept, a)
	}
	if err := e.remember(ctx, s, name, named, ttl, false); err != nil {
		return nil, err
	}
	if err := e.remember(ctx, s, name, watched, ttl, true); err != nil {
		return nil, err
	}
	return kept, nil
}

// remember tells the packet filter of addresses, and then itself.
func (e *Enforcer) remember(ctx context.Context, s *sandbox, name string, addrs []netip.Addr, ttl time.Duration, tcpOnly bool) error {
	if len(addrs) == 0 {
		return nil
	}
	now := e.now()
	life := lifetime(ttl)
	until := now.Add(life)
	s.mu.Lock()
	room := s.room(now, len(addrs))
	renew := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		b := s.learned[a]
		enough := now.Add(ttl + renewal)
		return b != nil && b.until.After(enough) && len(b.names) > 0 && (tcpOnly || b.datagrams.After(enough))
	})
	// Telling it again must not shorten the time of what it has.
	for _, a := range renew {
		if b := s.learned[a]; b != nil && b.until.After(until) {
			until = b.until
			life = until.Sub(now)
		}
	}
	s.mu.Unlock()
	if !room {
		e.report(s, Denial{Protocol: "dns", Name: name, Rule: -1, Reason: errTooMany.Error()})
		return errTooMany
	}
	if len(renew) > 0 {
		if err := e.filter.Learn(ctx, s.addr, renew, life, tcpOnly); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addrs {
		b := s.learned[a]
		if b == nil {
			b = &binding{names: map[string]time.Time{}}
			s.learned[a] = b
		}
		if slices.Contains(renew, a) {
			b.until = until
			if !tcpOnly {
				b.datagrams = until
			}
		}
		if _, ok := b.names[name]; !ok {
			s.names++
		}
		// Never longer than the packet filter has the address.
		if end := minTime(until, b.until); end.After(b.names[name]) {
			b.names[name] = end
		}
	}
	return nil
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// room makes room for more addresses of one name; s.mu is held.
func (s *sandbox) room(now time.Time, more int) bool {
	if len(s.learned)+more <= maxAddresses && s.names+more <= maxNames {
		return true
	}
	for a, b := range s.learned {
		for n, until := range b.names {
			if until.Before(now) {
				delete(b.names, n)
				s.names--
			}
		}
		if len(b.names) == 0 && b.until.Before(now) {
			delete(s.learned, a)
		}
	}
	return len(s.learned)+more <= maxAddresses && s.names+more <= maxNames
}

// drop forgets an address; s.mu is held.
func (s *sandbox) drop(a netip.Addr) {
	if b := s.learned[a]; b != nil {
		s.names -= len(b.names)
		delete(s.learned, a)
	}
}

// forbiddenBy lists the learned addresses for which no name is left under other
// rules, or none that lets UDP pass.
func (s *sandbox) forbiddenBy(next *policy.Compiled, now time.Time) []netip.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []netip.Addr
	for a, b := range s.learned {
		allowed, datagrams := false, false
		for n := range b.names {
			d := next.Connect(n, a)
			allowed = allowed || d.Allow && d.Named
			datagrams = datagrams || d.Allow && d.Named && d.HTTP == nil
		}
		if !allowed || !datagrams && b.datagrams.After(now) {
			out = append(out, a)
		}
	}
	return out
}

func (s *sandbox) addresses() []netip.Addr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]netip.Addr, 0, len(s.learned))
	for a := range s.learned {
		out = append(out, a)
	}
	return out
}

// bound reports whether the name's answer held the address, lately; s.mu is
// held.
func (s *sandbox) bound(name string, a netip.Addr, now time.Time) bool {
	b := s.learned[a]
	return b != nil && now.Before(b.names[name])
}
