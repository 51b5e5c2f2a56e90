package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
)

// Policy is what one sandbox may reach, as far as packets tell. A sandbox
// without one reaches what Options say.
type Policy struct {
	// Ranges are what rules about addresses decide; disjoint and in order. IPv4
	// only.
	Ranges []Range
	// DefaultAllow lets everything else pass that a sandbox without a policy
	// reaches. Without it everything else is refused.
	DefaultAllow bool
	// Inspect sends every TCP connection that may leave to the proxy, not only
	// those to addresses that were learned.
	Inspect bool
}

// Range is a range of addresses, both ends included.
type Range struct {
	First, Last netip.Addr
	Allow       bool
	// Reserved opens the range although no sandbox reaches it otherwise: a
	// private network. What is in never stays closed.
	Reserved bool
}

// Learned is an address that the resolver gave out.
type Learned struct {
	Addr netip.Addr
	// Lifetime is how long it stays reachable.
	Lifetime time.Duration
	// TCPOnly keeps it from being reached over UDP, unless it is already.
	TCPOnly bool
}

// never are destinations that no rule opens: metadata services, loopback, and
// what is no single host.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),     // most clouds, and link-local
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud, the older address
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// span is a range of IPv4 addresses as numbers, both ends included.
type span struct{ first, last uint64 }

// elementsPerMessage keeps a list of elements below the 64 KiB that a netlink
// attribute can have; one element takes 36 bytes.
const elementsPerMessage = 1000

// sets are the numbers of the table's sets within the transaction that makes
// it. An existing set is found by name.
const (
	allowedID = iota + 1
	deniedID
	connectionsID
	policedID
	permissiveID
	inspectID
	openedID
	closedID
	learnedID
	datagramsID
	talkativeID
)

// pair is the type of a key of two IPv4 addresses, the sandbox's and the other
// side's. Sets of ranges take it as one number of 64 bits, so that the kernel
// keeps them in a tree: what it has for ranges of several fields is copied as a
// whole with every change.
var pair = func() nftables.SetDatatype {
	t := nftables.TypeInteger
	t.Bytes = 8
	return t
}()

func (n *Network) sandboxSet(name string, id uint32) *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: name, ID: id, KeyType: nftables.TypeIPAddr}
}

func (n *Network) policedSet() *nftables.Set    { return n.sandboxSet("policed", policedID) }
func (n *Network) permissiveSet() *nftables.Set { return n.sandboxSet("permissive", permissiveID) }
func (n *Network) inspectSet() *nftables.Set    { return n.sandboxSet("inspect", inspectID) }

func (n *Network) openedSet() *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: "opened", ID: openedID, KeyType: pair, Interval: true}
}

func (n *Network) closedSet() *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: "closed", ID: closedID, KeyType: pair, Interval: true}
}

func (n *Network) learnedSet() *nftables.Set   { return n.timedSet("learned", learnedID) }
func (n *Network) datagramsSet() *nftables.Set { return n.timedSet("datagrams", datagramsID) }

func (n *Network) timedSet(name string, id uint32) *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: name, ID: id, HasTimeout: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)}
}

// installed is a policy as it is in the kernel.
type installed struct {
	opened, closed        []span
	permissive, inspected bool
}

// compile turns a policy into what the kernel gets.
func (n *Network) compile(p *Policy) (*installed, error) {
	in := &installed{permissive: p.DefaultAllow, inspected: p.Inspect}
	for _, r := range p.Ranges {
		if !r.First.Is4() || !r.Last.Is4() || r.Last.Less(r.First) {
			return nil, fmt.Errorf("range %s to %s: IPv4 addresses in order are needed", r.First, r.Last)
		}
		s := span{number(r.First), number(r.Last)}
		switch {
		case !r.Allow:
			in.closed = append(in.closed, s)
		case r.Reserved:
			in.opened = append(in.opened, without([]span{s}, n.never)...)
		default:
			in.opened = append(in.opened, without([]span{s}, n.shut)...)
		}
	}
	in.opened, in.closed = join(in.opened), join(in.closed)
	return in, nil
}

