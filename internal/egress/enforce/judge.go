package enforce

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

// Ports with a protocol: what is neither TLS nor HTTP there is refused where a
// name is needed, for it could only be a disguise.
const (
	httpPort  = 80
	httpsPort = 443
)

// Sandbox implements proxy.Judge.
func (e *Enforcer) Sandbox(src netip.Addr) (string, bool) {
	s := e.find(src)
	if s == nil || s.state() == nil {
		return "", false
	}
	return s.id, true
}

// Judge implements proxy.Judge.
func (e *Enforcer) Judge(src netip.Addr, c proxy.Claim) proxy.Verdict {
	s := e.find(src)
	if s == nil {
		return proxy.Verdict{Rule: -1, Reason: "the sandbox is gone"}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.rules == nil {
		return proxy.Verdict{Rule: -1, Reason: "the sandbox is gone"}
	}
	if c.Name != "" {
		return e.judgeName(s, c)
	}
	d := s.rules.Connect("", c.To.Addr())
	if d.Allow {
		return proxy.Verdict{Allow: true, Rule: d.Rule}
	}
	switch c.Protocol {
	case proxy.Unknown:
		return e.anyName(s, c, d, false)
	case proxy.Opaque:
		if p := c.To.Port(); p == httpPort || p == httpsPort {
			return proxy.Verdict{Rule: d.Rule, Reason: fmt.Sprintf(
				"on port %d only TLS or HTTP with the name of an allowed host is let through", p)}
		}
		return e.anyName(s, c, d, true)
	case proxy.TLS:
		return proxy.Verdict{Rule: d.Rule, Reason: "the TLS client hello has no server name, and no rule allows the address " + c.To.Addr().String()}
	}
	return proxy.Verdict{Rule: d.Rule, Reason: "the request names no host, and no rule allows the address " + c.To.Addr().String()}
}

// judgeName decides about a connection that says whom it is for; s.mu is held.
func (e *Enforcer) judgeName(s *sandbox, c proxy.Claim) proxy.Verdict {
	d := s.rules.Connect(c.Name, c.To.Addr())
	v := proxy.Verdict{Allow: d.Allow, Rule: d.Rule}
	switch {
	case !d.Allow:
		v.Reason = fmt.Sprintf("%q: %s", c.Name, denied(d))
	case !d.Named:
		// The address is allowed, whatever it is called.
	case !c.Bound && !s.bound(c.Name, c.To.Addr(), e.now()):
		v.Allow = false
		v.Reason = fmt.Sprintf("%q was not looked up, or %s is none of its addresses", c.Name, c.To.Addr())
	case d.HTTP != nil:
		v.Named, v.Request = true, e.requests(s, c, d)
	default:
		v.Named = true
	}
	return v
}

// anyName decides about a connection to an address that only a name can allow;
// s.mu is held. Without firm it is enough that some use of it could be allowed.
func (e *Enforcer) anyName(s *sandbox, c proxy.Claim, d policy.Decision, firm bool) proxy.Verdict {
	now := e.now()
	b := s.learned[c.To.Addr()]
	if b != nil {
		for n, until := range b.names {
			allowed := s.rules.Connect(n, c.To.Addr())
			if now.Before(until) && allowed.Allow && (!firm || allowed.HTTP == nil) {
				return proxy.Verdict{Allow: true, Rule: allowed.Rule, Name: n}
			}
		}
	}
	return proxy.Verdict{Rule: d.Rule, Reason: denied(d)}
}

// requests decides about each request by the HTTP part of a rule.
func (e *Enforcer) requests(s *sandbox, c proxy.Claim, d policy.Decision) func(method, target string) string {
	return func(method, target string) string {
		path, _, _ := strings.Cut(target, "?")
		if d.HTTP.Matches(method, path) {
			return ""
		}
		why := fmt.Sprintf("rule %d allows other requests to %q than %s %s", d.Rule, c.Name, method, shorten(path))
		if d.HTTP.Mode == policy.Audit {
			e.report(s, Denial{Protocol: string(c.Protocol), Name: c.Name, To: c.To, Rule: d.Rule,
				Reason: why + " (audit: it was let through)", Audit: true})
			return ""
		}
		return why
	}
}

// maxPath is how much of a path is repeated, in bytes.
const maxPath = 100

func shorten(path string) string {
	if len(path) > maxPath {
		return path[:maxPath] + "…"
	}
	return path
}
