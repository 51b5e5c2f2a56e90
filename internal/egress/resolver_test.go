package egress

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// testTime is how long a test waits for something that should be at once.
const testTime = 20 * time.Second

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// startUpstream serves DNS over UDP and TCP on a free loopback port.
func startUpstream(t testing.TB, handle dns.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveUpstream(t, l, handle)
}

func serveUpstream(t testing.TB, l net.Listener, handle dns.HandlerFunc) string {
	t.Helper()
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{Listener: l, Handler: handle}, {PacketConn: u, Handler: handle}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.ActivateAndServe()
		}()
		<-up
		t.Cleanup(func() {
			_ = srv.Shutdown()
			<-done
		})
	}
	return l.Addr().String()
}

// startResolver serves with the options and returns the address.
func startResolver(t testing.TB, opts Options) (*Resolver, string) {
	t.Helper()
	if opts.Listen == nil {
		opts.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	if opts.Sources == nil {
		opts.Sources = []netip.Prefix{loopback}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := NewResolver(opts)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Serve(context.Background()) }()
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r, r.Addrs()[0].String()
}

// record is an answer with the records given as text.
func record(q *dns.Msg, rrs ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	for _, s := range rrs {
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func ask(t testing.TB, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: testTime, UDPSize: dns.MaxMsgSize}
	m, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype)
}

func reason(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

func TestForwards(t *testing.T) {
	seen := make(chan *dns.Msg, 16)
	up := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		seen <- q
		m := record(q, q.Question[0].Name+" 60 IN A 192.0.2.7", q.Question[0].Name+" 60 IN A 10.0.0.1")
		if q.Question[0].Name == "none.example." {
			m = new(dns.Msg).SetRcode(q, dns.RcodeNameError)
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: 9, ExtraText: "a\nreason"}}
		}
		_ = w.WriteMsg(m)
	})
	r, addr := startResolver(t, Options{Upstreams: []string{up}})
	for _, network := range []string{"udp", "tcp"} {
		q := question("WWW.example.", dns.TypeA)
		q.Id = 77
		q.SetEdns0(4096, true)
		q.CheckingDisabled = true
		q.IsEdns0().Option = []dns.EDNS0{
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1223344556"},
			&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("smuggled")},
		}
		m := ask(t, network, addr, q)
		if m.Id != 77 || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 2 || !m.RecursionAvailable ||
			m.Question[0].Name != "WWW.example." || !m.CheckingDisabled {
			t.Errorf("%s: %v", network, m)
		}
		if m.IsEdns0() == nil || !m.IsEdns0().Do() {
			t.Errorf("%s: no EDNS in %v", network, m)
		}
		sent := <-seen
		if opt := sent.IsEdns0(); opt == nil || !opt.Do() || len(opt.Option) != 0 || !sent.CheckingDisabled {
			t.Errorf("%s: upstream was asked %v", network, sent)
		}

		m = ask(t, network, addr, question("none.example.", dns.TypeA))
		if m.Rcode != dns.RcodeNameError || m.IsEdns0() != nil {
			t.Errorf("%s: %v", network, m)
		}
		if opt := (<-seen).IsEdns0(); opt == nil || opt.Do() {
			t.Errorf("%s: upstream was asked with %v", network, opt)
		}
		withEdns := question("none.example.", dns.TypeA)
		withEdns.SetEdns0(1232, false)
		if m = ask(t, network, addr, withEdns); reason(m) != "a reason" {
			t.Errorf("%s: %v", network, m)
		}
		<-seen
	}
	if s := r.Stats(); s.Answered != 6 || s.Failed != 0 || s.Denied != 0 {
		t.Errorf("%+v", s)
	}
}

// An answer that doesn't fit is cut for UDP, and whole over TCP, whichever size
// the asker and the upstream can take.
func TestTruncation(t *testing.T) {
	up := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := record(q)
		n := 60
		if strings.HasPrefix(q.Question[0].Name, "huge") {
			n = 800
		}
		for i := range n {
			rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN TXT \"record number %04d\"", q.Question[0].Name, i))
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
			m.Truncate(int(q.IsEdns0().UDPSize()))
		}
		_ = w.WriteMsg(m)
	})
	_, addr := startResolver(t, Options{Upstreams: []string{up}})
	for _, tt := range []struct {
		name    string
		network string
		edns    uint16
		atMost  int
		records int // 0: cut
	}{
		{"big.example.", "udp", 0, 512, 0},
		{"big.example.", "udp", 100, 512, 0},
		{"big.example.", "udp", 900, 900, 0},
		{"big.example.", "udp", 65535, udpSize, 0},
		{"big.example.", "tcp", 0, dns.MaxMsgSize, 60},
		{"huge.example.", "udp", 4096, udpSize, 0},
		{"huge.example.", "tcp", 4096, dns.MaxMsgSize, 800},
	} {
		q := question(tt.name, dns.TypeTXT)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		m := ask(t, tt.network, addr, q)
		m.Compress = true
		if m.Len() > tt.atMost {
			t.Errorf("%+v: %d bytes", tt, m.Len())
		}
		if tt.records == 0 && !m.Truncated || tt.records > 0 && (m.Truncated || len(m.Answer) != tt.records) {
			t.Errorf("%+v: truncated %v, %d records", tt, m.Truncated, len(m.Answer))
		}
	}
}

