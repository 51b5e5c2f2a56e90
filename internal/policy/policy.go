package policy

import (
	"slices"
	"strings"
)

// Action is what happens to traffic that a rule matches.
type Action string

const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// MaxRules bounds the rules of one policy.
const MaxRules = 4096

// Policy says which destinations a sandbox may reach. The zero value, once
// normalised, denies all. A sandbox without any policy is not the same: it
// reaches every public address.
type Policy struct {
	DefaultAction Action `json:"defaultAction"`
	Egress        []Rule `json:"egress"`
}

// Rule allows or denies one target.
type Rule struct {
	Action Action `json:"action"`
	// Target is a domain ("example.com"), all domains beneath one
	// ("*.example.com", which is not example.com itself), an address or a
	// range of addresses in CIDR form.
	Target string `json:"target"`
	// HTTP narrows an allow rule for a domain to some requests; nil for all
	// traffic.
	HTTP *HTTP `json:"http,omitempty"`
}

// HTTP says which requests to a domain are allowed.
type HTTP struct {
	// Methods are upper-case; empty for all.
	Methods []string `json:"methods,omitempty"`
	// Paths are patterns: a path, with * for any text within one segment, and
	// a trailing * for any text at all. Empty for all.
	Paths []string `json:"paths,omitempty"`
	// Mode is Enforce or Audit.
	Mode Mode `json:"mode,omitempty"`
}

// Mode is what happens to a request that an HTTP rule does not allow.
type Mode string

const (
	// Enforce refuses it.
	Enforce Mode = "enforce"
	// Audit reports it and lets it pass.
	Audit Mode = "audit"
)

// Clone returns a deep copy. It may be called on nil.
func (p *Policy) Clone() *Policy {
	if p == nil {
		return nil
	}
	c := &Policy{DefaultAction: p.DefaultAction, Egress: slices.Clone(p.Egress)}
	for i, r := range c.Egress {
		if r.HTTP != nil {
			h := *r.HTTP
			h.Methods, h.Paths = slices.Clone(h.Methods), slices.Clone(h.Paths)
			c.Egress[i].HTTP = &h
		}
	}
	return c
}

// Merge puts new rules in front of the present ones. Of rules with the same
// target only the first is kept, so that a new rule replaces an old one.
func (p Policy) Merge(rules []Rule) Policy {
	merged := Policy{DefaultAction: p.DefaultAction}
	seen := make(map[string]bool)
	for _, r := range slices.Concat(rules, p.Egress) {
		key := targetKey(r.Target)
		if seen[key] {
			continue
		}
		seen[key] = true
		merged.Egress = append(merged.Egress, r)
	}
	return merged
}

// Without leaves out the rules with these targets and says how many those were.
// Targets that no rule has are ignored.
func (p Policy) Without(targets []string) (Policy, int) {
	drop := make(map[string]bool)
	for _, t := range targets {
		drop[targetKey(t)] = true
	}
	left := Policy{DefaultAction: p.DefaultAction}
	for _, r := range p.Egress {
		if !drop[targetKey(r.Target)] {
			left.Egress = append(left.Egress, r)
		}
	}
	return left, len(p.Egress) - len(left.Egress)
}

// targetKey makes spellings of one target equal: normalised if it can be.
func targetKey(target string) string {
	if t, err := normalizeTarget(target); err == nil {
		return t
	}
	return strings.ToLower(strings.TrimSpace(target))
}
