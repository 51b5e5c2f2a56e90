package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// denied4 are the destinations of IPv4 that no sandbox reaches unless they are
// allowed: what is not globally reachable in the IANA IPv4 Special-Purpose Address
// Registry but for the ranges for documentation, which nobody has; multicast; and
// Azure's agent of the host, which has a public address.
var denied4 = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("169.254.0.0/16"), // metadata services of clouds
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// denied6 is denied4 for IPv6: all but what IANA gives out as global unicast, and
// what of that is not globally reachable, or stands for an address of IPv4.
var denied6 = []netip.Prefix{
	netip.MustParsePrefix("::/3"),
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("4000::/2"),
	netip.MustParsePrefix("8000::/1"),
}

// maxConnections bounds what one sandbox can take of the host's connection
// tracking table, which has room for 65,536 to 262,144 on usual hosts and is
// shared by everything on it.
const maxConnections = 4096

const dnsPort = 53

// transactionBytes is room for the rules of 4,000 sandboxes with 100 ranges
// each. The kernel takes memory only for what is sent.
const transactionBytes = 64 << 20

// transactionElements is how many elements of policies the transaction that makes
// the table has at most. More would take long, and not fit.
const transactionElements = 100_000

// answerBytes is room for what the kernel says to some thousand parts.
const answerBytes = 8 << 20

// table is the packet filter of an instance while it is put together. As nft
// would print it, for the instance 0 and the subnets 10.213.0.0/20 and
// fd7b:…/96, where what is said for IPv4 only is there for IPv6 too, in chains and
// sets whose names end with 6:
//
//	table inet paddock-0 {
//		set allowed { type ipv4_addr; flags interval; }
//		set denied { type ipv4_addr; flags interval; }
//		set connections { type ipv4_addr; size 65535; flags dynamic; }
//
//		# before connection tracking
//		chain source {
//			type filter hook prerouting priority raw;
//			iifname "pd0-*" meta nfproto ipv4 jump source4
//			iifname "pd0-*" meta nfproto ipv6 jump source6
//			iifname "pd0-*" drop
//			iifname "lo" accept
//			ip saddr 10.213.0.0/20 drop
//			ip daddr 10.213.0.0/20 drop
//		}
//		chain source4 {
//			ip saddr != 10.213.0.0/20 drop
//			fib saddr . iif oif 0 drop
//			accept
//		}
//		# after connection tracking
//		chain count {
//			type filter hook prerouting priority mangle;
//			iifname "pd0-*" ct state invalid,untracked drop
//			iifname "pd0-*" ct state new meta nfproto ipv4 add @connections { ip saddr ct count over 4096 } drop
//		}
//		chain forward {
//			type filter hook forward priority filter;
//			iifname "pd0-*" meta nfproto ipv4 jump from
//			iifname "pd0-*" drop
//			oifname "pd0-*" ct state established,related accept
//			oifname "pd0-*" drop
//		}
//		chain from {
//			ip saddr @policed goto policed
//			oifname "pd0-*" drop
//			ip daddr 10.213.0.0/20 drop
//			ip daddr @allowed accept
//			ip daddr @denied drop
//			accept
//		}
//		chain input {
//			type filter hook input priority filter;
//			iifname "pd0-*" jump host
//		}
//		chain host {
//			ct direction reply ct state established accept
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
// The set near6, which is denied as well, has the networks that the host is
// directly attached to. The chain source6 drops packets with a routing header (RFC 8200, 4.4) as well,
// which name another destination than the one that is judged. The resolver has
// no IPv6 address.
//
// What belongs to policies is at policedChain.
//
// Why "fib" although rp_filter is on: the greatest of net.ipv4.conf.all's and
// the interface's rp_filter counts, 2 is "loose", and systemd sets 2 on every
// interface that appears.
//
// Why "count" drops what is not tracked: the kernel tracks no neighbour discovery,
// and so neither counts nor translates it, wherever it is sent.
//
// Why "host" takes no "related": an ICMP error is that if it quotes any connection
// of the host, whoever the other side of it is.
//
// Why "from" looks at every packet and not only at the first of a connection:
// so that a range that is no longer allowed is cut off at once.
type table struct {
	*nftables.Table
	c      *nftables.Conn
	prefix string
	// maps counts those of shards, and err is the first that could not be made.
	maps uint32
	err  error
}

func (n *Network) nftTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "paddock-" + n.name}
}

// installFilter replaces the table, policies included, in one transaction; but the
// ranges of policies that do not fit into it are added in further ones, and are
// closed until then.
func (n *Network) installFilter(ctx context.Context, policies map[netip.Addr]*Policy) error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	c, err := dialNFT(ctx)
	if err != nil {
		return err
	}
	// Deleting what doesn't exist is an error, adding what does isn't.
	c.AddTable(n.nftTable())
	c.DelTable(n.nftTable())
	if n.subnet6.IsValid() {
		if n.near, err = n.nearby(ctx); err != nil {
			return err
		}
	}
	if err := n.fillTable(c); err != nil {
		return err
	}
	later, err := n.installPolicies(c, policies)
	if err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return err
	}
	return n.installLater(ctx, later)
}

