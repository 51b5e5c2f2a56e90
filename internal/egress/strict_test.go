package egress

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What was asked for is all that a strict answer brings, and Learn has it first.
func TestStrict(t *testing.T) {
	upstream := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		var m *dns.Msg
		switch name {
		case "alias.example.":
			m = record(q, name+" 9000 IN CNAME Inner.example.", "inner.example. 9000 IN A 203.0.113.1", "inner.example. 60 IN A 203.0.113.2",
				"other.example. 60 IN A 203.0.113.3", name+" 60 IN TXT \"news\"")
			rr, _ := dns.NewRR("extra.example. 60 IN A 203.0.113.4")
			m.Extra, m.Ns = append(m.Extra, rr), append(m.Ns, rr)
		case "loop.example.":
			m = record(q, name+" 60 IN CNAME loop.example.")
		case "none.example.":
			m = record(q)
			m.Rcode = dns.RcodeNameError
			rr, _ := dns.NewRR(name + " 60 IN A 203.0.113.9")
			m.Answer = []dns.RR{rr}
		case "broken.example.":
			m = record(q)
			m.Rcode = dns.RcodeRefused
		default:
			m = record(q, name+" 60 IN A 203.0.113.5")
		}
		_ = w.WriteMsg(m)
	})
	type learned struct {
		name  string
		addrs []netip.Addr
		ttl   time.Duration
	}
	calls := make(chan learned, 10)
	_, addr := startResolver(t, Options{Upstreams: []string{upstream},
		Decide: func(_ Asker, q dns.Question) Verdict {
			if q.Qtype == dns.TypeAAAA {
				return Verdict{Action: Empty, Reason: "IPv4 only"}
			}
			return Verdict{Strict: true}
		},
		Learn: func(_ context.Context, _ netip.Addr, name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
			calls <- learned{name, addrs, ttl}
			switch name {
			case "fails.example.":
				return nil, errors.New("no room")
			case "denied.example.":
				return nil, nil
			}
			return addrs[len(addrs)-1:], nil
		},
	})
	q := question("alias.example.", dns.TypeA)
	q.SetEdns0(1232, false)
	m := ask(t, "udp", addr, q)
	got := <-calls
	if got.name != "alias.example." || len(got.addrs) != 2 || got.ttl != 60*time.Second {
		t.Errorf("learned %+v", got)
	}
	var texts []string
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		texts = append(texts, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	if want := []string{"alias.example. 300 IN CNAME Inner.example.", "inner.example. 60 IN A 203.0.113.2"}; !slices.Equal(texts, want) || len(m.Extra) != 1 {
		t.Errorf("answered %q and %v, want %q", texts, m.Extra, want)
	}
	for name, want := range map[string]int{
		"loop.example.": dns.RcodeSuccess, "none.example.": dns.RcodeNameError, "broken.example.": dns.RcodeRefused,
		"fails.example.": dns.RcodeServerFailure, "denied.example.": dns.RcodeSuccess,
	} {
		m := ask(t, "udp", addr, question(name, dns.TypeA))
		if m.Rcode != want || len(addresses(m.Answer)) > 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	q = question("alias.example.", dns.TypeAAAA)
	q.SetEdns0(1232, false)
	if m := ask(t, "udp", addr, q); m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 || reason(m) != "IPv4 only" {
		t.Errorf("%v", m)
	}
}

// The time of an answer without and with Learn.
func BenchmarkAnswer(b *testing.B) {
	upstream := startUpstream(b, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A 203.0.113.5"))
	})
	for name, strict := range map[string]bool{"plain": false, "strict": true} {
		b.Run(name, func(b *testing.B) {
			_, addr := startResolver(b, Options{Upstreams: []string{upstream},
				Decide: func(Asker, dns.Question) Verdict { return Verdict{Strict: strict} },
				Learn: func(_ context.Context, _ netip.Addr, _ string, a []netip.Addr, _ time.Duration) ([]netip.Addr, error) {
					return a, nil
				}})
			for b.Loop() {
				ask(b, "udp", addr, question("a.example.", dns.TypeA))
			}
		})
	}
}
