package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"Example.COM.":                    "example.com",
		" *.Example.com ":                 "*.example.com",
		"bücher.example":                  "xn--bcher-kva.example",
		"192.0.2.7":                       "192.0.2.7",
		"::ffff:192.0.2.7":                "192.0.2.7",
		"[2001:DB8::1]":                   "2001:db8::1",
		"10.0.0.0/8":                      "10.0.0.0/8",
		"::ffff:10.0.0.0/104":             "10.0.0.0/8",
		"0.0.0.0/0":                       "0.0.0.0/0",
		"_dmarc.example.com":              "",
		"https://example.com/":            "",
		"example.com:443":                 "",
		"a.*.example.com":                 "",
		"*example.com":                    "",
		"*":                               "",
		"":                                "",
		"example..com":                    "",
		"10.0.0.1/8":                      "",
		"localhost":                       "",
		"127.1":                           "",
		"0x7f.0x1":                        "",
		"fe80::1%eth0":                    "",
		"a b.example":                     "",
		strings.Repeat("a", 64) + ".com":  "",
		strings.Repeat("a.", 127) + "com": "",
		strings.Repeat("ü", 1000):         "",
	} {
		p, err := Policy{Egress: []Rule{{Action: "allow", Target: "first.example"}, {Action: " ALLOW ", Target: in}}}.Normalize()
		var bad *RuleError
		switch {
		case want == "" && (!errors.As(err, &bad) || bad.Index != 1 || bad.Field != "target"):
			t.Errorf("%q: want an error for rule 1, got %v, %v", in, p, err)
		case want != "" && (err != nil || p.Egress[1].Target != want || p.Egress[1].Action != Allow || p.DefaultAction != Deny):
			t.Errorf("%q: got %v, %v; want %q", in, p, err, want)
		}
	}
	for _, p := range []Policy{
		{DefaultAction: "maybe"},
		{Egress: []Rule{{Action: "permit", Target: "a.example"}}},
		{Egress: make([]Rule, MaxRules+1)},
		{Egress: []Rule{{Action: Deny, Target: "a.example", HTTP: &HTTP{Methods: []string{"GET"}}}}},
		{Egress: []Rule{{Action: Allow, Target: "10.0.0.1", HTTP: &HTTP{Methods: []string{"GET"}}}}},
		{Egress: []Rule{{Action: Allow, Target: "a.example", HTTP: &HTTP{}}}},
		{Egress: []Rule{{Action: Allow, Target: "a.example", HTTP: &HTTP{Methods: []string{"CONNECT"}}}}},
		{Egress: []Rule{{Action: Allow, Target: "a.example", HTTP: &HTTP{Paths: []string{"a"}}}}},
		{Egress: []Rule{{Action: Allow, Target: "a.example", HTTP: &HTTP{Paths: []string{"/a/../b"}}}}},
	} {
		if _, err := p.Normalize(); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

func TestHTTP(t *testing.T) {
	h := &HTTP{Methods: []string{"GET"}, Paths: []string{"/simple/*", "/v1/*/x", "/exact"}}
	for path, want := range map[string]bool{
		"/simple/":          true,
		"/simple/a/b":       true,
		"/simple/%61":       true,
		"/simple":           false,
		"/exact":            true,
		"/exact/":           false,
		"/v1/a/x":           true,
		"/v1//x":            false,
		"/v1/a/b/x":         false,
		"/v1/ab/xx":         false,
		"/simple/../exact2": false,
		"/simple/%2e%2e/s":  false,
		"/simple/..;a/s":    false,
		"/simple/%2f":       false,
		"/simple/%25":       false,
		"/simple/%5c":       false,
		"/simple/%00":       false,
		"/simple/%zz":       false,
		"//simple/a":        false,
		"*":                 false,
	} {
		if got := h.Matches("GET", path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if h.Matches("POST", "/exact") || h.Matches("get", "/exact") {
		t.Error("a method that is not listed matches")
	}
}

// names and addresses are few, so that rules meet.
var (
	names     = []string{"a.example", "b.a.example", "c.b.a.example", "example", "x.test"}
	targets   = []string{"a.example", "*.a.example", "*.example", "b.a.example", "x.test", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "0.0.0.0/0", "192.0.2.1", "255.255.255.255", "2001:db8::/32", "::/0", "2001:db8::1"}
	addresses = []string{"10.1.2.3", "10.1.2.4", "10.1.3.1", "10.2.0.0", "11.0.0.0", "9.255.255.255", "192.0.2.1", "192.0.2.2", "0.0.0.0", "255.255.255.255", "2001:db8::1", "2001:db8::2", "2001:db9::"}
)

func drawn(t *rapid.T) Policy {
	rule := rapid.Custom(func(t *rapid.T) Rule {
		return Rule{Action: rapid.SampledFrom([]Action{Allow, Deny}).Draw(t, "action"), Target: rapid.SampledFrom(targets).Draw(t, "target")}
	})
	return Policy{DefaultAction: rapid.SampledFrom([]Action{Allow, Deny}).Draw(t, "default"), Egress: rapid.SliceOfN(rule, 0, 12).Draw(t, "rules")}
}

// naive reads the rules from first to last.
func naive(p Policy, name string, addr netip.Addr) (bool, int) {
	for i, r := range p.Egress {
		prefix, isAddr := targetPrefix(r.Target)
		base, wild := strings.CutPrefix(r.Target, "*.")
		if isAddr && addr.IsValid() && prefix.Contains(addr) || !isAddr && name != "" && (name == r.Target || wild && strings.HasSuffix(name, "."+base)) {
			return r.Action == Allow, i
		}
	}
	return p.DefaultAction == Allow, -1
}

func TestDecisions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawn(t)
		n, err := p.Normalize()
		if err != nil {
			t.Fatal(err)
		}
		c := Compile(n)
		for _, name := range names {
			allow, rule := naive(p, name, netip.Addr{})
			if d := c.Name(strings.ToUpper(name) + "."); d.Allow != allow || d.Rule != rule {
				t.Fatalf("%s: %+v, want %v by %d", name, d, allow, rule)
			}
		}
		for _, text := range addresses {
			a := netip.MustParseAddr(text)
			for _, name := range append(names, "") {
				allow, rule := naive(p, name, a)
				if d := c.Connect(name, a); d.Allow != allow || d.Rule != rule {
					t.Fatalf("%q at %s: %+v, want %v by %d", name, a, d, allow, rule)
				}
			}
			ranges := c.Ranges4()
			if a.Is6() {
				ranges = c.Ranges6()
			}
			allow, rule := naive(p, "", a)
			i := slices.IndexFunc(ranges, func(r Range) bool { return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 })
			if rule < 0 && i >= 0 || rule >= 0 && (i < 0 || ranges[i].Allow != allow || ranges[i].Rule != rule) {
				t.Fatalf("%s: ranges %v, want %v by %d", a, ranges, allow, rule)
			}
		}
		for _, ranges := range [][]Range{c.Ranges4(), c.Ranges6()} {
			for i, r := range ranges {
				if r.Last.Less(r.First) || i > 0 && r.First.Compare(ranges[i-1].Last) <= 0 {
					t.Fatalf("ranges overlap or are out of order: %v", ranges)
				}
			}
		}
	})
}

