package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ruling is a judge who allows some names everywhere.
type ruling struct {
	mu    sync.Mutex
	names []string
}

func (r *ruling) Sandbox(netip.Addr) (string, bool) { return "sandbox-1", true }

func (r *ruling) Judge(_ netip.Addr, c Claim) Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case c.Protocol == Unknown, c.Protocol == Opaque:
		return Verdict{Allow: len(r.names) > 0}
	case slices.Contains(r.names, c.Name):
		return Verdict{Allow: true, Request: func(method, target string) string {
			if method == "DELETE" {
				return "rule 0 allows no DELETE of " + target
			}
			return ""
		}}
	}
	return Verdict{Rule: -1, Reason: "no rule allows it"}
}

func (r *ruling) set(names ...string) {
	r.mu.Lock()
	r.names = names
	r.mu.Unlock()
}

// startProxy makes a proxy that sends everything to one address.
func startProxy(t testing.TB, judge Judge, to string, change ...func(*Options)) (*Proxy, string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParseAddrPort(to)
	o := Options{Listeners: []*net.TCPListener{l.(*net.TCPListener)}, Judge: judge,
		Original: func(*net.TCPConn) (netip.AddrPort, error) { return dst, nil }}
	for _, f := range change {
		f(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Serve(context.Background()) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p, l.Addr().String()
}

func startServer(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func dial(t testing.TB, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

func TestHTTPIsPassedOn(t *testing.T) {
	big := make([]byte, 1<<20)
	rand.Read(big)
	server := startServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/chunked" {
			for part := range slices.Chunk(b, 1000) {
				w.Write(part)
				w.(http.Flusher).Flush()
			}
			return
		}
		w.Write(b)
	})
	_, proxy := startProxy(t, &ruling{names: []string{"a.example"}}, server)
	c := dial(t, proxy)
	r := bufio.NewReader(c)
	for i, path := range []string{"/", "/chunked", "/", "/chunked"} {
		body := big[:i*300_000]
		req, _ := http.NewRequest("POST", "http://a.example"+path, bytes.NewReader(body))
		if i%2 == 0 {
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), -1
		}
		go req.Write(c)
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("request %d: %d bytes of %d, %v", i, len(got), len(body), err)
		}
	}
	// A head is answered without a body.
	fmt.Fprintf(c, "HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
	for _, method := range []string{"HEAD", "GET"} {
		if resp, err := http.ReadResponse(r, &http.Request{Method: method}); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v", method, err)
		}
	}
}

// The refusals reach the client, and the server hears of none of it.
func TestRefusalsAreExplained(t *testing.T) {
	server := startServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/first" {
			t.Errorf("the server got %s %s for %s", r.Method, r.URL, r.Host)
		}
	})
	denials := make(chan Denial, 10)
	_, proxy := startProxy(t, &ruling{names: []string{"a.example"}}, server, func(o *Options) {
		o.Denied = func(d Denial) { denials <- d }
	})
	for _, test := range []struct{ send, status, body string }{
		{"GET /x HTTP/1.1\r\nHost: b.example\r\n\r\n", "403", "no rule allows it"},
		{"DELETE /x HTTP/1.1\r\nHost: a.example\r\n\r\n", "403", "no DELETE of /x"},
		{"GET /x HTTP/1.1\r\nHost: a.example:22\r\n\r\n", "403", "port 22"},
		{"GET /x HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "403", "192.0.2.1"},
		{"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "403", "both"},
	} {
		for _, before := range []string{"", "GET /first HTTP/1.1\r\nHost: a.example\r\n\r\n"} {
			c := dial(t, proxy)
			io.WriteString(c, before+test.send)
			b, _ := io.ReadAll(c)
			if !strings.Contains(string(b), "HTTP/1.1 "+test.status) || !strings.Contains(string(b), test.body) {
				t.Errorf("%q: %s", before+test.send, b)
			}
			d := <-denials
			if d.Sandbox != "sandbox-1" || !strings.Contains(d.Reason, test.body) {
				t.Errorf("%q: %+v", test.send, d)
			}
		}
	}
	c := dial(t, proxy)
	c.Write(realHello(t, "b.example"))
	if b, _ := io.ReadAll(c); !bytes.Equal(b, accessDenied) {
		t.Errorf("TLS: %x", b)
	}
	c = dial(t, proxy)
	io.WriteString(c, http2Preface)
	if b, _ := io.ReadAll(c); !bytes.Contains(b, []byte("no rule allows it")) {
		t.Errorf("HTTP/2: %x", b)
	}
}

func TestUpgrade(t *testing.T) {
	server := startServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.Write([]byte("no"))
			return
		}
		c, rw, _ := w.(http.Hijacker).Hijack()
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nready\n")
		io.Copy(c, rw)
	})
	_, proxy := startProxy(t, &ruling{names: []string{"a.example"}}, server)
	ask := func(path, then string) string {
		c := dial(t, proxy)
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"+then)
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		return string(b)
	}
	if got := ask("/", "anything at all\n"); !strings.HasSuffix(got, "ready\nanything at all\n") {
		t.Errorf("%q", got)
	}
	if got := ask("/no", "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n"); !strings.Contains(got, "403") {
		t.Errorf("%q", got)
	}
}

