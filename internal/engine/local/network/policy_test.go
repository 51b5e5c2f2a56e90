package network

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

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
	return Range{First: toAddr(all.first), Last: toAddr(all.last), Allow: allow, Reserved: reserved}
}

func toAddr(n uint64) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestPolicyPackets(t *testing.T) {
	const (
		reached = "reached"
		refused = "refused"
		proxied = "proxied"
	)
	o := options("p", outsideSubnet)
	var host *ns
	o.ProxyPort = 9999
	l := newLab(t, o)
	host.whoami(t, "10.213.0.1:9999")
	l.outside.whoami(t, "0.0.0.0:80")
	l.outside.whoami(t, "0.0.0.0:853")
	a, addr := l.sandbox(t, 0)
	self := netip.MustParseAddr(addr)
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
		{"none", nil, nil, nil, map[string]string{public: reached, private: refused}},
		{"deny all", &Policy{}, nil, nil, map[string]string{public: refused, private: refused, metadata: refused}},
		{"an address", &Policy{Ranges: ranges(oneAddr(public, true, false))}, nil, nil,
			map[string]string{public: reached, private: refused}},
		{"a range does not open what is private", &Policy{Ranges: ranges(within("0.0.0.0/0", true, false))}, nil, nil,
			map[string]string{public: reached, private: refused, metadata: refused}},
		{"a private range", &Policy{Ranges: ranges(within("10.99.0.0/24", true, true))}, nil, nil,
			map[string]string{public: refused, private: reached}},
		{"metadata never", &Policy{Ranges: ranges(within("169.254.0.0/16", true, true))}, nil, nil,
			map[string]string{metadata: refused}},
		{"the host never", &Policy{Ranges: ranges(within("10.0.0.0/8", true, true), within("203.0.113.0/24", true, false))}, nil, nil,
			map[string]string{hostOutside: refused, "10.213.0.1": refused, private: reached}},
		{"allow but", &Policy{DefaultAllow: true, Ranges: ranges(oneAddr(public, false, false))}, nil, nil,
			map[string]string{public: refused, private: refused}},
		{"allow", &Policy{DefaultAllow: true}, nil, nil, map[string]string{public: reached, private: refused}},
		{"learned", &Policy{}, []string{public}, nil, map[string]string{public: proxied, private: refused}},
		{"learned stays", &Policy{}, nil, nil, map[string]string{public: proxied}},
		{"learned before closed", &Policy{Ranges: ranges(oneAddr(public, false, false))}, nil, nil, map[string]string{public: proxied}},
		{"forgotten", &Policy{}, nil, []string{public, private}, map[string]string{public: refused}},
		{"inspect all", &Policy{DefaultAllow: true, Inspect: true}, nil, nil,
			map[string]string{public: proxied, private: refused, hostOutside: refused, metadata: refused}},
		{"inspect opened", &Policy{Inspect: true, Ranges: ranges(within("10.99.0.0/24", true, true))}, nil, nil,
			map[string]string{public: refused, private: proxied}},
		{"none again", nil, nil, []string{public}, map[string]string{public: reached}},
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
					if got := dial(to + ":80"); got != want {
						t.Errorf("%s: %s, want %s", to, got, want)
					}
				})
			}
			wg.Wait()
			if test.policy != nil {
				if got := dial(public + ":853"); got != refused {
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
func TestLearnedDatagrams(t *testing.T) {
	l := newLab(t, options("g", outsideSubnet))
	a, addr := l.sandbox(t, 0)
	self, ctx := netip.MustParseAddr(addr), testContext(t)
	server, quic := l.outside.inbox(t, public+":9"), l.outside.inbox(t, public+":443")
	if err := l.SetPolicy(ctx, self, &Policy{}, nil); err != nil {
		t.Fatal(err)
	}
	a.send(t, public+":9", "not learned")
	for _, tcpOnly := range []bool{true, false} {
		if err := l.Learn(ctx, self, []Learned{{Addr: netip.MustParseAddr(public), Lifetime: time.Hour, TCPOnly: tcpOnly}}); err != nil {
			t.Fatal(err)
		}
		a.send(t, public+":443", "quic")
		a.send(t, public+":9", fmt.Sprint("TCP only: ", tcpOnly))
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
func TestRefusalsAreReported(t *testing.T) {
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
		_, err := a.dial(public + ":4321")
		if err == nil {
			t.Fatal("reached")
		}
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("the refusal took %s", took)
		}
		select {
		case d := <-drops:
			if d.Sandbox.String() != addr || d.To.String() != public+":4321" || d.Protocol != unix.IPPROTO_TCP || d.Source == 0 {
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
func TestPoliciesSurviveRestart(t *testing.T) {
	o := options("w", outsideSubnet)
	l := newLab(t, o)
	l.outside.whoami(t, "0.0.0.0:80")
	a, addr := l.sandbox(t, 0)
	o.Policies = map[netip.Addr]*Policy{netip.MustParseAddr(addr): {Ranges: ranges(oneAddr(private, true, true))}}
	again, err := New(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.dial(public + ":80"); err == nil {
		t.Error("reached what is not allowed")
	}
	if _, err := a.dial(private + ":80"); err != nil {
		t.Error(err)
	}
	if err := again.SetPolicy(testContext(t), netip.MustParseAddr(addr), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.dial(public + ":80"); err != nil {
		t.Error(err)
	}
}

// UDP that a new policy forbids stops in both directions.
func TestPolicyCutsFlows(t *testing.T) {
	l := newLab(t, options("c", outsideSubnet))
	a, addr := l.sandbox(t, 0)
	server := l.outside.inbox(t, "0.0.0.0:7777")
	var c net.Conn
	a.do(t, func() (err error) {
		c, err = net.Dial("udp", public+":7777")
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

func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64
		draw := func(name string) ([]span, [size]bool) {
			var list []span
			var in [size]bool
			for range rapid.IntRange(0, 6).Draw(t, name) {
				first := rapid.Uint64Range(0, size-1).Draw(t, "first")
				last := rapid.Uint64Range(first, size-1).Draw(t, "last")
				list = append(list, span{first, last})
				for i := first; i <= last; i++ {
					in[i] = true
				}
			}
			return join(list), in
		}
		a, inA := draw("a")
		b, inB := draw("b")
		left := without(a, b)
		for i := range uint64(size) {
			want := inA[i] && !inB[i]
			if got := inSpans(left, toAddr(i)); got != want {
				t.Fatalf("%v without %v: %d is in: %v", a, b, i, got)
			}
		}
		for i := 1; i < len(a); i++ {
			if a[i].first <= a[i-1].last+1 {
				t.Fatalf("%v touch", a)
			}
		}
	})
}

func FuzzParseDrop(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parsePacket(b); ok && (!d.Sandbox.Is4() || !d.To.Addr().Is4()) {
			t.Fatal(fmt.Sprint(d))
		}
		parseDrop(b)
	})
}
