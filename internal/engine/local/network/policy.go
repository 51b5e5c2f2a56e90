package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
)

// Policy is what one sandbox may reach, as far as packets tell. A sandbox
// without one reaches what Options say.
type Policy struct {
	// Ranges are what rules about addresses decide, of both families; those of
	// one are disjoint.
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
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure's agent of the host
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud, the older address
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	// IPv4 within IPv6, in all its forms.
	netip.MustParsePrefix("::/96"), // with loopback
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
	netip.MustParsePrefix("fd00:ec2::/32"),          // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),       // Google Cloud
	netip.MustParsePrefix("fd00:42::42/128"),        // Scaleway
	netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle Cloud
	netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"),  // Akamai
	netip.MustParsePrefix("fd00:100::100:200/128"),  // Alibaba Cloud
}

// elementsPerMessage keeps a list of elements below the 64 KiB that a netlink
// attribute can have; one element takes up to 48 bytes.
const elementsPerMessage = 1000

// Numbers of the table's sets within the transaction that makes it. An existing
// set is found by name. Those of IPv6 have familyIDs more.
const (
	allowedID = iota + 1
	deniedID
	connectionsID
	policedID
	permissiveID
	inspectID
	learnedID
	datagramsID
	talkativeID
	nearID

	openedID = 100
	closedID = openedID + shards
	// shardMapsID is the first of the maps that lead to the parts of a set.
	shardMapsID = closedID + shards
	familyIDs   = 1000
)

// installed is a policy as it is in the kernel.
type installed struct {
	policy                *Policy
	opened, closed        []span
	permissive, inspected bool
}

// compile turns a policy into what the kernel gets; n.firewall is held.
func (n *Network) compile(p *Policy) (*installed, error) {
	in := &installed{policy: p, permissive: p.DefaultAllow, inspected: p.Inspect}
	for _, r := range p.Ranges {
		if !r.First.IsValid() || r.First.Is4() != r.Last.Is4() || r.First.Is4In6() || r.Last.Is4In6() || r.Last.Less(r.First) {
			return nil, fmt.Errorf("range %s to %s: two addresses of one family, in order, are needed", r.First, r.Last)
		}
		s := span{r.First, r.Last}
		switch {
		case !r.Allow:
			in.closed = append(in.closed, s)
		case r.Reserved:
			in.opened = append(in.opened, without([]span{s}, n.never)...)
		case n.nearWith(s) != nil:
			in.opened = append(in.opened, without([]span{s}, n.shut)...)
		default:
			in.opened = append(in.opened, without(without([]span{s}, n.shut), n.near)...)
		}
	}
	in.opened, in.closed = join(in.opened), join(in.closed)
	return in, nil
}

// nearWith is the network of the host that has all of a range, which a rule for
// that opens; n.firewall is held.
func (n *Network) nearWith(s span) *span {
	for i := range n.near {
		if n.near[i].covers(s) {
			return &n.near[i]
		}
	}
	return nil
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
	for _, f := range n.families() {
		opened, closed := named(n.openedSet(f, shardOf(sandbox))), named(n.closedSet(f, shardOf(sandbox)))
		x.remove(opened, f.pairElements(sandbox, minus(was.opened, is.opened)))
		x.remove(closed, f.pairElements(sandbox, minus(was.closed, is.closed)))
		x.add(opened, f.pairElements(sandbox, minus(is.opened, was.opened)))
		x.add(closed, f.pairElements(sandbox, minus(is.closed, was.closed)))
	}
	x.flag(named(n.permissiveSet()), sandbox, was.permissive, is.permissive)
	x.flag(named(n.inspectSet()), sandbox, was.inspected, is.inspected)
	x.flag(named(n.policedSet()), sandbox, old != nil, in != nil)
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
	if err := n.exchange(ctx, sandbox, p, forget); err != nil {
		return fmt.Errorf("setting the policy of %s: %w", sandbox, err)
	}
	return nil
}

func (n *Network) exchange(ctx context.Context, sandbox netip.Addr, p *Policy, forget []netip.Addr) error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	var next *installed
	if p != nil {
		var err error
		if next, err = n.compile(p); err != nil {
			return err
		}
	}
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
	for _, f := range n.families() {
		list := f.learnedElements(sandbox, forget)
		for _, set := range []*nftables.Set{n.learnedSet(f), n.datagramsSet(f)} {
			x.add(named(set), list)
			x.remove(named(set), list)
		}
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

func (f *family) learnedElements(sandbox netip.Addr, addrs []netip.Addr) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		if a.Is6() == f.is6() {
			out = append(out, nftables.SetElement{Key: pairKey(sandbox, a), Timeout: time.Minute})
		}
	}
	return out
}

