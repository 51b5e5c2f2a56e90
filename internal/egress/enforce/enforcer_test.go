package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

var (
	box     = netip.MustParseAddr("10.213.0.2")
	public  = netip.MustParseAddr("203.0.113.10")
	second  = netip.MustParseAddr("203.0.113.11")
	public6 = netip.MustParseAddr("2001:db8::10")
	// unrouted6 is one that the host has no route to.
	unrouted6 = netip.MustParseAddr("2001:db8:dead::1")
	inner     = netip.MustParseAddr("10.99.0.1")
)

// recorder is a filter that keeps what it is told, as the kernel would.
type recorder struct {
	learned, datagrams map[netip.Addr]time.Time
	now                func() time.Time
	err                error
	cutErr             error
	set                int
}

func (r *recorder) SetPolicy(_ context.Context, _ netip.Addr, c *policy.Compiled, forget []netip.Addr) error {
	if r.err != nil {
		return r.err
	}
	r.set++
	for _, a := range forget {
		delete(r.learned, a)
		delete(r.datagrams, a)
	}
	return nil
}

func (r *recorder) CutForbidden(netip.Addr) error { return r.cutErr }

func (r *recorder) Learn(_ context.Context, _ netip.Addr, addrs []netip.Addr, life time.Duration, tcpOnly bool) error {
	if r.err != nil {
		return r.err
	}
	for _, a := range addrs {
		r.learned[a] = r.now().Add(life)
		if !tcpOnly {
			r.datagrams[a] = r.now().Add(life)
		}
	}
	return nil
}

func (r *recorder) Reaches(a netip.Addr) bool { return a != unrouted6 }

func (r *recorder) Opens(a netip.Addr, c *policy.Compiled) bool { return !policy.Special(a) }

func (r *recorder) has(a netip.Addr) bool { return r.now().Before(r.learned[a]) }

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func rules(t interface{ Fatal(...any) }, def policy.Action, list ...string) policy.Policy {
	p := policy.Policy{DefaultAction: def}
	for _, l := range list {
		action, target, _ := strings.Cut(l, " ")
		rule := policy.Rule{Action: policy.Action(action), Target: target}
		if action == "watch" { // allow some requests
			rule.Action, rule.HTTP = policy.Allow, &policy.HTTP{Methods: []string{"GET"}}
		}
		p.Egress = append(p.Egress, rule)
	}
	p, err := p.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func start(t interface{ Fatal(...any) }, p policy.Policy) (*Enforcer, *recorder, *clock) {
	c := &clock{time.Unix(1_800_000_000, 0)}
	r := &recorder{learned: map[netip.Addr]time.Time{}, datagrams: map[netip.Addr]time.Time{}, now: c.now}
	e := New(r)
	e.now = c.now
	if err := e.Set(context.Background(), "box", box, p); err != nil {
		t.Fatal(err)
	}
	return e, r, c
}

func asking(src netip.Addr) egress.Asker { return egress.Asker{At: netip.AddrPortFrom(src, 4711)} }

func decide(e *Enforcer, name string, qtype uint16) egress.Action {
	return e.Decide(asking(box), dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET}).Action
}

func TestDecide(t *testing.T) {
	e, _, c := start(t, rules(t, policy.Deny, "deny bad.wild.example", "allow allowed.example", "allow *.wild.example"))
	for _, test := range []struct {
		name  string
		qtype uint16
		want  egress.Action
	}{
		{"allowed.example.", dns.TypeA, egress.Allow},
		{"ALLOWED.example.", dns.TypeTXT, egress.Allow},
		{"allowed.example.", dns.TypeAAAA, egress.Allow},
		{"allowed.example.", dns.TypeHTTPS, egress.Empty},
		{"allowed.example.", dns.TypeANY, egress.Refuse},
		{"allowed.example.", dns.TypeNULL, egress.Refuse},
		{"other.example.", dns.TypeA, egress.NameError},
		{"other.example.", dns.TypeHTTPS, egress.NameError},
		{"x.allowed.example.", dns.TypeA, egress.NameError},
		{"wild.example.", dns.TypeA, egress.NameError},
		{"x.wild.example.", dns.TypeA, egress.Allow},
		{"bad.wild.example.", dns.TypeA, egress.NameError},
		{"a.b.c.d.e.f.g.wild.example.", dns.TypeA, egress.NameError},
		{strings.Repeat("x", 63) + "." + strings.Repeat("y", 63) + "." + strings.Repeat("z", 40) + ".wild.example.", dns.TypeA, egress.NameError},
		{".", dns.TypeNS, egress.NameError},
	} {
		if got := decide(e, test.name, test.qtype); got != test.want {
			t.Errorf("%s %s: %d, want %d", test.name, dns.Type(test.qtype), got, test.want)
		}
	}
	if v := e.Decide(asking(netip.MustParseAddr("10.213.0.3")), dns.Question{Name: "other.example.", Qtype: dns.TypeA}); v != (egress.Verdict{}) {
		t.Errorf("a sandbox without a policy: %+v", v)
	}
	// New names beneath a wildcard run out; known ones and other rules don't.
	c.t = c.t.Add(time.Hour)
	got := 0
	for i := range 300 {
		if decide(e, fmt.Sprintf("n%d.wild.example.", i), dns.TypeA) == egress.Allow {
			got++
		}
	}
	if got != freshBurst || decide(e, "n0.wild.example.", dns.TypeA) != egress.Allow || decide(e, "allowed.example.", dns.TypeA) != egress.Allow {
		t.Errorf("%d new names", got)
	}
	c.t = c.t.Add(10 * time.Second)
	if decide(e, "later.wild.example.", dns.TypeA) != egress.Allow {
		t.Error("the budget does not fill up again")
	}
	for range 2 * lookupBurst {
		decide(e, "allowed.example.", dns.TypeA)
	}
	if decide(e, "allowed.example.", dns.TypeA) != egress.Refuse {
		t.Error("questions are not limited")
	}
}

