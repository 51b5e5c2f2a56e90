package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// denied are the destinations that no sandbox reaches unless they are allowed:
// what is not globally reachable in the IANA IPv4 Special-Purpose Address
// Registry, and multicast.
var denied = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), // metadata services of clouds
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// maxConnections bounds what one sandbox can take of the host's connection
// tracking table, which has room for 65,536 to 262,144 on usual hosts and is
// shared by everything on it.
const maxConnections = 4096

const dnsPort = 53

// transactionBytes is room for the rules of 4,000 sandboxes with 100 ranges
// each. The kernel takes memory only for what is sent.
const transactionBytes = 64 << 20

// table is the packet filter of an instance while it is put together. As nft
// would print it, for the instance 0 and the subnet 10.213.0.0/20:
//
//	table inet paddock-0 {
//		set allowed { type ipv4_addr; flags interval; }
//		set denied { type ipv4_addr; flags interval; }
//		set connections { type ipv4_addr; size 65535; flags dynamic; }
//
//		# before connection tracking
//		chain source {
//			type filter hook prerouting priority raw;
//			iifname "pd0-*" meta nfproto != ipv4 drop
//			iifname "pd0-*" fib saddr . iif oif 0 drop
//			iifname "pd0-*" accept
//			iifname "lo" accept
//			ip saddr 10.213.0.0/20 drop
//			ip daddr 10.213.0.0/20 drop
//		}
//		# after connection tracking
//		chain count {
//			type filter hook prerouting priority mangle;
//			iifname "pd0-*" ct state invalid drop
//			iifname "pd0-*" ct state new add @connections { ip saddr ct count over 4096 } drop
//		}
//		chain forward {
//			type filter hook forward priority filter;
//			iifname "pd0-*" jump from
//			oifname "pd0-*" ct state established,related accept
//			oifname "pd0-*" drop
//		}
//		chain from {
//			ip saddr @policed goto policed
//			oifname "pd0-*" drop
//			ip daddr 10.213.0.0/20 drop
//			ip daddr @allowed accept
//			ip daddr @denied drop
//			meta nfproto ipv4 accept
//			drop
//		}
//		chain input {
//			type filter hook input priority filter;
//			iifname "pd0-*" jump host
//		}
//		chain host {
//			ct direction reply ct state established,related accept
//			ip daddr 10.213.0.1 udp dport 53 accept
//			ip daddr 10.213.0.1 tcp dport 53 accept
//			ip daddr 10.213.0.1 tcp dport PROXY ct status dnat accept
//			ip saddr @policed goto refuse
//			drop
//		}
//		chain nat {
//			type nat hook postrouting priority srcnat;
//			ip saddr 10.213.0.0/20 oifname "pd0-*" accept
//			ip saddr 10.213.0.0/20 oifname "lo" accept
//			ip saddr 10.213.0.0/20 masquerade
//		}
//	}
//
// What belongs to policies is at policyChains.
//
// Why "fib" although rp_filter is on: the greatest of net.ipv4.conf.all's and
// the interface's rp_filter counts, 2 is "loose", and systemd sets 2 on every
// interface that appears.
//
// Why "from" looks at every packet and not only at the first of a connection:
// so that a range that is no longer allowed is cut off at once.
type table struct {
	*nftables.Table
	c      *nftables.Conn
	prefix string
	subnet netip.Prefix
	err    error
}

func (n *Network) nftTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "paddock-" + n.name}
}

// Sets get their numbers by hand: those that the library hands out come from a
// variable that all goroutines share.
func (n *Network) rangeSet(name string, id uint32) *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: name, ID: id, KeyType: nftables.TypeIPAddr, Interval: true}
}

func (n *Network) allowedSet() *nftables.Set { return n.rangeSet("allowed", allowedID) }
func (n *Network) deniedSet() *nftables.Set  { return n.rangeSet("denied", deniedID) }

// installFilter replaces the table, policies included, in one transaction.
func (n *Network) installFilter(ctx context.Context, allowed []netip.Prefix, policies map[netip.Addr]*Policy) error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	c, err := dialNFT(ctx)
	if err != nil {
		return err
	}
	// Deleting what doesn't exist is an error, adding what does isn't.
	c.AddTable(n.nftTable())
	c.DelTable(n.nftTable())
	if err := n.fillTable(c, allowed); err != nil {
		return err
	}
	if err := n.installPolicies(c, policies); err != nil {
		return err
	}
	return c.Flush()
}

