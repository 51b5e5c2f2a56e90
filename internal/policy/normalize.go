package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// Bounds of an HTTP part.
const (
	maxMethods = 16
	maxPaths   = 64
	maxPath    = 2048
)

// maxTarget is more than any name takes, in whatever alphabet. Mapping longer
// ones would be work for nothing.
const maxTarget = 1024

// RuleError says what is wrong with a policy.
type RuleError struct {
	// Index is the rule's; -1 when the policy as a whole is wrong.
	Index int
	// Field is the member: "action", "target", "http.paths[1]", or
	// "defaultAction" and "egress" of the policy itself.
	Field string
	// Message says what is wrong and what is allowed.
	Message string
}

// Path is where the error is within the policy, as "egress[3].target".
func (e *RuleError) Path() string {
	if e.Index < 0 {
		return e.Field
	}
	return fmt.Sprintf("egress[%d].%s", e.Index, e.Field)
}

func (e *RuleError) Error() string { return e.Path() + " " + e.Message }

// Normalize checks a policy and returns it in the form that Compile takes:
// actions and names in lower case, international names as A-labels, addresses
// and ranges in their shortest form. A missing action or default action is
// deny. The error is a *RuleError.
func (p Policy) Normalize() (Policy, error) {
	def, err := normalizeAction(p.DefaultAction)
	if err != nil {
		return Policy{}, &RuleError{-1, "defaultAction", err.Error()}
	}
	if len(p.Egress) > MaxRules {
		return Policy{}, &RuleError{-1, "egress", fmt.Sprintf("has %d rules; at most %d are allowed. A range in CIDR form or *.domain can replace many.", len(p.Egress), MaxRules)}
	}
	n := Policy{DefaultAction: def, Egress: make([]Rule, 0, len(p.Egress))}
	for i, r := range p.Egress {
		if r.Action, err = normalizeAction(r.Action); err != nil {
			return Policy{}, &RuleError{i, "action", err.Error()}
		}
		if r.Target, err = normalizeTarget(r.Target); err != nil {
			return Policy{}, &RuleError{i, "target", err.Error()}
		}
		if r.HTTP != nil {
			h, bad := normalizeHTTP(r)
			if bad != nil {
				bad.Index = i
				return Policy{}, bad
			}
			r.HTTP = h
		}
		n.Egress = append(n.Egress, r)
	}
	return n, nil
}

func normalizeAction(a Action) (Action, error) {
	switch n := Action(strings.ToLower(strings.TrimSpace(string(a)))); n {
	case "":
		return Deny, nil
	case Allow, Deny:
		return n, nil
	}
	return "", fmt.Errorf("is %q; it must be allow or deny.", clip(string(a))) //nolint:staticcheck // a sentence for the caller
}

const targetForms = `Allowed are a domain ("example.com"), all beneath one ("*.example.com"), an address ("192.0.2.7") and a range ("192.0.2.0/24").`

func wrongTarget(format string, args ...any) error {
	return errors.New(fmt.Sprintf(format, args...) + " " + targetForms)
}

// normalizeTarget tells addresses, ranges and domains apart, in this order.
func normalizeTarget(s string) (string, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	switch {
	case t == "":
		return "", wrongTarget("is empty.")
	case len(t) > maxTarget:
		return "", wrongTarget("has %d bytes; no name has more than 253 characters.", len(t))
	case strings.Contains(t, "://"):
		return "", wrongTarget("is %q, a URL; leave out the scheme and the path.", clip(s))
	case t == "*" || t == "*.":
		return "", wrongTarget("is %q; to decide about everything else use defaultAction.", clip(s))
	}
	if bare, ok := strings.CutPrefix(t, "["); ok {
		t = strings.TrimSuffix(bare, "]")
	}
	if a, err := netip.ParseAddr(t); err == nil {
		if a.Zone() != "" {
			return "", wrongTarget("is %q; an address has no zone here.", clip(s))
		}
		return a.Unmap().String(), nil
	}
	if strings.Contains(t, "/") {
		return normalizeRange(s, t)
	}
	return normalizeDomain(s, t)
}