func number(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

// spans are the ranges of prefixes, joined.
func spans(list []netip.Prefix) []span {
	var out []span
	for _, p := range list {
		first := number(p.Masked().Addr())
		out = append(out, span{first, first + 1<<(32-p.Bits()) - 1})
	}
	return join(out)
}

// join sorts and joins ranges that overlap or touch: the kernel's sets take
// neither.
func join(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	out := list[:0]
	for _, s := range list {
		if last := len(out) - 1; last >= 0 && s.first <= out[last].last+1 {
			out[last].last = max(out[last].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

// without is what is left of the ranges when the others, joined, are taken out.
func without(list, others []span) []span {
	var out []span
	for _, s := range list {
		for _, o := range others {
			if o.last < s.first || o.first > s.last {
				continue
			}
			if o.first > s.first {
				out = append(out, span{s.first, o.first - 1})
			}
			s.first = o.last + 1
		}
		if s.first <= s.last {
			out = append(out, s)
		}
	}
	return out
}

func inSpans(list []span, a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	x := number(a)
	i, found := slices.BinarySearchFunc(list, x, func(s span, x uint64) int {
		switch {
		case s.last < x:
			return -1
		case s.first > x:
			return 1
		}
		return 0
	})
	return found && i < len(list)
}

// pairElements are the elements of a sandbox's ranges. The last address of all
// is in none of them, so that those of two sandboxes never touch.
func pairElements(sandbox netip.Addr, list []span) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, 2*len(list))
	for _, s := range list {
		if s.first == math.MaxUint32 {
			continue
		}
		behind := min(s.last, math.MaxUint32-1) + 1
		out = append(out,
			nftables.SetElement{Key: pairKey(sandbox, s.first)},
			nftables.SetElement{Key: pairKey(sandbox, behind), IntervalEnd: true})
	}
	return out
}

func pairKey(sandbox netip.Addr, other uint64) []byte {
	return binary.BigEndian.AppendUint32(sandbox.AsSlice(), uint32(other))
}

// flag puts a sandbox into a set or takes it out.
func (x *change) flag(set *nftables.Set, sandbox netip.Addr, was, is bool) {
	element := []nftables.SetElement{{Key: sandbox.AsSlice()}}
	switch {
	case is && !was:
		x.add(set, element)
	case was && !is:
		x.remove(set, element)
	}
}

// replace exchanges a sandbox's policy; either may be nil for none.
func (n *Network) replace(x *change, sandbox netip.Addr, old, in *installed) {
	was, is := old, in
	if was == nil {
		was = &installed{}
	}
	if is == nil {
		is = &installed{}
	}
	x.remove(named(n.openedSet()), pairElements(sandbox, minus(was.opened, is.opened)))
	x.remove(named(n.closedSet()), pairElements(sandbox, minus(was.closed, is.closed)))
	x.add(named(n.openedSet()), pairElements(sandbox, minus(is.opened, was.opened)))
	x.add(named(n.closedSet()), pairElements(sandbox, minus(is.closed, was.closed)))
	x.flag(named(n.permissiveSet()), sandbox, was.permissive, is.permissive)
	x.flag(named(n.inspectSet()), sandbox, was.inspected, is.inspected)
	x.flag(named(n.policedSet()), sandbox, old != nil, in != nil)
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

// named refers to an existing set.
func named(s *nftables.Set) *nftables.Set {
	s.ID = 0
	return s
}

// SetPolicy puts a sandbox under a policy, replaces its policy, or, with nil,
// takes the policy away, in one step. Addresses in forget are learned no longer.
// The sandbox is known by its address, attached or not. Its own packets are
// judged by the new policy at once, also those of connections that there are; see
// CutForbidden for those of the other side.
func (n *Network) SetPolicy(ctx context.Context, sandbox netip.Addr, p *Policy, forget []netip.Addr) error {
	if !sandbox.Is4() || !n.subnet.Contains(sandbox) {
		return fmt.Errorf("setting the policy of %s: it is no sandbox of %s", sandbox, n.subnet)
	}
	var next *installed
	if p != nil {
		var err error
		if next, err = n.compile(p); err != nil {
			return fmt.Errorf("setting the policy of %s: %w", sandbox, err)
		}
	}
	if err := n.exchange(ctx, sandbox, next, forget); err != nil {
		return fmt.Errorf("setting the policy of %s: %w", sandbox, err)
	}
	return nil
}

func (n *Network) exchange(ctx context.Context, sandbox netip.Addr, next *installed, forget []netip.Addr) error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	old := n.policies[sandbox]
	if old == nil && next == nil {
		return nil
	}
	x, err := n.begin(ctx)
	if err != nil {
		return err
	}
	n.replace(x, sandbox, old, next)
	// One that has expired can't be deleted; adding it first makes sure that it
	// is there.
	list := learnedElements(sandbox, forget)
	for _, set := range []*nftables.Set{n.learnedSet(), n.datagramsSet()} {
		x.add(named(set), list)
		x.remove(named(set), list)
	}
	if err := n.commit(x); err != nil {
		return err
	}
	if next == nil {
		delete(n.policies, sandbox)
	} else {
		n.policies[sandbox] = next
	}
	return nil
}

func learnedElements(sandbox netip.Addr, addrs []netip.Addr) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		if a.Is4() {
			out = append(out, nftables.SetElement{Key: pairKey(sandbox, number(a)), Timeout: time.Minute})
		}
	}
	return out
}

// Learn makes addresses reachable for a sandbox that has a policy, each for its
// lifetime from now, through the proxy for TCP. It returns when the kernel knows
// them. The caller has checked them.
func (n *Network) Learn(ctx context.Context, sandbox netip.Addr, list []Learned) error {
	var elements, datagrams []nftables.SetElement
	for _, l := range list {
		if !l.Addr.Is4() {
			return fmt.Errorf("learning %s: only IPv4 addresses can be reached", l.Addr)
		}
		e := nftables.SetElement{Key: pairKey(sandbox, number(l.Addr)), Timeout: l.Lifetime}
		elements = append(elements, e)
		if !l.TCPOnly {
			datagrams = append(datagrams, e)
		}
	}
	n.firewall.Lock()
	defer n.firewall.Unlock()
	if n.policies[sandbox] == nil {
		return nil // taken away meanwhile
	}
	x, err := n.begin(ctx)
	if err != nil {
		return err
	}
	x.renew(named(n.learnedSet()), elements)
	x.renew(named(n.datagramsSet()), datagrams)
	if err := n.commit(x); err != nil {
		return fmt.Errorf("learning addresses for %s: %w", sandbox, err)
	}
	return nil
}

// Opens reports whether a sandbox may reach the address as far as its range is
// concerned: any public one, those of Options.AllowedRanges, and those that one
// of the ranges given opens.
func (n *Network) Opens(a netip.Addr, ranges []Range) bool {
	if !a.Is4() || n.subnet.Contains(a) || inSpans(n.never, a) {
		return false
	}
	if !inSpans(n.shut, a) {
		return true
	}
	for _, r := range ranges {
		if r.Allow && r.Reserved && !a.Less(r.First) && !r.Last.Less(a) {
			return true
		}
	}
	return false
}

// installPolicies fills the sets of a new table.
func (n *Network) installPolicies(c *nftables.Conn, policies map[netip.Addr]*Policy) error {
	n.policies = make(map[netip.Addr]*installed, len(policies))
	var opened, closed, police, permissive, inspect []nftables.SetElement
	for _, sandbox := range slices.SortedFunc(maps.Keys(policies), netip.Addr.Compare) {
		in, err := n.compile(policies[sandbox])
		if err != nil {
			return err
		}
		n.policies[sandbox] = in
		self := nftables.SetElement{Key: sandbox.AsSlice()}
		police = append(police, self)
		if in.permissive {
			permissive = append(permissive, self)
		}
		if in.inspected {
			inspect = append(inspect, self)
		}
		opened = append(opened, pairElements(sandbox, in.opened)...)
		closed = append(closed, pairElements(sandbox, in.closed)...)
	}
	x := &change{c: c}
	x.add(n.openedSet(), opened)
	x.add(n.closedSet(), closed)
	x.add(n.permissiveSet(), permissive)
	x.add(n.inspectSet(), inspect)
	x.add(n.policedSet(), police)
	return x.err
}
