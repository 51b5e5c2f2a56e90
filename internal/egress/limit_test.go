package egress

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestLimits(t *testing.T) {
	up, arrived, release := hold(t)
	r, addr := startResolver(t, Options{Upstreams: []string{up}, MaxInflight: 3, MaxInflightPerSource: 2})
	from := func(ip string) *dns.Client {
		return &dns.Client{Timeout: testTime, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}}
	}
	type result struct {
		m   *dns.Msg
		err error
	}
	results := make(chan result, 3)
	start := func(ip, name string) {
		go func() {
			m, _, err := from(ip).Exchange(question(name, dns.TypeA), addr)
			results <- result{m, err}
		}()
		<-arrived
	}
	over := func(ip string) {
		t.Helper()
		q := question("over.example.", dns.TypeA)
		q.SetEdns0(1232, false)
		m, _, err := from(ip).Exchange(q, addr)
		if err != nil || m.Rcode != dns.RcodeServerFailure || !strings.Contains(reason(m), "too many") {
			t.Errorf("%v: %v", err, m)
		}
	}
	start("127.0.0.1", "a.example.")
	start("127.0.0.1", "b.example.")
	over("127.0.0.1")
	start("127.0.0.2", "c.example.")
	over("127.0.0.2") // the total
	if got := r.Stats(); got.Inflight != 3 || got.Overloaded != 2 {
		t.Errorf("%+v", got)
	}
	release()
	for range 3 {
		if res := <-results; res.err != nil || res.m.Rcode != dns.RcodeSuccess {
			t.Errorf("%v: %v", res.err, res.m)
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	r, addr := startResolver(t, Options{
		MaxConnsPerSource: 1,
		Decide:            func(Asker, dns.Question) Verdict { return Verdict{Action: NameError} },
	})
	conn, err := dns.DialTimeout("tcp", addr, testTime)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	askOn := func() error {
		if err := conn.SetDeadline(time.Now().Add(testTime)); err != nil {
			return err
		}
		if err := conn.WriteMsg(question("x.example.", dns.TypeA)); err != nil {
			return err
		}
		_, err := conn.ReadMsg()
		return err
	}
	if err := askOn(); err != nil {
		t.Fatal(err)
	}
	second, err := net.DialTimeout("tcp", addr, testTime)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.SetDeadline(time.Now().Add(testTime)); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("second connection: %v, want EOF", err)
	}
	// The first isn't bothered, until it sends what is no question.
	if err := askOn(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Conn.Write(binary.BigEndian.AppendUint16(nil, maxQuery+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Conn.Read(make([]byte, 1)); err == nil {
		t.Error("connection survives a question that is too long")
	}
	if got := r.Stats().Overloaded; got != 1 {
		t.Errorf("overloaded: %d", got)
	}
}
