package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Decision is what a policy says about one destination.
type Decision struct {
	Allow bool
	// Rule is the index of the rule that decided; -1 for the default action.
	Rule int
	// Target is that rule's; empty for the default action.
	Target string
	// HTTP is that rule's; nil when every request is decided alike.
	HTTP *HTTP
	// Named is set when a rule for a domain decided.
	Named bool
}

// Compiled answers questions about a normalised policy. It never changes and may
// be used by many goroutines at once.
type Compiled struct {
	policy    Policy
	exact     map[string]int // name to the first rule that is for it
	beneath   map[string]int // name to the first rule for all beneath it
	addresses []addressRule
	denies    bool
	content   bool

	ranges4, ranges6 []Range
}

type addressRule struct {
	prefix netip.Prefix
	index  int
}

// Compile prepares a policy that Normalize has returned. Rules that are not in
// normal form match nothing.
func Compile(p Policy) *Compiled {
	c := &Compiled{policy: *p.Clone(), exact: make(map[string]int), beneath: make(map[string]int)}
	for i, r := range c.policy.Egress {
		if prefix, ok := targetPrefix(r.Target); ok {
			c.addresses = append(c.addresses, addressRule{prefix, i})
			continue
		}
		c.denies = c.denies || r.Action != Allow
		c.content = c.content || r.HTTP != nil
		table, name := c.exact, r.Target
		if base, wild := strings.CutPrefix(r.Target, "*."); wild {
			table, name = c.beneath, base
		}
		if _, ok := table[name]; !ok {
			table[name] = i
		}
	}
	c.ranges4, c.ranges6 = c.ranges(true), c.ranges(false)
	return c
}

func targetPrefix(target string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(target); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(target)
	return p, err == nil
}

// Policy returns the policy in normal form. It must not be changed.
func (c *Compiled) Policy() Policy { return c.policy }

// HasDomainRules reports whether any rule names a domain.
func (c *Compiled) HasDomainRules() bool { return len(c.exact)+len(c.beneath) > 0 }

// HasDomainDenies reports whether any rule denies a domain.
func (c *Compiled) HasDomainDenies() bool { return c.denies }

// NeedsContent reports whether any rule looks at requests.
func (c *Compiled) NeedsContent() bool { return c.content }

// DefaultAllow reports whether what no rule names is allowed.
func (c *Compiled) DefaultAllow() bool { return c.policy.DefaultAction == Allow }

// Name decides about a name that is looked up, in any case of letters, with or
// without a final dot. Rules for addresses have no say.
func (c *Compiled) Name(name string) Decision {
	if i, ok := c.named(name); ok {
		return c.decision(i, true)
	}
	return c.byDefault()
}

// Connect decides about a connection to an address, asked for by name if name is
// not empty: the first rule that matches either of them.
func (c *Compiled) Connect(name string, addr netip.Addr) Decision {
	byName, named := -1, false
	if name != "" {
		byName, named = c.named(name)
	}
	addr = addr.Unmap().WithZone("")
	for _, r := range c.addresses {
		if named && byName < r.index {
			break
		}
		if r.prefix.Contains(addr) {
			return c.decision(r.index, false)
		}
	}
	if named {
		return c.decision(byName, true)
	}
	return c.byDefault()
}

func (c *Compiled) byDefault() Decision { return Decision{Allow: c.DefaultAllow(), Rule: -1} }

func (c *Compiled) decision(i int, named bool) Decision {
	r := c.policy.Egress[i]
	return Decision{Allow: r.Action == Allow, Rule: i, Target: r.Target, HTTP: r.HTTP, Named: named}
}

// named finds the first rule that matches a name: one look-up for each of its
// labels.
func (c *Compiled) named(name string) (int, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	best, found := 0, false
	consider := func(i int, ok bool) {
		if ok && (!found || i < best) {
			best, found = i, true
		}
	}
	i, ok := c.exact[name]
	consider(i, ok)
	for rest := name; ; {
		_, after, more := strings.Cut(rest, ".")
		if !more {
			return best, found
		}
		i, ok := c.beneath[after]
		consider(i, ok)
		rest = after
	}
}

// Range is a run of addresses that rules decide about in one way.
type Range struct {
	First, Last netip.Addr
	Allow       bool
	// Rule is the index of the rule that decides.
	Rule int
	// Opens is set when the rule names a range within a special one, such as
	// 10.1.2.0/24 within 10.0.0.0/8, and so allows what is closed otherwise.
	// A rule for a wider range doesn't.
	Opens bool
}

// Ranges4 returns what the rules for addresses decide about IPv4, sorted and
// disjoint. Addresses that no rule names are in no range. The result must not be
// changed.
func (c *Compiled) Ranges4() []Range { return c.ranges4 }

// Ranges6 is Ranges4 for IPv6.
func (c *Compiled) Ranges6() []Range { return c.ranges6 }

// RangeOf returns the range that an address is in; ok is false for one that no rule
// names.
func (c *Compiled) RangeOf(a netip.Addr) (r Range, ok bool) {
	list := c.ranges4
	if a.Is6() {
		list = c.ranges6
	}
	i, ok := slices.BinarySearchFunc(list, a, func(r Range, a netip.Addr) int {
		switch {
		case r.Last.Less(a):
			return -1
		case a.Less(r.First):
			return 1
		}
		return 0
	})
	if !ok {
		return Range{}, false
	}
	return list[i], true
}

// ranges goes over the borders of all rules from the lowest address to the
// highest. Between two borders the same rules apply.
func (c *Compiled) ranges(v4 bool) []Range {
	type border struct {
		at    netip.Addr // the first address that the change is for
		rule  int        // in c.addresses
		opens bool
	}
	var borders []border
	for i, r := range c.addresses {
		if r.prefix.Addr().Is4() != v4 {
			continue
		}
		borders = append(borders, border{r.prefix.Addr(), i, true})
		// Behind the last address there is none: Next is not valid then.
		if end := lastOf(r.prefix).Next(); end.IsValid() {
			borders = append(borders, border{end, i, false})
		}
	}
	slices.SortFunc(borders, func(a, b border) int { return a.at.Compare(b.at) })
	var (
		out    []Range
		active []int // sorted, indices in c.addresses; the first one decides
	)
	for i := 0; i < len(borders); {
		at := borders[i].at
		for ; i < len(borders) && borders[i].at == at; i++ {
			pos, found := slices.BinarySearch(active, borders[i].rule)
			switch {
			case borders[i].opens && !found:
				active = slices.Insert(active, pos, borders[i].rule)
			case !borders[i].opens && found:
				active = slices.Delete(active, pos, pos+1)
			}
		}
		if len(active) == 0 {
			continue
		}
		r := c.addresses[active[0]]
		last := lastOf(r.prefix)
		if i < len(borders) && borders[i].at.Compare(last) <= 0 {
			last = borders[i].at.Prev()
		}
		allow := c.policy.Egress[r.index].Action == Allow
		out = appendRange(out, Range{First: at, Last: last, Allow: allow, Rule: r.index, Opens: allow && Opens(r.prefix)})
	}
	return out
}

// appendRange joins a range to the one before when both are one rule's.
func appendRange(list []Range, r Range) []Range {
	if n := len(list) - 1; n >= 0 && list[n].Rule == r.Rule && list[n].Last.Next() == r.First {
		list[n].Last = r.Last
		return list
	}
	return append(list, r)
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
