package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestNewTwice: a restarted server sets the network up again while a
// connection is open.
func TestNewTwice(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, options("n", outsideSubnet))
	a, addrA := l.sandbox(t, 0)
	var listener net.Listener
	l.outside.do(t, func() (err error) { listener, err = net.Listen("tcp", public+":7"); return err })
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	var c net.Conn
	a.do(t, func() (err error) { c, err = net.Dial("tcp", public+":7"); return err })
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	before, err := countRules(l.Network)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		again, err := New(ctx, options("n", outsideSubnet))
		if err != nil {
			t.Fatal(err)
		}
		said := fmt.Sprintf("hello %d", i)
		if _, err := io.WriteString(c, said); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(said))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != said {
			t.Fatalf("the open connection said %q, %v", b, err)
		}
		if after, err := countRules(again); err != nil || after != before {
			t.Errorf("%d rules, %v, before there were %d", after, err, before)
		}
		found, err := again.Interfaces(ctx)
		if err != nil || !slices.Equal(found, []Interface{{0, "paddock/test/0"}}) {
			t.Errorf("interfaces %v, %v", found, err)
		}
	}
	if answer, err := a.dial(addrA + ":1"); err == nil {
		t.Errorf("a closed port answered %q", answer)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"no name":       options("", outsideSubnet),
		"a long name":   options("abcde", outsideSubnet),
		"capitals":      options("A", outsideSubnet),
		"a small range": options("x", "10.0.0.0/30"),
		"a large range": options("x", "0.0.0.0/0"),
		"IPv6":          options("x", "fd00::/64"),
		"no range":      {Name: "x"},
	} {
		if _, err := New(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestProblems(t *testing.T) {
	outside(t)
	ctx := testContext(t)
	o := options("p", "10.213.64.0/20")
	check := func(when string, words ...string) {
		t.Helper()
		got := Problems(ctx, o)
		if len(got) != len(words) {
			t.Fatalf("%s: %q", when, got)
		}
		for i, p := range got {
			if !strings.Contains(p.What, words[i]) || p.Remedy == "" || p.Cost == "" {
				t.Errorf("%s: %q, want one with %q", when, p, words[i])
			}
		}
	}
	check("without a network")
	l := newLab(t, o)
	l.sandbox(t, 0)
	check("with a network")

	if err := via("10.213.70.0/24", public); err != nil {
		t.Fatal(err)
	}
	check("overlapping route", "10.213.70.0/24")
	_, dst, _ := net.ParseCIDR("10.213.70.0/24")
	if err := netlink.RouteDel(&netlink.Route{Dst: dst}); err != nil {
		t.Fatal(err)
	}

	c, err := dialNFT(ctx)
	if err != nil {
		t.Fatal(err)
	}
	policy := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	check("another firewall", "FORWARD")
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	check("afterwards")

	o.Name = "TOO LONG"
	check("bad options", "options are wrong")
}

// The gateway's addresses are no source of what the host sends elsewhere, and go
// when sandboxes have no IPv6 any more.
func TestGatewayAddresses(t *testing.T) {
	if !usesIPv6() {
		t.Skip("this host has no IPv6")
	}
	o := options("e", outsideSubnet)
	l := newLab(t, o)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// Without its own address the host has no other to send from.
	wan, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("fd00:dc::1"), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(lo, own); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, own) })
	_, dst, _ := net.ParseCIDR(netip.PrefixFrom(l.gateway6, 64).Masked().String())
	route := &netlink.Route{Dst: dst, LinkIndex: wan.Attrs().Index}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.RouteDel(route) })
	c, err := net.Dial("udp", at(within6(l.subnet6, netip.MustParseAddr("10.213.0.99")).String(), 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if from := c.LocalAddr().(*net.UDPAddr).IP.String(); from == l.gateway6.String() {
		t.Errorf("the host sends from %s", from)
	}

	o.NoIPv6 = true
	if _, err := New(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(lo, unix.AF_INET6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.IP.String() == l.gateway6.String() {
			t.Error("the gateway's IPv6 address is left")
		}
	}
}
