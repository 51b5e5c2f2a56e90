package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestReach(t *testing.T) { inBothFamilies(t, testReach) }

func testReach(t *testing.T, p place) {
	l := newLab(t, options("r", outsideSubnet))
	a, addrA := l.sandbox(t, 0)
	b, addrB := l.sandbox(t, 1)
	if addrA != "10.213.0.2" || addrB != "10.213.0.3" || l.Gateway().String() != "10.213.0.1" {
		t.Errorf("addresses %s, %s, gateway %s", addrA, addrB, l.Gateway())
	}
	resolver := l.Gateway().String()
	gateway := p.of(l.Network, resolver)
	addrA, addrB = p.of(l.Network, addrA), p.of(l.Network, addrB)
	l.outside.whoami(t, at(p.any, 80))
	a.whoami(t, at(p.any, 8080))
	b.whoami(t, at(p.any, 8080))
	b.whoami(t, at(p.any, 53))
	var host *ns
	host.whoami(t, at(p.any, 8081))
	host.whoami(t, at(resolver, 53))
	loopback := map[byte]string{unix.NFPROTO_IPV4: "127.0.0.1", unix.NFPROTO_IPV6: "::1"}[p.number]

	tests := []struct {
		name string
		from *ns
		to   string
		// answer is whom the server sees; empty when it must not be reached.
		answer string
	}{
		{"sandbox to public", a, at(p.public, 80), p.hostOutside},
		{"sandbox to itself", a, at(addrA, 8080), addrA},
		{"sandbox to its loopback", a, at(loopback, 8080), loopback},
		{"sandbox to the resolver", a, at(resolver, 53), "10.213.0.2"},
		{"host to sandbox", host, at(addrA, 8080), gateway},
		{"host to the resolver", host, at(resolver, 53), resolver},

		{"sandbox to private", a, at(p.private, 80), ""},
		{"sandbox to metadata", a, at(p.metadata, 80), ""},
		{"sandbox to sandbox", a, at(addrB, 8080), ""},
		{"sandbox to sandbox, DNS", a, at(addrB, 53), ""},
		{"sandbox to the gateway", a, at(gateway, 8081), ""},
		{"sandbox to the host's other address", a, at(p.hostOutside, 8081), ""},
		{"sandbox to the host's other address, DNS", a, at(p.hostOutside, 53), ""},
		{"sandbox to an address of nobody", a, at(p.of(l.Network, "10.213.0.77"), 8080), ""},
		{"sandbox to another instance's range", a, "10.213.200.2:8080", ""},
		{"sandbox to another instance's range, IPv6", a, at(within6(prefix6("other", l.subnet), l.gateway).String(), 8081), ""},
		{"outside to sandbox", l.outside, at(addrA, 8080), ""},
		{"outside to the resolver", l.outside, at(resolver, 53), ""},
		{"outside to the gateway", l.outside, at(gateway, 8081), ""},
	}
	// The failing ones wait for their time-out: all at once.
	type result struct {
		answer string
		err    error
	}
	results := make([]chan result, len(tests))
	for i, test := range tests {
		results[i] = make(chan result, 1)
		go func() {
			answer, err := test.from.dial(test.to)
			results[i] <- result{answer, err}
		}()
	}
	for i, test := range tests {
		r := <-results[i]
		switch {
		case test.answer == "" && r.err == nil:
			t.Errorf("%s: reached, as %s", test.name, r.answer)
		case test.answer != "" && (r.err != nil || r.answer != test.answer):
			t.Errorf("%s: seen as %q, %v, want %q", test.name, r.answer, r.err, test.answer)
		}
	}
}

// TestUDP sends what must not arrive before what must: packets are passed on
// in order.
func TestUDP(t *testing.T) { inBothFamilies(t, testUDP) }