func TestLearn(t *testing.T) {
	e, r, c := start(t, rules(t, policy.Deny, "allow allowed.example", "deny 203.0.113.11", "allow *.wild.example", "allow 10.99.0.0/24"))
	ctx := context.Background()
	for _, test := range []struct {
		name          string
		addrs         []netip.Addr
		kept, learned []netip.Addr
	}{
		{"allowed.example.", []netip.Addr{public, second}, []netip.Addr{public, second}, []netip.Addr{public, second}},
		{"allowed.example.", []netip.Addr{public6, unrouted6}, []netip.Addr{public6}, []netip.Addr{public6}},
		{"allowed.example.", []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2002:cb00:710a::1"), netip.MustParseAddr("fe80::1")}, nil, nil},
		// A rule about the address stands before the one about the name.
		{"x.wild.example.", []netip.Addr{public, second}, []netip.Addr{public}, []netip.Addr{public}},
		{"x.wild.example.", []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.168.1.1")}, nil, nil},
		{"allowed.example.", []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("64:ff9b::a63:1")}, nil, nil},
	} {
		r.learned = map[netip.Addr]time.Time{}
		c.t = c.t.Add(time.Hour)
		kept, err := e.Learn(ctx, box, test.name, test.addrs, time.Minute)
		if err != nil || !slices.Equal(kept, test.kept) {
			t.Errorf("%s: kept %v, %v, want %v", test.name, kept, err, test.kept)
		}
		for _, a := range test.addrs {
			if r.has(a) != slices.Contains(test.learned, a) {
				t.Errorf("%s: %s is learned: %v", test.name, a, r.has(a))
			}
		}
	}
	// Lifetimes.
	for ttl, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: 61 * time.Second, time.Hour: 6 * time.Minute} {
		c.t = c.t.Add(24 * time.Hour)
		if _, err := e.Learn(ctx, box, "allowed.example.", []netip.Addr{public}, ttl); err != nil {
			t.Fatal(err)
		}
		if got := r.learned[public].Sub(c.t); got != want {
			t.Errorf("an answer for %s is learned for %s, want %s", ttl, got, want)
		}
	}
	r.err = errors.New("the kernel says no")
	if _, err := e.Learn(ctx, box, "allowed.example.", []netip.Addr{second}, time.Minute); err == nil {
		t.Error("an answer was given that the kernel did not learn")
	}
}

