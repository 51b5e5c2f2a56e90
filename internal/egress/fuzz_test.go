package egress

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuery: whatever a sandbox sends, the answer is none, or a readable message
// with the same id that is an answer; and what would go upstream is one plain
// question.
func FuzzQuery(f *testing.F) {
	for _, m := range []*dns.Msg{
		question("www.example.", dns.TypeA),
		question(".", dns.TypeNS),
		question("x.example.", dns.TypeAXFR),
		question("x.example.", dns.TypeA).SetEdns0(4096, true),
	} {
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
		f.Add(raw[:len(raw)-1], true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, stream bool) {
		q, answer := parse(raw, netip.MustParseAddrPort("10.0.0.2:4711"), stream)
		if q != nil {
			up := q.upstream()
			if len(up.Question) != 1 || len(up.Extra) != 1 || len(up.IsEdns0().Option) != 0 {
				t.Fatalf("would ask %v", up)
			}
			if _, err := up.Pack(); err != nil {
				t.Fatalf("question can't be sent on: %v", err)
			}
			answer = q.fail(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "no")
			if answer == nil {
				t.Fatal("no answer to a good question")
			}
		}
		if answer != nil {
			checkAnswer(t, raw, answer)
		}
	})
}

// FuzzReply: whatever an upstream answers, ours is a readable answer to the
// question, of a size that the asker can take.
func FuzzReply(f *testing.F) {
	q := question("www.example.", dns.TypeA)
	good := record(q, "www.example. 60 IN A 192.0.2.1", "www.example. 60 IN TXT \"x\"")
	good.SetEdns0(1232, true)
	raw, err := good.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, true, uint16(512))
	f.Add(raw, false, uint16(0))
	f.Fuzz(func(t *testing.T, raw []byte, stream bool, size uint16) {
		got := new(dns.Msg)
		if got.Unpack(raw) != nil {
			return
		}
		ask := question("www.example.", dns.TypeA)
		limit := dns.MinMsgSize
		if size > 0 {
			ask.SetEdns0(size, true)
			limit = max(limit, min(int(size), udpSize))
		}
		if stream {
			limit = dns.MaxMsgSize
		}
		asked, err := ask.Pack()
		if err != nil {
			t.Fatal(err)
		}
		answer := (&query{msg: ask, stream: stream}).reply(got)
		if len(answer) > limit {
			t.Fatalf("%d bytes, the asker takes %d", len(answer), limit)
		}
		checkAnswer(t, asked, answer)
	})
}

func checkAnswer(t *testing.T, asked, answer []byte) {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer can't be read: %v", err)
	}
	if !m.Response || m.Id != uint16(asked[0])<<8|uint16(asked[1]) {
		t.Fatalf("not an answer to the question: %v", m)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\noptions ndots:99999999999 timeout:\nsearch\n"))
	f.Add([]byte("nameserver ::1%eth0\nnameserver\n# x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseResolvConf(text)
		if err != nil {
			return
		}
		for _, a := range list {
			if !a.IsValid() || a.Port() != dnsPort {
				t.Fatalf("%v", a)
			}
		}
	})
}

func BenchmarkForward(b *testing.B) {
	up := startUpstream(b, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A 192.0.2.7"))
	})
	_, addr := startResolver(b, Options{Upstreams: []string{up}})
	for b.Loop() {
		ask(b, "udp", addr, question("www.example.", dns.TypeA))
	}
}
