package network

import (
	"net/netip"
	"slices"
)

// span is a range of addresses of one family, both ends included. Lists of them
// may hold both families: those of IPv4 come first.
type span struct{ first, last netip.Addr }

func (s span) is6() bool { return s.first.Is6() }

// covers reports whether all of another range is within this one.
func (s span) covers(o span) bool {
	return s.is6() == o.is6() && !o.first.Less(s.first) && !s.last.Less(o.last)
}

// spans are the ranges of prefixes, joined.
func spans(list []netip.Prefix) []span {
	out := make([]span, 0, len(list))
	for _, p := range list {
		p = p.Masked()
		out = append(out, span{p.Addr(), lastOf(p)})
	}
	return join(out)
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// join sorts and joins ranges that overlap or touch: the kernel's sets take
// neither.
func join(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return a.first.Compare(b.first) })
	out := list[:0]
	for _, s := range list {
		if i := len(out) - 1; i >= 0 && out[i].is6() == s.is6() && !behind(out[i].last).Less(s.first) {
			if out[i].last.Less(s.last) {
				out[i].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// behind is the address that follows, or the last one of its family again.
func behind(a netip.Addr) netip.Addr {
	if next := a.Next(); next.IsValid() {
		return next
	}
	return a
}

// without is what is left of the ranges when the others, joined, are taken out.
func without(list, others []span) []span {
	var out []span
	for _, s := range list {
		rest := true
		for _, o := range others {
			if o.is6() != s.is6() || o.last.Less(s.first) || s.last.Less(o.first) {
				continue
			}
			if s.first.Less(o.first) {
				out = append(out, span{s.first, o.first.Prev()})
			}
			if !o.last.Less(s.last) {
				rest = false
				break
			}
			s.first = o.last.Next()
		}
		if rest {
			out = append(out, s)
		}
	}
	return out
}

// minus are the ranges of a that are not, as they are, in b.
func minus(a, b []span) []span {
	have := make(map[span]bool, len(b))
	for _, s := range b {
		have[s] = true
	}
	var out []span
	for _, s := range a {
		if !have[s] {
			out = append(out, s)
		}
	}
	return out
}

// inSpans reports whether one of the ranges, sorted and disjoint, has the
// address.
func inSpans(list []span, a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(list, a, func(s span, a netip.Addr) int {
		switch {
		case s.last.Less(a):
			return -1
		case a.Less(s.first):
			return 1
		}
		return 0
	})
	return found
}

// ofFamily are the ranges of one family.
func ofFamily(list []span, is6 bool) []span {
	from, _ := slices.BinarySearchFunc(list, true, func(s span, six bool) int {
		if s.is6() == six {
			return 0
		}
		return -1
	})
	if is6 {
		return list[from:]
	}
	return list[:from]
}