func TestJudge(t *testing.T) {
	p := rules(t, policy.Deny, "allow allowed.example", "deny bad.wild.example", "allow *.wild.example", "allow 198.51.100.0/24")
	e, _, c := start(t, p)
	if _, err := e.Learn(context.Background(), box, "allowed.example", []netip.Addr{public}, time.Minute); err != nil {
		t.Fatal(err)
	}
	byAddress := netip.MustParseAddr("198.51.100.1")
	type claims []struct {
		protocol proxy.Protocol
		name     string
		to       netip.Addr
		port     uint16
		want     bool
	}
	check := func(list claims) {
		t.Helper()
		for _, l := range list {
			v := e.Judge(box, proxy.Claim{Protocol: l.protocol, Name: l.name, To: netip.AddrPortFrom(l.to, l.port)})
			if v.Allow != l.want || !v.Allow && v.Reason == "" {
				t.Errorf("%s %q to %s:%d: %+v", l.protocol, l.name, l.to, l.port, v)
			}
		}
	}
	check(claims{
		{proxy.TLS, "allowed.example", public, 443, true},
		{proxy.HTTP1, "allowed.example", public, 80, true},
		{proxy.TLS, "allowed.example", second, 443, false},
		{proxy.TLS, "x.wild.example", public, 443, false}, // never looked up
		{proxy.TLS, "bad.wild.example", public, 443, false},
		{proxy.TLS, "", public, 443, false},
		{proxy.HTTP1, "", public, 80, false},
		{proxy.HTTP2, "", public, 80, false},
		{proxy.Opaque, "", public, 22, true},
		{proxy.Opaque, "", public, 443, false},
		{proxy.Opaque, "", public, 80, false},
		{proxy.Opaque, "", second, 22, false},
		{proxy.Unknown, "", public, 22, true},
		{proxy.Unknown, "", second, 22, false},
		{proxy.TLS, "whatever.example", byAddress, 443, true},
		{proxy.TLS, "bad.wild.example", byAddress, 443, false}, // an earlier rule
		{proxy.TLS, "", byAddress, 443, true},
		{proxy.HTTP2, "", byAddress, 443, true},
	})
	c.t = c.t.Add(time.Hour)
	check(claims{{proxy.TLS, "allowed.example", public, 443, false}, {proxy.Opaque, "", public, 22, false}})
	if v := e.Judge(box, proxy.Claim{Protocol: proxy.TLS, Name: "allowed.example", To: netip.AddrPortFrom(public, 443), Bound: true}); !v.Allow {
		t.Error("a connection ends with its name's answer")
	}
	if err := e.Remove(context.Background(), box); err != nil {
		t.Fatal(err)
	}
	check(claims{{proxy.TLS, "", byAddress, 443, false}})
}

