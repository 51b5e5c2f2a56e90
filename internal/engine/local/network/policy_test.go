package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func ranges(list ...Range) []Range { return list }

func oneAddr(s string, allow, reserved bool) Range {
	a := netip.MustParseAddr(s)
	return Range{First: a, Last: a, Allow: allow, Reserved: reserved}
}

func within(s string, allow, reserved bool) Range {
	all := spans([]netip.Prefix{netip.MustParsePrefix(s)})[0]
	return Range{First: all.first, Last: all.last, Allow: allow, Reserved: reserved}
}

func TestPolicyPackets(t *testing.T) { inBothFamilies(t, testPolicyPackets) }

func testPolicyPackets(t *testing.T, p place) {
	const (
		reached = "reached"
		refused = "refused"
		proxied = "proxied"
	)
	o := options("p", outsideSubnet)
	var host *ns
	o.ProxyPort = 9999
	l := newLab(t, o)
	gateway := p.of(l.Network, "10.213.0.1")
	host.whoami(t, at(gateway, 9999))
	l.outside.whoami(t, at(p.any, 80))
	l.outside.whoami(t, at(p.any, 853))
	a, addr := l.sandbox(t, 0)
	self := netip.MustParseAddr(addr)
	addr = p.of(l.Network, addr)
	ctx := testContext(t)

	dial := func(to string) string {
		var got string
		err := a.try(func() error {
			c, err := net.DialTimeout("tcp", to, time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			b := make([]byte, 64)
			n, err := c.Read(b)
			got = string(b[:n])
			return err
		})
		switch {
		case err != nil:
			return refused
		case got == addr: // seen by the host as it is
			return proxied
		}
		return reached
	}
	for _, test := range []struct {
		name   string
		policy *Policy
		learn  []string
		forget []string
		to     map[string]string
	}{
		{"none", nil, nil, nil, map[string]string{p.public: reached, p.private: refused}},
		{"deny all", &Policy{}, nil, nil, map[string]string{p.public: refused, p.private: refused, p.metadata: refused}},
		{"an address", &Policy{Ranges: ranges(oneAddr(p.public, true, false))}, nil, nil,
			map[string]string{p.public: reached, p.private: refused}},
		{"a range does not open what is private", &Policy{Ranges: ranges(within(p.everything, true, false))}, nil, nil,
			map[string]string{p.public: reached, p.private: refused, p.metadata: refused}},
		{"a private range", &Policy{Ranges: ranges(within(p.privateNet, true, true))}, nil, nil,
			map[string]string{p.public: refused, p.private: reached}},
		{"metadata never", &Policy{Ranges: ranges(within(p.metadataNet, true, true))}, nil, nil,
			map[string]string{p.metadata: refused}},
		{"the host never", &Policy{Ranges: ranges(within("10.0.0.0/8", true, true), within("fc00::/7", true, true), within(p.outsideNet, true, false))}, nil, nil,
			map[string]string{p.hostOutside: refused, gateway: refused, p.private: reached}},
		{"allow but", &Policy{DefaultAllow: true, Ranges: ranges(oneAddr(p.public, false, false))}, nil, nil,
			map[string]string{p.public: refused, p.private: refused}},
		{"allow", &Policy{DefaultAllow: true}, nil, nil, map[string]string{p.public: reached, p.private: refused}},
		{"learned", &Policy{}, []string{p.public}, nil, map[string]string{p.public: proxied, p.private: refused}},
		{"learned stays", &Policy{}, nil, nil, map[string]string{p.public: proxied}},
		{"learned before closed", &Policy{Ranges: ranges(oneAddr(p.public, false, false))}, nil, nil, map[string]string{p.public: proxied}},
		{"forgotten", &Policy{}, nil, []string{p.public, p.private}, map[string]string{p.public: refused}},
		{"inspect all", &Policy{DefaultAllow: true, Inspect: true}, nil, nil,
			map[string]string{p.public: proxied, p.private: refused, p.hostOutside: refused, p.metadata: refused}},
		{"inspect opened", &Policy{Inspect: true, Ranges: ranges(within(p.privateNet, true, true))}, nil, nil,
			map[string]string{p.public: refused, p.private: proxied}},
		{"none again", nil, nil, []string{p.public}, map[string]string{p.public: reached}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var forget []netip.Addr
			for _, f := range test.forget {
				forget = append(forget, netip.MustParseAddr(f))
			}
			if err := l.SetPolicy(ctx, self, test.policy, forget); err != nil {
				t.Fatal(err)
			}
			for _, s := range test.learn {
				// Twice: a known address gets a new time.
				for _, life := range []time.Duration{time.Second, time.Hour} {
					if err := l.Learn(ctx, self, []Learned{{Addr: netip.MustParseAddr(s), Lifetime: life}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			var wg sync.WaitGroup
			for to, want := range test.to {
				wg.Go(func() {
					if got := dial(at(to, 80)); got != want {
						t.Errorf("%s: %s, want %s", to, got, want)
					}
				})
			}
			wg.Wait()
			if test.policy != nil {
				if got := dial(at(p.public, 853)); got != refused {
					t.Errorf("DNS over TLS: %s", got)
				}
			}
		})
	}
	if n := len(l.policies); n != 0 {
		t.Errorf("%d policies are left", n)
	}
}

// UDP goes to learned addresses, but not to all ports, and not where requests
// are looked at.
func TestLearnedDatagrams(t *testing.T) { inBothFamilies(t, testLearnedDatagrams) }

func testLearnedDatagrams(t *testing.T, p place) {
	l := newLab(t, options("g", outsideSubnet))
	a, addr := l.sandbox(t, 0)
	self, ctx := netip.MustParseAddr(addr), testContext(t)
	server, quic := l.outside.inbox(t, at(p.public, 9)), l.outside.inbox(t, at(p.public, 443))
	if err := l.SetPolicy(ctx, self, &Policy{}, nil); err != nil {
		t.Fatal(err)
	}
	a.send(t, at(p.public, 9), "not learned")
	for _, tcpOnly := range []bool{true, false} {
		if err := l.Learn(ctx, self, []Learned{{Addr: netip.MustParseAddr(p.public), Lifetime: time.Hour, TCPOnly: tcpOnly}}); err != nil {
			t.Fatal(err)
		}
		a.send(t, at(p.public, 443), "quic")
		a.send(t, at(p.public, 9), fmt.Sprint("TCP only: ", tcpOnly))
	}
	if got := receive(t, server); got != "TCP only: false" {
		t.Errorf("the server got %q", got)
	}
	quic.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := quic.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("QUIC passes: %d bytes", n)
	}
}

// A refusal is told at once, and reported.
func TestRefusalsAreReported(t *testing.T) { inBothFamilies(t, testRefusalsAreReported) }

func testRefusalsAreReported(t *testing.T, p place) {
	o := options("d", outsideSubnet)
	o.ReportGroup = 28999
	if !CanReport(testContext(t)) {
		t.Skip("this kernel has no nfnetlink_log")
	}
	l := newLab(t, o)
	a, addr := l.sandbox(t, 0)
	ctx := testContext(t)
	if err := l.SetPolicy(ctx, netip.MustParseAddr(addr), &Policy{}, nil); err != nil {
		t.Fatal(err)
	}
	drops := make(chan Drop, 100)
	bound := make(chan struct{})
	go func() {
		close(bound)
		if err := l.Drops(ctx, func(d Drop) { drops <- d }); err != nil {
			t.Error(err)
		}
	}()
	<-bound
	for {
		begin := time.Now()
		_, err := a.dial(at(p.public, 4321))
		if err == nil {
			t.Fatal("reached")
		}
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("the refusal took %s", took)
		}
		select {
		case d := <-drops:
			if d.Sandbox.String() != addr || d.To.String() != at(p.public, 4321) || d.Protocol != unix.IPPROTO_TCP || d.Source == 0 {
				t.Errorf("reported %+v", d)
			}
			return
		case <-time.After(300 * time.Millisecond): // not bound yet
		case <-ctx.Done():
			t.Fatal("nothing was reported")
		}
	}
}

// The table of a restarted server has the policies from the start.
func TestPoliciesSurviveRestart(t *testing.T) { inBothFamilies(t, testPoliciesSurviveRestart) }

func testPoliciesSurviveRestart(t *testing.T, p place) {
	o := options("w", outsideSubnet)
	l := newLab(t, o)
	l.outside.whoami(t, at(p.any, 80))
	a, addr := l.sandbox(t, 0)
	o.Policies = map[netip.Addr]*Policy{netip.MustParseAddr(addr): {Ranges: ranges(oneAddr(p.private, true, true))}}
	again, err := New(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.dial(at(p.public, 80)); err == nil {
		t.Error("reached what is not allowed")
	}
	if _, err := a.dial(at(p.private, 80)); err != nil {
		t.Error(err)
	}
	if err := again.SetPolicy(testContext(t), netip.MustParseAddr(addr), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.dial(at(p.public, 80)); err != nil {
		t.Error(err)
	}
}

// UDP that a new policy forbids stops in both directions.
func TestPolicyCutsFlows(t *testing.T) { inBothFamilies(t, testPolicyCutsFlows) }

func testPolicyCutsFlows(t *testing.T, p place) {
	l := newLab(t, options("c", outsideSubnet))
	a, addr := l.sandbox(t, 0)
	server := l.outside.inbox(t, at(p.public, 7777))
	var c net.Conn
	a.do(t, func() (err error) {
		c, err = net.Dial("udp", at(p.public, 7777))
		return err
	})
	defer c.Close()
	c.Write([]byte("hello"))
	b := make([]byte, 64)
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := server.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (string, error) {
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	server.WriteTo([]byte("before"), from)
	if got, err := read(); got != "before" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := l.SetPolicy(testContext(t), netip.MustParseAddr(addr), &Policy{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.CutForbidden(netip.MustParseAddr(addr)); err != nil {
		t.Fatal(err)
	}
	server.WriteTo([]byte("after"), from)
	if got, err := read(); err == nil {
		t.Errorf("still gets %q", got)
	}
}

// The addresses are the last of IPv4 and the first of IPv6, where an error about
// the border would show.
func TestSpans(t *testing.T) {
	const size = 64
	addr := func(i int) netip.Addr {
		if i < size/2 {
			return netip.AddrFrom4([4]byte{255, 255, 255, byte(256 - size/2 + i)})
		}
		return netip.AddrFrom16([16]byte{15: byte(i - size/2)})
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) ([]span, [size]bool) {
			var list []span
			var in [size]bool
			for range rapid.IntRange(0, 6).Draw(t, name) {
				first := rapid.IntRange(0, size-1).Draw(t, "first")
				most := size - 1
				if first < size/2 {
					most = size/2 - 1
				}
				last := rapid.IntRange(first, most).Draw(t, "last")
				list = append(list, span{addr(first), addr(last)})
				for i := first; i <= last; i++ {
					in[i] = true
				}
			}
			return join(list), in
		}
		a, inA := draw("a")
		b, inB := draw("b")
		left := without(a, b)
		for i := range size {
			want := inA[i] && !inB[i]
			if got := inSpans(left, addr(i)); got != want {
				t.Fatalf("%v without %v: %s is in: %v", a, b, addr(i), got)
			}
			if got := inSpans(ofFamily(a, i >= size/2), addr(i)); got != inA[i] {
				t.Fatalf("%v of its family: %s is in: %v", a, addr(i), got)
			}
		}
		for i := 1; i < len(a); i++ {
			if a[i].is6() == a[i-1].is6() && !a[i-1].last.Next().Less(a[i].first) {
				t.Fatalf("%v touch", a)
			}
		}
	})
}

func FuzzParseDrop(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4})
	f.Add(append(append([]byte{0x60, 0, 0, 0, 0, 20, 0, 64}, make([]byte, 32)...), 6, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parsePacket(b); ok && d.Sandbox.Is4() != d.To.Addr().Is4() {
			t.Fatal(fmt.Sprint(d))
		}
		parseDrop(b)
	})
}

// Machines beside the host are closed unless a rule or the configuration names
// them, also those of a network that the host joins later.
func TestNetworksOfTheHost(t *testing.T) {
	if !usesIPv6() {
		t.Skip("this host has no IPv6")
	}
	o := options("n", outsideSubnet)
	l := newLab(t, o)
	ctx, cancel := context.WithCancel(testContext(t))
	var watching sync.WaitGroup
	watching.Go(func() { l.WatchRoutes(ctx) })
	t.Cleanup(watching.Wait)
	t.Cleanup(cancel)
	l.outside.whoami(t, "[::]:80")
	a, addr := l.sandbox(t, 0)
	self, beside, far := netip.MustParseAddr(addr), netip.MustParseAddr(beside6), netip.MustParseAddr(public6)
	reached := func(to netip.Addr) bool {
		_, err := a.dial(at(to.String(), 80))
		return err == nil
	}
	if reached(beside) || l.Opens(beside, nil) {
		t.Error("the machine beside the host is open")
	}
	if !reached(far) || !l.Opens(far, nil) {
		t.Error("a public address is closed")
	}
	named, wide := within("2001:db8::/64", true, false), within("2000::/3", true, false)
	for _, test := range []struct {
		name   string
		policy *Policy
		opens  bool
	}{
		{"allowed by default", &Policy{DefaultAllow: true}, false},
		{"denied", &Policy{}, false},
		{"a rule for much more", &Policy{Ranges: ranges(wide)}, false},
		{"a rule for the network", &Policy{Ranges: ranges(named)}, true},
	} {
		if err := l.SetPolicy(ctx, self, test.policy, nil); err != nil {
			t.Fatal(err)
		}
		if reached(beside) != test.opens {
			t.Errorf("%s: open is %v", test.name, !test.opens)
		}
		if r := test.policy.Ranges; len(r) > 0 && l.Opens(beside, &r[0]) != test.opens {
			t.Errorf("%s: open to names is %v", test.name, !test.opens)
		}
	}

	// A network that the host joins, also to a policy with a wide rule.
	if err := l.SetPolicy(ctx, self, &Policy{Ranges: ranges(wide)}, nil); err != nil {
		t.Fatal(err)
	}
	if !reached(far) {
		t.Error("a wide rule opens nothing")
	}
	for _, joined := range []string{"2001:db8:1::/64", public6 + "/128"} {
		_, dst, _ := net.ParseCIDR(joined)
		wan, err := netlink.LinkByName("wan0")
		if err != nil {
			t.Fatal(err)
		}
		route := &netlink.Route{Dst: dst, LinkIndex: wan.Attrs().Index}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		until(t, ctx, joined+" is open", func() bool { return !l.Opens(far, nil) && !reached(far) })
		if err := netlink.RouteDel(route); err != nil {
			t.Fatal(err)
		}
		until(t, ctx, joined+" stays closed", func() bool { return l.Opens(far, nil) && reached(far) })
	}
	o.AllowedRanges = []netip.Prefix{netip.MustParsePrefix(beside6 + "/128")}
	if _, err := New(ctx, o); err != nil {
		t.Fatal(err)
	}
	if !reached(beside) {
		t.Error("the configuration does not open it")
	}
}

func until(t *testing.T, ctx context.Context, otherwise string, is func() bool) {
	t.Helper()
	for !is() {
		if ctx.Err() != nil {
			t.Fatal(otherwise)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// What the other side of an ended sandbox's connection sends does not reach the
// next one with its address.
func TestForgetFlows(t *testing.T) { inBothFamilies(t, testForgetFlows) }

func testForgetFlows(t *testing.T, p place) {
	l := newLab(t, options("o", outsideSubnet))
	server := l.outside.inbox(t, at(p.public, 7777))
	first, addr := l.sandbox(t, 0)
	other, _ := l.sandbox(t, 1)
	const port = 4444
	send := func(from *ns, own string, message string) net.Addr {
		t.Helper()
		from.do(t, func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(own), Port: port}, &net.UDPAddr{IP: net.ParseIP(p.public), Port: 7777})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(message))
			return err
		})
		b := make([]byte, 64)
		server.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from2, err := server.ReadFrom(b)
		if err != nil || string(b[:n]) != message {
			t.Fatalf("%q, %v", b[:n], err)
		}
		return from2
	}
	addr = p.of(l.Network, addr)
	back := send(first, addr, "first")
	kept := send(other, p.of(l.Network, "10.213.0.3"), "other")
	ended := netip.MustParseAddr("10.213.0.2")
	if err := l.Detach(testContext(t), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.ForgetFlows(func(a netip.Addr) bool { return a == ended }); err != nil {
		t.Fatal(err)
	}
	var next *ns
	until(t, testContext(t), "the index stays in use", func() bool {
		next = newNS(t)
		_, err := l.Attach(testContext(t), next.fd(), 0, "next")
		return err == nil
	})
	if l.HasIPv6() {
		next.await6(t, l.Addr6(ended))
	}
	inbox := next.inbox(t, at(addr, port))
	living := other.inbox(t, at(p.of(l.Network, "10.213.0.3"), port))
	server.WriteTo([]byte("secret"), back)
	server.WriteTo([]byte("yours"), kept)
	if got := receive(t, living); got != "yours" {
		t.Errorf("the other sandbox got %q", got)
	}
	inbox.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, _, err := inbox.ReadFrom(make([]byte, 64)); err == nil {
		t.Errorf("the next sandbox got %d bytes", n)
	}
}

// More ranges than one transaction takes are there all the same.
func TestManyRanges(t *testing.T) {
	o := options("y", "10.213.0.0/23")
	o.Policies = map[netip.Addr]*Policy{}
	for i := range 2*transactionElements/(2*4096) + 1 {
		a, err := AddrOf(o.Subnet, i)
		if err != nil {
			t.Fatal(err)
		}
		var p Policy
		for j := range 4095 {
			one := netip.AddrFrom4([4]byte{11, byte(j >> 7), byte(j << 1), 1})
			p.Ranges = append(p.Ranges, Range{First: one, Last: one, Allow: true})
		}
		p.Ranges = append(p.Ranges, oneAddr(public, true, false))
		o.Policies[a] = &p
	}
	l := newLab(t, o)
	l.outside.whoami(t, at(public, 80))
	for _, i := range []int{0, len(o.Policies) - 1} {
		a, _ := l.sandbox(t, i)
		if _, err := a.dial(at(public, 80)); err != nil {
			t.Errorf("sandbox %d: %v", i, err)
		}
		if _, err := a.dial(at(private, 80)); err == nil {
			t.Errorf("sandbox %d reaches what its policy does not name", i)
		}
	}
}