func (n *Network) fillTable(c *nftables.Conn) error {
	t := &table{Table: c.AddTable(n.nftTable()), c: c, prefix: n.prefix}
	if err := n.addSets(c); err != nil {
		return err
	}
	families := n.families()
	refuse := t.refuseChain(n)

	var sources, froms []*nftables.Chain
	for _, f := range families {
		sources = append(sources, t.sourceChain(f))
		froms = append(froms, t.fromChain(n, f, t.policedChain(n, f, refuse)))
	}
	t.divertChains(n)

	source := t.hook("source", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	for i, f := range families {
		t.rule(source, t.in(), f.only(), jump(sources[i]))
	}
	t.rule(source, t.in(), drop())
	t.rule(source, t.lo(expr.MetaKeyIIFNAME), accept())
	for _, f := range families {
		t.rule(source, f.inSubnet(f.source), drop())
		t.rule(source, f.inSubnet(f.destination), drop())
	}

	count := t.hook("count", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	t.rule(count, t.in(), state(expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), drop())
	for _, f := range families {
		t.rule(count, t.in(), state(expr.CtStateBitNEW), f.over(n.connectionsSet(), maxConnections), drop())
	}

	forward := t.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	for i, f := range families {
		t.rule(forward, t.in(), f.only(), jump(froms[i]))
	}
	t.rule(forward, t.in(), drop())
	t.rule(forward, t.out(), state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	t.rule(forward, t.out(), drop())

	t.hostChain(n, refuse)

	nat := t.hook("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, f := range families {
		t.rule(nat, f.inSubnet(f.source), t.out(), accept())
		t.rule(nat, f.inSubnet(f.source), t.lo(expr.MetaKeyOIFNAME), accept())
		t.rule(nat, f.inSubnet(f.source), []expr.Any{&expr.Masq{}})
	}
	return t.err
}

// addSets makes all sets. They get their numbers by hand: those that the library
// hands out come from a variable that all goroutines share.
func (n *Network) addSets(c *nftables.Conn) error {
	add := func(s *nftables.Set, elements []nftables.SetElement) error {
		if err := c.AddSet(s, elements); err != nil {
			return fmt.Errorf("making the set %s: %w", s.Name, err)
		}
		return nil
	}
	for _, s := range []*nftables.Set{n.connectionsSet(), n.talkativeSet(), n.policedSet(), n.permissiveSet(), n.inspectSet()} {
		if err := add(s, nil); err != nil {
			return err
		}
	}
	for _, f := range n.families() {
		if f.is6() {
			if err := add(n.nearSet(), f.rangeElements(n.near)); err != nil {
				return err
			}
		}
		if err := add(n.allowedSet(f), f.rangeElements(n.allowed)); err != nil {
			return err
		}
		if err := add(n.deniedSet(f), f.rangeElements(spans(f.denied))); err != nil {
			return err
		}
		sets := []*nftables.Set{n.learnedSet(f), n.datagramsSet(f)}
		for shard := range shards {
			sets = append(sets, n.openedSet(f, shard), n.closedSet(f, shard))
		}
		for _, s := range sets {
			if err := add(s, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// sourceChain checks whom a packet is from.
func (t *table) sourceChain(f *family) *nftables.Chain {
	source := t.chain("source" + cmp.Or(f.suffix, "4"))
	t.rule(source, f.notInSubnet(f.source), drop())
	t.rule(source, t.spoofed(), drop())
	if f.is6() {
		t.rule(source, routed(), drop())
	}
	t.rule(source, accept())
	return source
}

// fromChain decides about packets to the outside.
func (t *table) fromChain(n *Network, f *family, policed *nftables.Chain) *nftables.Chain {
	from := t.chain("from" + f.suffix)
	t.rule(from, f.selfIn(n.policedSet(), true), goTo(policed))
	t.rule(from, t.out(), drop())
	t.rule(from, f.inSubnet(f.destination), drop())
	t.rule(from, f.destinationIn(n.allowedSet(f)), accept())
	for _, set := range n.shutSets(f) {
		t.rule(from, f.destinationIn(set), drop())
	}
	t.rule(from, accept())
	return from
}

// shutSets are the destinations that nothing reaches by default.
func (n *Network) shutSets(f *family) []*nftables.Set {
	if f.is6() {
		return []*nftables.Set{n.deniedSet(f), n.nearSet()}
	}
	return []*nftables.Set{n.deniedSet(f)}
}

// hostChain decides about packets to the host.
func (t *table) hostChain(n *Network, refuse *nftables.Chain) {
	host := t.chain("host")
	input := t.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	t.rule(input, t.in(), jump(host))
	t.rule(host, reply(), state(expr.CtStateBitESTABLISHED), accept())
	four := n.family4()
	t.rule(host, four.destinationIs(n.gateway), port(unix.IPPROTO_UDP, dnsPort), accept())
	t.rule(host, four.destinationIs(n.gateway), port(unix.IPPROTO_TCP, dnsPort), accept())
	for _, f := range n.families() {
		if n.proxyPort != 0 {
			t.rule(host, f.destinationIs(f.gateway), port(unix.IPPROTO_TCP, n.proxyPort), diverted(), accept())
		}
		t.rule(host, f.selfIn(n.policedSet(), true), goTo(refuse))
	}
	t.rule(host, drop())
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
		// Each of its parts is acknowledged.
		if err := c.SetReadBuffer(answerBytes); err != nil {
			return err
		}
		return c.SetDeadline(deadline(ctx))
	}))
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket for nftables: %w", err)
	}
	return c, nil
}

// isMissing reports whether err says that the kernel lacks what was asked for.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}