func TestHTTPRules(t *testing.T) {
	p := policy.Policy{DefaultAction: policy.Deny, Egress: []policy.Rule{
		{Action: policy.Allow, Target: "allowed.example", HTTP: &policy.HTTP{Methods: []string{"GET"}, Paths: []string{"/api/*"}, Mode: policy.Enforce}},
		{Action: policy.Allow, Target: "audit.example", HTTP: &policy.HTTP{Methods: []string{"GET"}, Mode: policy.Audit}},
	}}
	e, _, _ := start(t, p)
	for _, name := range []string{"allowed.example", "audit.example"} {
		if _, err := e.Learn(context.Background(), box, name, []netip.Addr{public}, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(name, method, target string) string {
		v := e.Judge(box, proxy.Claim{Protocol: proxy.HTTP1, Name: name, To: netip.AddrPortFrom(public, 80)})
		if !v.Allow || v.Request == nil {
			t.Fatalf("%s: %+v", name, v)
		}
		return v.Request(method, target)
	}
	if why := ask("allowed.example", "GET", "/api/x?q=/"); why != "" {
		t.Error(why)
	}
	for _, no := range [][2]string{{"POST", "/api/x"}, {"GET", "/other"}, {"GET", "/api/../other"}, {"GET", "/api/%2e%2e/other"}} {
		if ask("allowed.example", no[0], no[1]) == "" {
			t.Errorf("%s is allowed", no)
		}
	}
	for len(e.Denials()) > 0 {
		<-e.Denials()
	}
	if why := ask("audit.example", "POST", "/"); why != "" {
		t.Error(why)
	}
	if d := <-e.Denials(); !d.Audit || d.Target != "audit.example" {
		t.Errorf("%+v", d)
	}
	// What can't be seen is not let through as something else.
	if v := e.Judge(box, proxy.Claim{Protocol: proxy.Opaque, To: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.99"), 22)}); v.Allow {
		t.Error("opaque")
	}
}

// The reason of a refused packet is one that helps.
func TestPacketReasons(t *testing.T) {
	e, _, _ := start(t, rules(t, policy.Deny, "deny 203.0.113.66", "allow allowed.example", "allow 198.51.100.0/24"))
	if _, err := e.Learn(context.Background(), box, "allowed.example", []netip.Addr{public}, time.Minute); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"203.0.113.66:80": "rule 0 (deny 203.0.113.66)", "203.0.113.77:80": "default action is deny",
		"203.0.113.10:443": "QUIC", "203.0.113.10:53": "resolvers", "198.51.100.1:853": "resolvers", "198.51.100.1:0": "closed",
	} {
		e.Packet(netip.AddrPortFrom(box, 4000), 17, netip.MustParseAddrPort(to))
		if d := <-e.Denials(); !strings.Contains(d.Reason, want) || d.Protocol != "udp" || d.Source != 4000 || d.Sandbox != "box" {
			t.Errorf("%s: %+v, want %q", to, d, want)
		}
	}
	e.Packet(netip.AddrPortFrom(second, 4000), 17, netip.MustParseAddrPort("203.0.113.77:80"))
	if len(e.Denials()) > 0 {
		t.Error("a packet of nobody was told")
	}
	for range 2 * reportBurst {
		e.Packet(netip.AddrPortFrom(box, 4000), 17, netip.MustParseAddrPort("203.0.113.77:80"))
	}
	if n := len(e.Denials()); n > reportBurst || e.Lost() == 0 {
		t.Errorf("%d were told, %d lost", n, e.Lost())
	}
}

// A failed change leaves everything as it was.
func TestFailedChange(t *testing.T) {
	e, r, _ := start(t, rules(t, policy.Deny, "allow allowed.example"))
	r.err = errors.New("the kernel says no")
	if err := e.Set(context.Background(), "box", box, rules(t, policy.Deny)); err == nil {
		t.Fatal("no error")
	}
	if decide(e, "allowed.example.", dns.TypeA) != egress.Allow {
		t.Error("the old policy is gone")
	}
	if err := e.Set(context.Background(), "new", second, rules(t, policy.Deny)); err == nil {
		t.Fatal("no error")
	}
	r.err, r.cutErr = nil, errors.New("the kernel says no")
	if err := e.Set(context.Background(), "box", box, rules(t, policy.Deny)); err == nil {
		t.Fatal("no error")
	}
	if decide(e, "allowed.example.", dns.TypeA) != egress.Allow {
		t.Error("the old policy is gone")
	}
	if _, ok := e.Sandbox(second); ok {
		t.Error("a policy that never was is known")
	}
}

// Whatever happens, what the kernel has learned for a name is what the policy of
// the moment allows, and no connection is allowed that was not learned.
func TestLearnedFollowsPolicy(t *testing.T) {
	names := []string{"a.example", "b.example", "x.w.example"}
	addrs := []netip.Addr{public, second, inner}
	targets := []string{"a.example", "b.example", "*.w.example", "*.example", "203.0.113.10", "203.0.113.0/24", "10.99.0.0/16"}
	rapid.Check(t, func(t *rapid.T) {
		e, r, c := start(t, policy.Policy{DefaultAction: policy.Deny})
		current := policy.Compile(policy.Policy{DefaultAction: policy.Deny})
		t.Repeat(map[string]func(*rapid.T){
			"policy": func(t *rapid.T) {
				var list []string
				for range rapid.IntRange(0, 4).Draw(t, "rules") {
					target := rapid.SampledFrom(targets).Draw(t, "target")
					actions := []string{"allow ", "deny "}
					if strings.HasSuffix(target, "e") {
						actions = append(actions, "watch ")
					}
					list = append(list, rapid.SampledFrom(actions).Draw(t, "action")+target)
				}
				p := rules(t, policy.Deny, list...)
				if err := e.Set(context.Background(), "box", box, p); err != nil {
					t.Fatal(err)
				}
				current = policy.Compile(p)
			},
			"learn": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "name")
				if !current.Name(name).Allow {
					return
				}
				kept, err := e.Learn(context.Background(), box, name, addrs, time.Duration(rapid.IntRange(0, 600).Draw(t, "ttl"))*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				for _, a := range kept {
					if !current.Connect(name, a).Allow {
						t.Fatalf("%s may not be known as %s", a, name)
					}
				}
			},
			"time": func(t *rapid.T) {
				c.t = c.t.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second)
			},
			"": func(t *rapid.T) {
				for _, a := range addrs {
					if r.has(a) {
						allowed := slices.ContainsFunc(names, func(n string) bool { d := current.Connect(n, a); return d.Allow && d.Named })
						if !allowed {
							t.Fatalf("the kernel has %s, for which no name is allowed", a)
						}
					}
					if r.now().Before(r.datagrams[a]) {
						if !slices.ContainsFunc(names, func(n string) bool {
							d := current.Connect(n, a)
							return d.Allow && d.Named && d.HTTP == nil
						}) {
							t.Fatalf("the kernel lets UDP pass to %s, for which all names are watched", a)
						}
					}
					for _, n := range names {
						v := e.Judge(box, proxy.Claim{Protocol: proxy.TLS, Name: n, To: netip.AddrPortFrom(a, 443)})
						d := current.Connect(n, a)
						if v.Allow && (!d.Allow || d.Named && !r.has(a)) {
							t.Fatalf("%s at %s is allowed", n, a)
						}
					}
				}
			},
		})
	})
}