// A server may speak first, and either side may end its half.
func TestOpaque(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "220 ready\r\n")
				b, _ := io.ReadAll(c)
				c.Write(b)
			}()
		}
	}()
	judge := &ruling{names: []string{"a.example"}}
	p, proxy := startProxy(t, judge, l.Addr().String())
	open := func() (net.Conn, *bufio.Reader) {
		c := dial(t, proxy)
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); line != "220 ready\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return c, r
	}
	c, r := open()
	io.WriteString(c, "EHLO me\r\n")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(r); string(b) != "EHLO me\r\n" {
		t.Errorf("%q, %v", b, err)
	}
	// A rule that goes takes the connection along, before and after the first
	// bytes.
	c1, r1 := open()
	c2, r2 := open()
	io.WriteString(c2, "EHLO me\r\n")
	for p.Stats().Served < 2 {
		time.Sleep(time.Millisecond)
	}
	p.Recheck(netip.MustParseAddr("127.0.0.1"))
	io.WriteString(c1, "still ")
	judge.set()
	p.Recheck(netip.MustParseAddr("127.0.0.1"))
	for _, r := range []*bufio.Reader{r1, r2} {
		if b, err := io.ReadAll(r); err == nil && len(b) == 0 {
			t.Error("the connection ended as if all were well")
		}
	}
}

func TestLimits(t *testing.T) {
	server := startServer(t, func(http.ResponseWriter, *http.Request) {})
	p, proxy := startProxy(t, &ruling{names: []string{"a.example"}}, server, func(o *Options) {
		o.MaxConnsPerSandbox = 2
		o.HelloTimeout = 50 * time.Millisecond
	})
	first, _ := dial(t, proxy), dial(t, proxy)
	for p.Stats().Conns < 2 {
		time.Sleep(time.Millisecond)
	}
	// The reset may come while the connection is still being made.
	if c, err := net.Dial("tcp", proxy); err == nil {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(c); err == nil {
			t.Error("a third connection was not reset")
		}
		c.Close()
	}
	// A first message must come to its end.
	io.WriteString(first, "GET / HT")
	if b, _ := io.ReadAll(first); len(b) > 0 {
		t.Errorf("%q", b)
	}
	if s := p.Stats(); s.Refused != 1 || s.Denied != 1 {
		t.Errorf("%+v", s)
	}
}

// taker is an interceptor that echoes.
type taker struct{}

func (taker) Wants(_, name string, _ uint16) bool { return name == "take.example" }
func (taker) Serve(ctx context.Context, c *Conn, dial func(context.Context) (net.Conn, error)) {
	defer c.Close()
	if s, err := dial(ctx); err == nil {
		s.Close()
	}
	fmt.Fprintf(c, "taken %s %s ", c.Sandbox, c.Name)
	io.Copy(c, c)
}

func TestIntercept(t *testing.T) {
	server := startServer(t, func(http.ResponseWriter, *http.Request) {})
	_, proxy := startProxy(t, &ruling{names: []string{"take.example"}}, server, func(o *Options) { o.Interceptor = taker{} })
	for _, sent := range []string{string(realHello(t, "take.example")), "GET / HTTP/1.1\r\nHost: take.example\r\n\r\nmore"} {
		c := dial(t, proxy)
		io.WriteString(c, sent)
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "taken sandbox-1 take.example "+sent {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// The cost of a connection through the proxy, and of one without.
func BenchmarkConnection(b *testing.B) {
	server := startServer(b, func(w http.ResponseWriter, _ *http.Request) {})
	_, proxy := startProxy(b, &ruling{names: []string{"a.example"}}, server)
	for name, to := range map[string]string{"direct": server, "proxy": proxy} {
		b.Run(name, func(b *testing.B) {
			times := make([]time.Duration, 0, b.N)
			buf := make([]byte, 4096)
			for b.Loop() {
				begin := time.Now()
				c, err := net.Dial("tcp", to)
				if err != nil {
					b.Fatal(err)
				}
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(begin))
				c.Close()
			}
			slices.Sort(times)
			for _, p := range []int{50, 95, 99} {
				b.ReportMetric(float64(times[len(times)*p/100].Microseconds()), fmt.Sprintf("p%d-µs", p))
			}
		})
	}
}

// The throughput of an opaque connection, spliced, and of one without proxy.
func BenchmarkThroughput(b *testing.B) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(io.Discard, c)
				c.Write([]byte("done"))
				c.Close()
			}()
		}
	}()
	_, proxy := startProxy(b, &ruling{names: []string{"a.example"}}, l.Addr().String())
	for name, to := range map[string]string{"direct": l.Addr().String(), "proxy": proxy} {
		b.Run(name, func(b *testing.B) {
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			c, err := net.Dial("tcp", to)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			c.(*net.TCPConn).CloseWrite()
			io.ReadAll(c)
		})
	}
}