func testUDP(t *testing.T, p place) {
	l := newLab(t, options("u", outsideSubnet))
	a, _ := l.sandbox(t, 0)
	b, addrB := l.sandbox(t, 1)
	server := l.outside.inbox(t, at(p.any, 9))
	other := b.inbox(t, at(p.any, 9))
	addrB = p.of(l.Network, addrB)
	gateway := p.of(l.Network, "10.213.0.1")
	var host *ns
	onHost := host.inbox(t, at(p.any, 9))
	resolver := host.inbox(t, "10.213.0.1:53")

	for _, to := range []string{at(p.private, 9), at(p.metadata, 9), at(addrB, 9), at(gateway, 9), at(p.hostOutside, 9)} {
		a.send(t, to, "forbidden")
	}
	a.send(t, at(p.public, 9), "to the server")
	a.send(t, "10.213.0.1:53", "to the resolver")
	if got := receive(t, server); got != "to the server" {
		t.Errorf("the server got %q", got)
	}
	if got := receive(t, resolver); got != "to the resolver" {
		t.Errorf("the resolver got %q", got)
	}
	host.send(t, at(addrB, 9), "from the host")
	if got := receive(t, other); got != "from the host" {
		t.Errorf("the other sandbox got %q", got)
	}
	host.send(t, "127.0.0.1:9", "from the host")
	if got := receive(t, onHost); got != "from the host" {
		t.Errorf("the host got %q", got)
	}
}

// datagram is an IPv4 packet with a UDP datagram in it.
func datagram(src, dst netip.Addr, port uint16, payload string) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[20:], 4000)
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...) // no UDP checksum, which IPv4 allows
}

// sendRaw sends an IPv4 packet as it is.
func (n *ns) sendRaw(t *testing.T, dst netip.Addr, packet []byte) {
	t.Helper()
	n.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: dst.As4()})
	})
}

func TestSpoofedSource(t *testing.T) {
	l := newLab(t, options("s", outsideSubnet))
	a, addrA := l.sandbox(t, 0)
	_, addrB := l.sandbox(t, 1)
	server := l.outside.inbox(t, "0.0.0.0:9")
	var host *ns
	resolver := host.inbox(t, "10.213.0.1:53")
	dst, gateway := netip.MustParseAddr(public), l.Gateway()
	try := func(setting string) {
		for _, src := range []string{addrB, "10.213.0.1", "10.213.0.99", public, "8.8.8.8", "127.0.0.1", hostOutside, "0.0.0.1", "255.255.255.255", "224.0.0.1"} {
			from := netip.MustParseAddr(src)
			a.sendRaw(t, dst, datagram(from, dst, 9, "spoofed as "+src))
			a.sendRaw(t, gateway, datagram(from, gateway, 53, "spoofed as "+src))
		}
		own := netip.MustParseAddr(addrA)
		a.sendRaw(t, dst, datagram(own, dst, 9, "true"))
		a.sendRaw(t, gateway, datagram(own, gateway, 53, "true"))
		for name, c := range map[string]net.PacketConn{"server": server, "resolver": resolver} {
			if got := receive(t, c); got != "true" {
				t.Errorf("with %s the %s got a packet %q", setting, name, got)
			}
		}
	}
	try("rp_filter 1")
	// As systemd leaves it on every new interface, and as an administrator
	// may.
	for _, value := range []string{"2", "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+l.link(0)+"/rp_filter", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
		try("rp_filter " + value)
	}
}

// TestSpoofedFromOutside: the outside does not pass for a sandbox, for which the
// host would answer or forward.
func TestSpoofedFromOutside(t *testing.T) {
	l := newLab(t, options("o", outsideSubnet))
	_, addrA := l.sandbox(t, 0)
	var host *ns
	onHost := host.inbox(t, "0.0.0.0:9")
	dst := netip.MustParseAddr(hostOutside)
	for _, src := range []string{addrA, "10.213.0.1", "10.213.0.99"} {
		l.outside.sendRaw(t, dst, datagram(netip.MustParseAddr(src), dst, 9, "spoofed as "+src))
	}
	l.outside.send(t, hostOutside+":9", "true")
	if got := receive(t, onHost); got != "true" {
		t.Errorf("the host got %q", got)
	}
}