func TestDecide(t *testing.T) {
	var asked atomic.Int32
	streams := map[bool]*atomic.Int32{false: {}, true: {}}
	up := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		_ = w.WriteMsg(record(q))
	})
	r, addr := startResolver(t, Options{
		Upstreams: []string{up},
		Decide: func(from Asker, q dns.Question) Verdict {
			if from.At.Addr() != netip.MustParseAddr("127.0.0.1") || from.At.Port() == 0 {
				t.Errorf("asked from %s", from.At)
			}
			streams[from.Stream].Add(1)
			switch {
			case q.Name == "refused.example.":
				return Verdict{Action: Refuse, Reason: "rule 7 forbids it"}
			case q.Name == "gone.example.":
				return Verdict{Action: NameError, Reason: strings.Repeat("é", 300)}
			}
			return Verdict{}
		},
	})
	for _, network := range []string{"udp", "tcp"} {
		q := question("refused.example.", dns.TypeAAAA)
		q.SetEdns0(1232, false)
		if m := ask(t, network, addr, q); m.Rcode != dns.RcodeRefused || reason(m) != "rule 7 forbids it" {
			t.Errorf("%s: %v", network, m)
		}
		q = question("gone.example.", dns.TypeA)
		q.SetEdns0(1232, false)
		if m := ask(t, network, addr, q); m.Rcode != dns.RcodeNameError || len(reason(m)) != maxReason {
			t.Errorf("%s: %v", network, m)
		}
	}
	if asked.Load() != 0 {
		t.Error("upstream was asked for a denied name")
	}
	if udp, tcp := streams[false].Load(), streams[true].Load(); udp != 2 || tcp != 2 {
		t.Errorf("asked %d times over UDP, %d over TCP", udp, tcp)
	}
	if m := ask(t, "udp", addr, question("fine.example.", dns.TypeA)); m.Rcode != dns.RcodeSuccess {
		t.Error(m)
	}
	if s := r.Stats(); s.Denied != 4 || s.Answered != 1 {
		t.Errorf("%+v", s)
	}
}

// What isn't a plain question is answered without asking anybody.
func TestRefusals(t *testing.T) {
	up := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		t.Errorf("upstream was asked %v", q)
	})
	_, addr := startResolver(t, Options{Upstreams: []string{up}})
	edit := func(f func(*dns.Msg)) []byte {
		m := question("x.example.", dns.TypeA)
		m.Id = 4242
		f(m)
		raw, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	plain := edit(func(*dns.Msg) {})
	for _, tt := range []struct {
		name  string
		raw   []byte
		rcode int
	}{
		{"zone transfer", edit(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"chaos", edit(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"update", edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"notify", edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"no question", edit(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", edit(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"an answer in the question", edit(func(m *dns.Msg) { m.Answer = record(m, "x.example. 1 IN A 192.0.2.1").Answer }), dns.RcodeFormatError},
		{"two OPT records", edit(func(m *dns.Msg) { m.SetEdns0(512, false); m.SetEdns0(512, false) }), dns.RcodeFormatError},
		{"EDNS version 1", edit(func(m *dns.Msg) { m.SetEdns0(512, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		{"cut short", plain[:len(plain)-3], dns.RcodeFormatError},
		{"name points at itself", append(append([]byte{}, plain[:12]...), 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+"/"+network, func(t *testing.T) {
				m := new(dns.Msg)
				if err := m.Unpack(rawExchange(t, network, addr, tt.raw)); err != nil {
					t.Fatal(err)
				}
				if m.Rcode != tt.rcode || m.Id != 4242 || !m.Response {
					t.Errorf("got %v", m)
				}
			})
		}
	}
}

func rawExchange(t testing.TB, network, addr string, raw []byte) []byte {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testTime)); err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		if err := writeFrame(conn, raw); err != nil {
			t.Fatal(err)
		}
		got, err := readFrame(conn)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if _, err := conn.Write(raw); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// Answers, rubbish and strangers get no answer. A plain question behind them on
// the same socket does, and because questions are read in order that shows that
// nothing else will come.
func TestSilence(t *testing.T) {
	r, addr := startResolver(t, Options{
		Sources: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Decide:  func(Asker, dns.Question) Verdict { return Verdict{Action: NameError} },
	})
	response := question("x.example.", dns.TypeA)
	response.Response = true
	raw, err := response.Pack()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testTime)); err != nil {
		t.Fatal(err)
	}
	q := question("last.example.", dns.TypeA)
	last, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{raw, {}, []byte("x"), make([]byte, 11), make([]byte, maxQuery+1), last} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf[:n]); err != nil || m.Id != q.Id {
		t.Fatalf("%v: %v", err, m)
	}
	if got := r.Stats().Ignored; got != 5 {
		t.Errorf("%d ignored, want 5", got)
	}

	// A stranger: another loopback address.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(testTime)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); err == nil {
		t.Errorf("a stranger read %d bytes", n)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	up, arrived, _ := hold(t)
	r, addr := startResolver(t, Options{Upstreams: []string{up}, Timeout: time.Hour})
	idle, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	waiting, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	raw, err := question("x.example.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(waiting, raw); err != nil {
		t.Fatal(err)
	}
	<-arrived
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- r.Close() }()
	}
	for range 2 {
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(testTime):
			t.Fatal("Close hangs")
		}
	}
	if s := r.Stats(); s.Inflight != 0 || s.Conns != 0 {
		t.Errorf("%+v", s)
	}
	if err := r.Serve(context.Background()); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	r, err := NewResolver(Options{
		Listen:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.2:0")},
		Sources: []netip.Prefix{loopback},
	})
	if err != nil {
		t.Fatal(err)
	}
	addrs := r.Addrs()
	if len(addrs) != 2 {
		t.Fatal(addrs)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Serve(ctx); err != nil {
		t.Error(err)
	}
	for _, a := range addrs {
		l, err := net.Listen("tcp", a.String())
		if err != nil {
			t.Errorf("the port is still taken: %v", err)
			continue
		}
		l.Close()
	}
}