// Learn makes addresses reachable for a sandbox that has a policy, each for its
// lifetime from now, through the proxy for TCP. It returns when the kernel knows
// them. The caller has checked them.
func (n *Network) Learn(ctx context.Context, sandbox netip.Addr, list []Learned) error {
	for _, l := range list {
		if !l.Addr.IsValid() || l.Addr.Is4In6() || l.Addr.Is6() && !n.subnet6.IsValid() {
			return fmt.Errorf("learning %s: sandboxes here can't reach such an address", l.Addr)
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
	for _, f := range n.families() {
		var elements, datagrams []nftables.SetElement
		for _, l := range list {
			if l.Addr.Is6() != f.is6() {
				continue
			}
			e := nftables.SetElement{Key: pairKey(sandbox, l.Addr), Timeout: l.Lifetime}
			elements = append(elements, e)
			if !l.TCPOnly {
				datagrams = append(datagrams, e)
			}
		}
		x.renew(named(n.learnedSet(f)), elements)
		x.renew(named(n.datagramsSet(f)), datagrams)
	}
	if err := n.commit(x); err != nil {
		return fmt.Errorf("learning addresses for %s: %w", sandbox, err)
	}
	return nil
}

// Opens reports whether a sandbox may reach the address as far as its range is
// concerned: any public one that is not in a network of the host, those of
// Options.AllowedRanges, and one that the range given, if any, opens: that in which
// the sandbox's policy has the address.
func (n *Network) Opens(a netip.Addr, in *Range) bool {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.Is6() && !n.subnet6.IsValid() || inSpans(n.never, a) {
		return false
	}
	if inSpans(n.shut, a) {
		return in != nil && in.Allow && in.Reserved
	}
	n.firewall.Lock()
	defer n.firewall.Unlock()
	if !n.isNear(a) {
		return true
	}
	return in != nil && in.Allow && n.nearWith(span{in.First, in.Last}) != nil
}

// isNear reports whether an address is in a network of the host that the
// configuration does not open; n.firewall is held.
func (n *Network) isNear(a netip.Addr) bool {
	return inSpans(n.near, a) && !inSpans(n.allowed, a)
}

// installPolicies fills the sets of a new table. It returns the sandboxes whose
// ranges have no room in its transaction. Of those the table knows that they have a
// policy, which denies everything yet.
func (n *Network) installPolicies(c *nftables.Conn, policies map[netip.Addr]*Policy) (later map[netip.Addr]*installed, err error) {
	n.policies = make(map[netip.Addr]*installed, len(policies))
	later = map[netip.Addr]*installed{}
	var police, permissive, inspect []nftables.SetElement
	var of [shards][]netip.Addr
	room := transactionElements
	for _, sandbox := range slices.SortedFunc(maps.Keys(policies), netip.Addr.Compare) {
		in, err := n.compile(policies[sandbox])
		if err != nil {
			return nil, err
		}
		self := nftables.SetElement{Key: sandbox.AsSlice()}
		police = append(police, self)
		if in.inspected {
			inspect = append(inspect, self)
		}
		if room -= 2 * (len(in.opened) + len(in.closed)); room < 0 {
			later[sandbox] = in
			n.policies[sandbox] = &installed{policy: in.policy, inspected: in.inspected}
			continue
		}
		n.policies[sandbox] = in
		of[shardOf(sandbox)] = append(of[shardOf(sandbox)], sandbox)
		if in.permissive {
			permissive = append(permissive, self)
		}
	}
	x := &change{c: c}
	for _, f := range n.families() {
		for shard, sandboxes := range of {
			var opened, closed []nftables.SetElement
			for _, sandbox := range sandboxes {
				opened = append(opened, f.pairElements(sandbox, n.policies[sandbox].opened)...)
				closed = append(closed, f.pairElements(sandbox, n.policies[sandbox].closed)...)
			}
			x.add(n.openedSet(f, shard), opened)
			x.add(n.closedSet(f, shard), closed)
		}
	}
	x.add(n.permissiveSet(), permissive)
	x.add(n.inspectSet(), inspect)
	x.add(n.policedSet(), police)
	return later, x.err
}

// installLater adds what installPolicies left out; n.firewall is held.
func (n *Network) installLater(ctx context.Context, later map[netip.Addr]*installed) error {
	for sandbox, in := range later {
		x, err := n.begin(ctx)
		if err != nil {
			return err
		}
		n.replace(x, sandbox, n.policies[sandbox], in)
		if err := n.commit(x); err != nil {
			return fmt.Errorf("adding the policy of %s: %w", sandbox, err)
		}
		n.policies[sandbox] = in
	}
	return nil
}