// TestNoLeakOfAddresses: what connection tracking doesn't understand is not
// translated, and so must not leave the host with a sandbox's address.
func TestNoLeakOfAddresses(t *testing.T) {
	l := newLab(t, options("k", outsideSubnet))
	a, addrA := l.sandbox(t, 0)
	dst := netip.MustParseAddr(public)
	var sniffer net.PacketConn
	l.outside.do(t, func() (err error) { sniffer, err = net.ListenPacket("ip4:tcp", public); return err })
	defer sniffer.Close()
	segment := func(flags byte) []byte {
		b := datagram(netip.MustParseAddr(addrA), dst, 80, "")[:20]
		b[9] = unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(b[2:], 40)
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, 4000)
		binary.BigEndian.PutUint16(tcp[2:], 80)
		tcp[12], tcp[13] = 5<<4, flags
		return append(b, tcp...)
	}
	const fin, syn, rst = 1, 2, 4
	for _, flags := range []byte{0, fin | syn, syn | rst, fin | syn | rst} {
		a.sendRaw(t, dst, segment(flags))
	}
	if answer, err := a.dial(public + ":1"); err == nil { // a proper SYN
		t.Errorf("a closed port answered %q", answer)
	}
	sniffer.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := sniffer.ReadFrom(make([]byte, 2048))
	if err != nil || from.String() != hostOutside {
		t.Errorf("the first segment came from %v, %v, want one from %s", from, err, hostOutside)
	}
}

// TestForwardedByOthers: a port that another program forwards into the range
// does not reach a sandbox.
func TestForwardedByOthers(t *testing.T) {
	l := newLab(t, options("d", outsideSubnet))
	a, addrA := l.sandbox(t, 0)
	inbox := a.inbox(t, "0.0.0.0:9")
	c, err := dialNFT(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	other := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "other"})
	chain := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: other, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	to := netip.MustParseAddr(addrA)
	c.AddRule(&nftables.Rule{Table: other, Chain: chain, Exprs: append(port(unix.IPPROTO_UDP, 9),
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	)})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.DelTable(other)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}()
	l.outside.send(t, hostOutside+":9", "forbidden")
	var host *ns
	host.send(t, addrA+":9", "from the host")
	if got := receive(t, inbox); got != "from the host" {
		t.Errorf("the sandbox got %q", got)
	}
}

// An address of its own choice helps root in the sandbox as little as it does with
// IPv4, also when the host has the route for it.
func TestOtherIPv6Addresses(t *testing.T) {
	if !usesIPv6() {
		t.Skip("this host has no IPv6")
	}
	l := newLab(t, options("v", outsideSubnet))
	a, _ := l.sandbox(t, 0)
	hostLink, err := netlink.LinkByName(l.link(0))
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := netlink.AddrList(hostLink, unix.AF_INET6); err != nil || len(addrs) != 0 {
		t.Errorf("the host's end has IPv6 addresses %v, %v", addrs, err)
	}
	own, err := netip.ParseAddr("10.213.0.2")
	if err != nil {
		t.Fatal(err)
	}
	_, forged, _ := net.ParseCIDR("2001:db8:9::2/128")
	if err := netlink.RouteAdd(&netlink.Route{Dst: forged, LinkIndex: hostLink.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	server := l.outside.inbox(t, "[::]:9")
	var host *ns
	onHost := host.inbox(t, "[::]:9")
	for _, source := range []string{"2001:db8:9::2", l.Addr6(own.Next()).String(), public6, hostOutside6, "fe80::1", "::2"} {
		a.do(t, func() error {
			eth0, err := netlink.LinkByName(peerName)
			if err != nil {
				return err
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(source), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrAdd(eth0, addr); err != nil {
				return err
			}
			defer netlink.AddrDel(eth0, addr)
			for _, to := range []string{public6, hostOutside6, "ff02::1%eth0", l.gateway6.String()} {
				local, _ := net.ResolveUDPAddr("udp", "["+source+"]:0")
				remote, err := net.ResolveUDPAddr("udp", "["+to+"]:9")
				if err != nil {
					return err
				}
				c, err := net.DialUDP("udp", local, remote)
				if err != nil {
					continue // its own address
				}
				c.Write([]byte("forged " + source))
				c.Close()
			}
			return nil
		})
	}
	a.send(t, at(public6, 9), "its own")
	if got := receive(t, server); got != "its own" {
		t.Errorf("the server got %q", got)
	}
	host.send(t, "[::1]:9", "host")
	if got := receive(t, onHost); got != "host" {
		t.Errorf("the host got %q", got)
	}
}

func TestWithoutIPv6(t *testing.T) {
	o := options("v", outsideSubnet)
	o.NoIPv6 = true
	l := newLab(t, o)
	a, _ := l.sandbox(t, 0)
	server := l.outside.inbox(t, "[::]:9")
	a.do(t, func() error {
		eth0, err := netlink.LinkByName(peerName)
		if err != nil {
			return err
		}
		if addrs, err := netlink.AddrList(eth0, unix.AF_INET6); err != nil || len(addrs) != 0 {
			return fmt.Errorf("eth0 has IPv6 addresses %v, %v", addrs, err)
		}
		return insertAddress(eth0, "fd00::2", "fd00::1")
	})
	a.send(t, at(public6, 9), "forbidden")
	a.send(t, at(public, 9), "IPv4")
	if got := receive(t, server); got != "IPv4" {
		t.Errorf("the server got %q", got)
	}
}

// insertAddress is what root in a sandbox can do by itself.
func insertAddress(l netlink.Link, own, gateway string) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(own), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	return errors.Join(
		netlink.AddrAdd(l, addr),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(gateway), HardwareAddr: hostMAC}),
		netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway), LinkIndex: l.Attrs().Index}))
}

