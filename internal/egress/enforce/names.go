package enforce

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

const (
	// A sandbox may ask so many questions a second, after a burst.
	lookupRate, lookupBurst = 100, 400
	// And so many names a second, after a burst, that one rule with a wildcard
	// allows and that it has not asked before: what such a name spells travels
	// to the server of that domain.
	freshRate, freshBurst = 2, 100
	// maxSeen is how many of those names are remembered.
	maxSeen = 2048
	// maxWildName is the longest name beneath a wildcard, in bytes, and
	// maxWildLabels how many labels it may have beyond the rule's.
	maxWildName, maxWildLabels = 160, 6
)

// budget is a token bucket.
type budget struct {
	rate, most float64
	used       float64
	at         time.Time
}

func (b *budget) take(now time.Time) bool {
	if !b.at.IsZero() {
		b.used = max(0, b.used-now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	if b.used+1 > b.most {
		return false
	}
	b.used++
	return true
}

// passed are the types of records that sandboxes under a policy may ask for.
var passed = map[uint16]bool{
	dns.TypeA: true, dns.TypeAAAA: true, dns.TypeCNAME: true, dns.TypeMX: true, dns.TypeTXT: true, dns.TypeSRV: true,
	dns.TypeNS: true, dns.TypeSOA: true, dns.TypeCAA: true, dns.TypePTR: true,
}

// empty are the types that are answered with no record: service bindings, which
// bring addresses and keys for encrypted client hellos along (RFC 9460).
var empty = map[uint16]bool{dns.TypeHTTPS: true, dns.TypeSVCB: true}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Decide implements egress.Options.Decide.
func (e *Enforcer) Decide(from egress.Asker, q dns.Question) egress.Verdict {
	s := e.find(from.At.Addr())
	if s == nil {
		return egress.Verdict{}
	}
	rules := s.state()
	if rules == nil {
		return egress.Verdict{}
	}
	name := canonical(q.Name)
	no := func(action egress.Action, rule int, why string) egress.Verdict {
		e.reportName(s, from, Denial{Protocol: "dns", Name: name, Rule: rule, Reason: why})
		return egress.Verdict{Action: action, Reason: why}
	}
	now := e.now()
	if !s.mayAsk(now) {
		return no(egress.Refuse, -1, "the sandbox asks for too many names; ask again later")
	}
	d := rules.Name(name)
	if !d.Allow {
		return no(egress.NameError, d.Rule, denied(d))
	}
	if base, wild := strings.CutPrefix(d.Target, "*"); wild {
		if why := s.checkWild(name, base, now); why != "" {
			return no(egress.NameError, d.Rule, why)
		}
	}
	switch {
	case empty[q.Qtype]:
		return egress.Verdict{Action: egress.Empty, Reason: "service bindings are not looked up under a policy"}
	case !passed[q.Qtype]:
		return no(egress.Refuse, d.Rule, fmt.Sprintf("records of the type %s are not looked up under a policy", dns.Type(q.Qtype)))
	}
	return egress.Verdict{Strict: true}
}

func (s *sandbox) mayAsk(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookups.take(now)
}

// checkWild says what is wrong with a name that a wildcard allows, or "". base
// begins with a dot.
func (s *sandbox) checkWild(name, base string, now time.Time) string {
	if len(name) > maxWildName {
		return fmt.Sprintf("the name has %d characters: beneath a wildcard at most %d are looked up", len(name), maxWildName)
	}
	if n := strings.Count(strings.TrimSuffix(name, base), ".") + 1; n > maxWildLabels {
		return fmt.Sprintf("the name has %d labels before %q: beneath a wildcard at most %d are looked up", n, base, maxWildLabels)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.seen[name]; ok {
		return ""
	}
	if !s.fresh.take(now) {
		return fmt.Sprintf("the sandbox asks for too many different names beneath %q; wait, or allow them by their full names", base)
	}
	if len(s.seen) >= maxSeen {
		clear(s.seen)
	}
	s.seen[name] = struct{}{}
	return ""
}

// denied says why a decision was no.
func denied(d policy.Decision) string {
	if d.Rule >= 0 {
		return fmt.Sprintf("rule %d (deny %s) forbids it", d.Rule, d.Target)
	}
	return "no rule allows it, and the default action is deny"
}
