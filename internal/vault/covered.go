package vault

import (
	"strings"

	"github.com/paddock-sandbox/paddock/internal/policy"
)

// checkCovered reports the first host of a binding that no domain rule allows.
// A default action of allow is not enough: a credential goes where somebody
// said that the sandbox may go. Rules for addresses don't concern a vault.
func (c *content) checkCovered(rules []policy.Rule) error {
	for i := range c.bindings {
		b := &c.bindings[i]
		for _, host := range b.Match.Hosts {
			if !covered(rules, host) {
				return invalid("the binding %q is for the host %q, which no domain rule of the network policy allows; "+
					"add an allow rule for it, or delete the binding first", b.Name, host)
			}
		}
	}
	return nil
}

// covered finds the first rule that is about all of a host pattern. A deny rule
// for a part of a wildcard leaves the rest of it.
func covered(rules []policy.Rule, host string) bool {
	for _, r := range rules {
		if covers(r.Target, host) {
			return r.Action == policy.Allow
		}
	}
	return false
}

func covers(target, host string) bool {
	if target == host {
		return true
	}
	below, wild := strings.CutPrefix(target, "*")
	// A wildcard's own name ends in its suffix too, so that "*.b.c" is covered
	// by "*.c".
	return wild && strings.HasSuffix(host, below) && len(host) > len(below)
}