func TestAllowed(t *testing.T) {
	ctx := testContext(t)
	o := options("a", outsideSubnet)
	o.AllowedRanges = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("10.98.0.0/16")}
	l := newLab(t, o)
	a, _ := l.sandbox(t, 0)
	b, addrB := l.sandbox(t, 1)
	server := l.outside.inbox(t, "0.0.0.0:9")
	other := b.inbox(t, "0.0.0.0:9")

	// One flow throughout, so that it is an established connection.
	var flow net.Conn
	a.do(t, func() (err error) { flow, err = net.Dial("udp", private+":9"); return err })
	defer flow.Close()
	say := func(message string) {
		if _, err := io.WriteString(flow, message); err != nil {
			t.Fatal(err)
		}
	}
	say("allowed from the start")
	if got := receive(t, server); got != "allowed from the start" {
		t.Errorf("got %q", got)
	}
	// As a server does that is started with another configuration.
	allow := func(ranges ...netip.Prefix) {
		t.Helper()
		o.AllowedRanges = ranges
		if _, err := New(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	allow()
	say("forbidden")
	a.send(t, public+":9", "public")
	if got := receive(t, server); got != "public" {
		t.Errorf("got %q through an established connection", got)
	}
	// Everything allowed is still not the other sandboxes.
	for _, everything := range []string{"10.0.0.0/8", "0.0.0.0/0"} {
		allow(netip.MustParsePrefix(everything))
		say("allowed again")
		if got := receive(t, server); got != "allowed again" {
			t.Errorf("got %q", got)
		}
		a.send(t, addrB+":9", "forbidden")
		var host *ns
		host.send(t, addrB+":9", "from the host")
		if got := receive(t, other); got != "from the host" {
			t.Errorf("with %s allowed, a sandbox got %q", everything, got)
		}
	}
}

// A range that happens to have metadata addresses among its own does not open
// them; one that is for them does.
func TestAllowedRangesAndMetadata(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, p place) {
		o := options("m", outsideSubnet)
		outside(t).whoami(t, at(p.metadata, 80))
		for _, test := range []struct {
			allowed []string
			reached bool
		}{
			{[]string{"0.0.0.0/0", "::/0"}, false},
			{[]string{"169.0.0.0/8", "fd00::/8"}, false},
			{[]string{metadata + "/32", metadata6 + "/128"}, true},
		} {
			o.AllowedRanges = nil
			for _, a := range test.allowed {
				o.AllowedRanges = append(o.AllowedRanges, netip.MustParsePrefix(a))
			}
			l := newLab(t, o)
			a, addr := l.sandbox(t, 0)
			for _, policy := range []*Policy{nil, {DefaultAllow: true}} {
				if err := l.SetPolicy(testContext(t), netip.MustParseAddr(addr), policy, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := a.dial(at(p.metadata, 80)); (err == nil) != test.reached {
					t.Errorf("with %v allowed and the policy %v: %v", test.allowed, policy, err)
				}
			}
			if err := l.Teardown(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTwoInstances(t *testing.T) {
	all := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	o1, o2 := options("i", "10.213.0.0/24"), options("j", "10.213.1.0/24")
	o1.AllowedRanges, o2.AllowedRanges = all, all
	l1, l2 := newLab(t, o1), newLab(t, o2)
	a, _ := l1.sandbox(t, 0)
	b, addrB := l2.sandbox(t, 0)
	inbox := b.inbox(t, "0.0.0.0:9")
	a.send(t, addrB+":9", "forbidden")
	var host *ns
	host.send(t, addrB+":9", "from the host")
	if got := receive(t, inbox); got != "from the host" {
		t.Errorf("a sandbox of another instance got %q", got)
	}
}

// tracked is the number of entries of the connection tracking table.
func tracked(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConnectionsBounded: one sandbox can't fill the host's connection
// tracking table.
func TestConnectionsBounded(t *testing.T) {
	l := newLab(t, options("c", outsideSubnet))
	a, _ := l.sandbox(t, 0)
	b, _ := l.sandbox(t, 1)
	server := l.outside.inbox(t, "0.0.0.0:9")
	before := tracked(t)
	a.do(t, func() error {
		c, err := net.ListenPacket("udp", "0.0.0.0:0")
		if err != nil {
			return err
		}
		defer c.Close()
		for port := range 3 * maxConnections {
			// Different destinations rather than ports, so that no error
			// comes back.
			dst := &net.UDPAddr{IP: net.IPv4(198, 51, 100, byte(port)), Port: 1000 + port}
			if _, err := c.WriteTo([]byte("x"), dst); err != nil && !errors.Is(err, unix.EPERM) {
				return err
			}
		}
		return nil
	})
	// Connections of other tests expire meanwhile, or join.
	n := tracked(t) - before
	if n > maxConnections+100 || n < maxConnections/2 {
		t.Errorf("%d connections, one sandbox may have %d", n, maxConnections)
	}
	b.send(t, public+":9", "unharmed")
	if got := receive(t, server); got != "unharmed" {
		t.Errorf("got %q", got)
	}
}

func TestElements(t *testing.T) {
	for _, test := range []struct{ ranges, want string }{
		{"", ""},
		{"10.0.0.0/8", "10.0.0.0-11.0.0.0"},
		{"10.1.2.3/8", "10.0.0.0-11.0.0.0"},
		{"10.0.0.0/8 10.1.0.0/16 11.0.0.0/8", "10.0.0.0-12.0.0.0"},
		{"192.168.0.0/16 10.0.0.0/8", "10.0.0.0-11.0.0.0 192.168.0.0-192.169.0.0"},
		{"224.0.0.0/4 240.0.0.0/4", "224.0.0.0"},
		{"0.0.0.0/0", "0.0.0.0"},
		{"255.255.255.255/32 1.1.1.1/32", "1.1.1.1-1.1.1.2 255.255.255.255"},
		{"fd00::/8 1.1.1.1/32", "1.1.1.1-1.1.1.2 fd00::-fe00::"},
		{"ff00::/8 255.255.255.255/32 ::/64", "255.255.255.255 ::-0:0:0:1:: ff00::"},
	} {
		var ranges []netip.Prefix
		for _, f := range strings.Fields(test.ranges) {
			ranges = append(ranges, netip.MustParsePrefix(f))
		}
		var got strings.Builder
		var n Network
		all := spans(ranges)
		for i, e := range append(n.family4().rangeElements(all), n.family6().rangeElements(all)...) {
			a, _ := netip.AddrFromSlice(e.Key)
			switch {
			case e.IntervalEnd:
				got.WriteString("-")
			case i > 0:
				got.WriteString(" ")
			}
			got.WriteString(a.String())
		}
		if got.String() != test.want {
			t.Errorf("%s: %s, want %s", test.ranges, got.String(), test.want)
		}
	}
}