func (n *Network) fillTable(c *nftables.Conn, allowed []netip.Prefix) error {
	t := &table{Table: c.AddTable(n.nftTable()), c: c, prefix: n.prefix, subnet: n.subnet}
	connections := &nftables.Set{
		Table: t.Table, Name: "connections", ID: connectionsID, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: math.MaxUint16,
	}
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{
		{n.allowedSet(), elements(allowed)},
		{n.deniedSet(), elements(denied)},
		{connections, nil},
	} {
		if err := c.AddSet(s.set, s.elements); err != nil {
			return fmt.Errorf("making the set %s: %w", s.set.Name, err)
		}
	}

	if err := n.policySets(c); err != nil {
		return fmt.Errorf("making the sets of policies: %w", err)
	}

	source := t.hook("source", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	t.rule(source, t.in(), t.ipv4(expr.CmpOpNeq), drop())
	t.rule(source, t.in(), t.spoofed(), drop())
	t.rule(source, t.in(), accept())
	t.rule(source, t.lo(expr.MetaKeyIIFNAME), accept())
	t.rule(source, t.inSubnet(srcOffset), drop())
	t.rule(source, t.inSubnet(dstOffset), drop())

	count := t.hook("count", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	t.rule(count, t.in(), state(expr.CtStateBitINVALID), drop())
	t.rule(count, t.in(), state(expr.CtStateBitNEW), over(connections, maxConnections), drop())

	policed, refuse := t.policyChains(n)
	from, host := t.chain("from"), t.chain("host")
	forward := t.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	t.rule(forward, t.in(), jump(from))
	t.rule(forward, t.out(), state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	t.rule(forward, t.out(), drop())

	t.rule(from, t.srcIn(n.policedSet(), true), goTo(policed))
	t.rule(from, t.out(), drop())
	t.rule(from, t.inSubnet(dstOffset), drop())
	t.rule(from, t.dstIn(n.allowedSet()), accept())
	t.rule(from, t.dstIn(n.deniedSet()), drop())
	t.rule(from, t.ipv4(expr.CmpOpEq), accept())
	t.rule(from, drop())

	input := t.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	t.rule(input, t.in(), jump(host))
	t.rule(host, reply(), state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	t.rule(host, t.dstIs(n.gateway), port(unix.IPPROTO_UDP, dnsPort), accept())
	t.rule(host, t.dstIs(n.gateway), port(unix.IPPROTO_TCP, dnsPort), accept())
	if n.proxyPort != 0 {
		t.rule(host, t.dstIs(n.gateway), port(unix.IPPROTO_TCP, n.proxyPort), diverted(), accept())
	}
	t.rule(host, t.srcIn(n.policedSet(), true), goTo(refuse))
	t.rule(host, drop())

	nat := t.hook("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	t.rule(nat, t.inSubnet(srcOffset), t.out(), accept())
	t.rule(nat, t.inSubnet(srcOffset), t.lo(expr.MetaKeyOIFNAME), accept())
	t.rule(nat, t.inSubnet(srcOffset), []expr.Any{&expr.Masq{}})
	return nil
}

// removeFilter removes the table if it is there.
func (n *Network) removeFilter(ctx context.Context) error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	c, err := dialNFT(ctx)
	if err != nil {
		return err
	}
	c.AddTable(n.nftTable())
	c.DelTable(n.nftTable())
	return c.Flush()
}

// SetAllowed replaces the ranges that sandboxes may reach although they are
// private, in one step. Connections into a range that is no longer among them
// are cut off.
func (n *Network) SetAllowed(ctx context.Context, ranges []netip.Prefix) error {
	if err := checkRanges(ranges); err != nil {
		return err
	}
	n.firewall.Lock()
	defer n.firewall.Unlock()
	c, err := dialNFT(ctx)
	if err != nil {
		return err
	}
	set := n.allowedSet()
	set.ID = 0 // an existing one is found by name
	c.FlushSet(set)
	if e := elements(ranges); len(e) > 0 {
		if err := c.SetAddElements(set, e); err != nil {
			return fmt.Errorf("allowing ranges: %w", err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("allowing ranges: %w", err)
	}
	return nil
}

func dialNFT(ctx context.Context) (*nftables.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A transaction is one message to the kernel, and one about all
		// sandboxes is large.
		if err := c.SetWriteBuffer(transactionBytes); err != nil {
			return err
		}
		return c.SetDeadline(deadline(ctx))
	}))
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket for nftables: %w", err)
	}
	return c, nil
}

// elements are the set elements of ranges. Sets of intervals hold the first
// address of each range and, marked as an end, the first one behind it. Ranges
// may neither overlap nor touch, so they are merged.
func elements(ranges []netip.Prefix) []nftables.SetElement {
	type span struct{ first, behind uint64 }
	spans := make([]span, 0, len(ranges))
	for _, r := range ranges {
		b := r.Masked().Addr().As4()
		first := uint64(binary.BigEndian.Uint32(b[:]))
		spans = append(spans, span{first, first + 1<<(32-r.Bits())})
	}
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	merged := spans[:0]
	for _, s := range spans {
		if last := len(merged) - 1; last >= 0 && s.first <= merged[last].behind {
			merged[last].behind = max(merged[last].behind, s.behind)
			continue
		}
		merged = append(merged, s)
	}
	var list []nftables.SetElement
	for _, s := range merged {
		list = append(list, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(s.first))})
		// A range that reaches the last address has no end.
		if s.behind <= math.MaxUint32 {
			list = append(list, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(s.behind)), IntervalEnd: true})
		}
	}
	return list
}

// isMissing reports whether err says that the kernel lacks what was asked for.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}
