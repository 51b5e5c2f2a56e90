package egress

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// hold makes an upstream that keeps every question until it is let go.
func hold(t *testing.T) (addr string, arrived chan string, release func()) {
	t.Helper()
	arrived, gate := make(chan string, 64), make(chan struct{})
	addr = startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		arrived <- q.Question[0].Name
		<-gate
		_ = w.WriteMsg(record(q))
	})
	var once atomic.Bool
	release = func() {
		if once.CompareAndSwap(false, true) {
			close(gate)
		}
	}
	t.Cleanup(release)
	return addr, arrived, release
}

func TestFailover(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := dead.LocalAddr().String()
	dead.Close() // nobody there: the kernel says so at once
	broken := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	good := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A 192.0.2.7"))
	})
	for _, tt := range []struct {
		name      string
		upstreams []string
		rcode     int
		reason    string
	}{
		{"second answers", []string{refusing, good}, dns.RcodeSuccess, ""},
		{"second is better", []string{broken, good}, dns.RcodeSuccess, ""},
		{"a poor answer is better than none", []string{refusing, broken}, dns.RcodeServerFailure, ""},
		{"nobody", []string{refusing}, dns.RcodeServerFailure, "no DNS resolver of the host answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, addr := startResolver(t, Options{Upstreams: tt.upstreams})
			q := question("x.example.", dns.TypeA)
			q.SetEdns0(1232, false)
			if m := ask(t, "udp", addr, q); m.Rcode != tt.rcode || reason(m) != tt.reason {
				t.Errorf("%v", m)
			}
		})
	}
}

// A resolver from before EDNS answers FORMERR, and has to be asked again
// without. One that sends rubbish first must not win.
func TestOddUpstreams(t *testing.T) {
	old := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.IsEdns0() != nil {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
			return
		}
		_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A 192.0.2.7"))
	})
	noisy := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_, _ = w.Write([]byte("rubbish"))
		_, _ = w.Write(make([]byte, 100))
		wrongID := record(q, q.Question[0].Name+" 60 IN A 198.51.100.1")
		wrongID.Id++
		_ = w.WriteMsg(wrongID)
		wrongName := record(q, "evil.example. 60 IN A 198.51.100.1")
		wrongName.Question[0].Name = "evil.example."
		_ = w.WriteMsg(wrongName)
		_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A 192.0.2.7"))
	})
	for name, up := range map[string]string{"old": old, "noisy": noisy} {
		_, addr := startResolver(t, Options{Upstreams: []string{up}})
		m := ask(t, "udp", addr, question("x.example.", dns.TypeA))
		if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "192.0.2.7") {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// A silent upstream costs one attempt; afterwards it is asked last.
func TestSilentUpstream(t *testing.T) {
	silent, arrived, _ := hold(t)
	var answered atomic.Int32
	good := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		answered.Add(1)
		_ = w.WriteMsg(record(q))
	})
	_, addr := startResolver(t, Options{Upstreams: []string{silent, good}})
	for range 3 {
		if m := ask(t, "udp", addr, question("x.example.", dns.TypeA)); m.Rcode != dns.RcodeSuccess {
			t.Error(m)
		}
	}
	if len(arrived) != 1 || answered.Load() != 3 {
		t.Errorf("the silent upstream was asked %d times, the other answered %d", len(arrived), answered.Load())
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r, addr := startResolver(t, Options{ResolvConf: path})

	q := question("x.example.", dns.TypeA)
	q.SetEdns0(1232, false)
	if m := ask(t, "udp", addr, q); m.Rcode != dns.RcodeServerFailure || reason(m) != errNoUpstream.Error() {
		t.Errorf("without a file: %v", m)
	}
	conf := r.upstreams.(*resolvConf)
	replace := func(text string) []*upstream {
		t.Helper()
		tmp := path + ".new"
		if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, path); err != nil {
			t.Fatal(err)
		}
		return conf.current()
	}
	list := replace("nameserver 192.0.2.1\nnameserver dns.example\nnameserver 192.0.2.1\nsearch a b\nnameserver fe80::1%lo\n")
	if len(list) != 2 || list[0].addr.String() != "192.0.2.1:53" || list[1].addr.String() != "[fe80::1%lo]:53" {
		t.Fatalf("%v", list)
	}
	first := list[0]
	if list = replace("nameserver 192.0.2.9\nnameserver 192.0.2.1\n"); len(list) != 2 || list[1] != first {
		t.Errorf("an upstream that stays is not the same: %v", list)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := conf.current(); len(got) != 2 {
		t.Errorf("the list is gone while the file is missing: %v", got)
	}
	// The port in a resolv.conf is always 53. On loopback there are many.
	for _, ip := range []string{"127.53.97.1", "127.53.97.2"} {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "53"))
		if err != nil {
			t.Skip("needs port 53 on loopback: ", err)
		}
		serveUpstream(t, l, func(w dns.ResponseWriter, q *dns.Msg) {
			_ = w.WriteMsg(record(q, q.Question[0].Name+" 60 IN A "+ip))
		})
		replace("nameserver " + ip + "\n")
		if m := ask(t, "udp", addr, q); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), ip) {
			t.Errorf("%s: %v", ip, m)
		}
	}
}