func normalizeRange(s, t string) (string, error) {
	p, err := netip.ParsePrefix(t)
	if err != nil {
		return "", wrongTarget("is %q, which is no range of addresses; a domain has no path.", clip(s))
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return "", wrongTarget("is %q, which is wider than the addresses of IPv4; write it in the form of IPv4.", clip(s))
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return "", wrongTarget("is %q, whose address is not the range's first; write %q, or leave out /%d for the one address.", clip(s), m, p.Bits())
	}
	return p.String(), nil
}

// lookup is how names in URLs are mapped (UTS 46), with the rules of DNS.
var lookup = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.VerifyDNSLength(true), idna.Transitional(false))

func normalizeDomain(s, t string) (string, error) {
	name, wild := strings.CutPrefix(strings.TrimSuffix(t, "."), "*.")
	switch {
	case strings.Contains(name, "*"):
		return "", wrongTarget("is %q; * can only stand for whole labels at the beginning, as in *.example.com.", clip(s))
	case strings.Contains(name, ":"):
		return "", wrongTarget("is %q; a rule has no port: it is for all of them.", clip(s))
	}
	a, err := lookup.ToASCII(name)
	if err != nil {
		return "", wrongTarget("is %q, which is not a domain name.", clip(s))
	}
	labels := strings.Split(a, ".")
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", wrongTarget("is %q, which is neither an address in its usual form nor a domain name.", clip(s))
	}
	if a == "localhost" || strings.HasSuffix(a, ".localhost") {
		return "", wrongTarget("is %q; a sandbox reaches its own loopback without a rule, and never the host's.", clip(s))
	}
	if wild {
		return "*." + a, nil
	}
	return a, nil
}

func normalizeHTTP(r Rule) (*HTTP, *RuleError) {
	bad := func(field, format string, args ...any) (*HTTP, *RuleError) {
		return nil, &RuleError{Field: field, Message: fmt.Sprintf(format, args...)}
	}
	if r.Action != Allow {
		return bad("http", "belongs to a rule that denies; it narrows rules that allow.")
	}
	if isAddress(r.Target) {
		return bad("http", "belongs to a rule for addresses; it needs a domain, because requests are matched by the name that they ask for.")
	}
	h := &HTTP{Mode: Mode(strings.ToLower(strings.TrimSpace(string(r.HTTP.Mode))))}
	switch h.Mode {
	case "":
		h.Mode = Enforce
	case Enforce, Audit:
	default:
		return bad("http.mode", "is %q; it must be enforce or audit.", clip(string(r.HTTP.Mode)))
	}
	if len(r.HTTP.Methods) > maxMethods {
		return bad("http.methods", "has %d entries; at most %d are allowed.", len(r.HTTP.Methods), maxMethods)
	}
	for i, m := range r.HTTP.Methods {
		up := strings.ToUpper(strings.TrimSpace(m))
		if up == "" || len(up) > 32 || strings.Trim(up, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
			return bad(fmt.Sprintf("http.methods[%d]", i), "is %q; give a method of HTTP, such as GET.", clip(m))
		}
		if up == "CONNECT" {
			return bad(fmt.Sprintf("http.methods[%d]", i), "is CONNECT, which would open a tunnel to any destination; it is never allowed.")
		}
		if !slices.Contains(h.Methods, up) {
			h.Methods = append(h.Methods, up)
		}
	}
	if len(r.HTTP.Paths) > maxPaths {
		return bad("http.paths", "has %d entries; at most %d are allowed.", len(r.HTTP.Paths), maxPaths)
	}
	for i, p := range r.HTTP.Paths {
		if err := checkPattern(p); err != nil {
			return bad(fmt.Sprintf("http.paths[%d]", i), "is %q; %v", clip(p), err)
		}
		h.Paths = append(h.Paths, p)
	}
	if len(h.Methods) == 0 && len(h.Paths) == 0 {
		return bad("http", "is empty; give methods, paths or both, or leave it out.")
	}
	return h, nil
}

func isAddress(target string) bool {
	if _, err := netip.ParseAddr(target); err == nil {
		return true
	}
	return strings.Contains(target, "/")
}

// clip keeps what is quoted in messages short.
func clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}