func TestOpens(t *testing.T) {
	c := Compile(Policy{DefaultAction: Deny, Egress: []Rule{{Allow, "10.1.2.0/24", nil}, {Allow, "0.0.0.0/0", nil}}})
	for _, r := range c.Ranges4() {
		if want := r.First.String() == "10.1.2.0"; r.Opens != want {
			t.Errorf("%v: opens is not %v", r, want)
		}
	}
	if !Special(netip.MustParseAddr("::ffff:10.0.0.1")) || !Special(netip.MustParseAddr("64:ff9b::a00:1")) || Special(netip.MustParseAddr("1.1.1.1")) || !Never(netip.MustParseAddr("169.254.169.254")) {
		t.Error("special addresses are not known")
	}
}

func TestMergeAndWithout(t *testing.T) {
	p := Policy{DefaultAction: Deny, Egress: []Rule{{Allow, "a.example", nil}, {Deny, "b.example", nil}}}
	m := p.Merge([]Rule{{Deny, "A.example", nil}, {Allow, "c.example", nil}, {Allow, "c.example.", nil}})
	if got, want := m.Egress, ([]Rule{{Deny, "A.example", nil}, {Allow, "c.example", nil}, {Deny, "b.example", nil}}); !slices.Equal(got, want) {
		t.Errorf("merged: %v", got)
	}
	if w, n := m.Without([]string{"C.EXAMPLE", "none.example"}); n != 1 || len(w.Egress) != 2 {
		t.Errorf("without: %v, %d", w, n)
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range targets {
		f.Add(s, "/a*")
	}
	f.Fuzz(func(t *testing.T, target, path string) {
		n, err := Policy{Egress: []Rule{{Allow, target, &HTTP{Paths: []string{path}}}}}.Normalize()
		if err != nil {
			n, err = Policy{Egress: []Rule{{Allow, target, nil}}}.Normalize()
		}
		if err != nil {
			return
		}
		again, err := n.Normalize()
		if err != nil || again.Egress[0].Target != n.Egress[0].Target {
			t.Fatalf("%q becomes %q and then %v, %v", target, n.Egress[0].Target, again, err)
		}
		c := Compile(n)
		c.Ranges4()
		c.Ranges6()
		if h := n.Egress[0].HTTP; h != nil {
			h.Matches("GET", path)
		}
	})
}
