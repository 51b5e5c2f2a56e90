package intercept

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

const (
	testHost  = "api.example.com"
	otherHost = "also.allowed.example" // of the same address
	testValue = "s3cr3t-Value/0123456789+x"
)

// discard takes what servers would print about their clients.
var discard = log.New(io.Discard, "", 0)

// rig is a destination, the proxy with an interceptor, and a client that
// believes to connect to the destination.
type rig struct {
	t        testing.TB
	o        rigOptions
	addr     netip.AddrPort // of the destination
	port     int
	vaults   *vault.Vaults
	i        *Interceptor
	proxy    *proxy.Proxy
	listener *net.TCPListener
	roots    *x509.CertPool // what the sandbox trusts
	rootsPEM []byte         // without splice: the same

	mu     sync.Mutex
	denied []proxy.Denial
}

type rigOptions struct {
	plain   bool // a destination without TLS
	http2   bool
	request func(method, target string) string
	rule    int
	// untrusted makes the destination's certificate one of nobody.
	untrusted bool
	// splice makes the proxy pass connections on untouched.
	splice bool
	// ip is where destination and proxy listen, 127.0.0.1 by default.
	ip string
	// direct makes clients connect to the destination itself.
	direct bool
}

func pool(t testing.TB, a *Authority) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("the authority is no certificate")
	}
	return p
}

func authority(t testing.TB) *Authority {
	t.Helper()
	a, err := OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newRig(t testing.TB, o rigOptions, h http.Handler) *rig {
	t.Helper()
	world := authority(t)
	if o.ip == "" {
		o.ip = "127.0.0.1"
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	var err error
	if srv.Listener, err = net.Listen("tcp4", o.ip+":0"); err != nil {
		t.Fatal(err)
	}
	srv.Config.ErrorLog = discard
	srv.EnableHTTP2 = o.http2
	if o.plain {
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetHTTP1(true)
		srv.Config.Protocols.SetUnencryptedHTTP2(o.http2)
		srv.Start()
	} else {
		cert, err := world.leaf(testHost)
		if err != nil {
			t.Fatal(err)
		}
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		srv.StartTLS()
	}
	t.Cleanup(srv.Close)
	if o.untrusted {
		world = authority(t)
	}
	r := rigTo(t, o, srv.Listener.Addr().(*net.TCPAddr).AddrPort(), pool(t, world))
	if o.splice {
		r.rootsPEM = world.PEM()
	}
	t.Cleanup(srv.CloseClientConnections)
	return r
}

// rigTo makes all but the destination.
func rigTo(t testing.TB, o rigOptions, addr netip.AddrPort, world *x509.CertPool) *rig {
	t.Helper()
	r := &rig{t: t, o: o, addr: addr, port: int(addr.Port())}
	var err error
	if r.vaults, err = vault.Open(t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	own := authority(t)
	r.roots, r.rootsPEM = pool(t, own), own.PEM()
	denied := func(d proxy.Denial) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.denied = append(r.denied, d)
	}
	if r.i, err = New(Options{Authority: own, Vaults: r.vaults, Roots: world}); err != nil {
		t.Fatal(err)
	}
	if r.listener, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), 0))); err != nil {
		t.Fatal(err)
	}
	po := proxy.Options{
		Listeners: []*net.TCPListener{r.listener}, Judge: judge(o), Denied: denied, Interceptor: r.i,
		Original: func(*net.TCPConn) (netip.AddrPort, error) { return addr, nil },
	}
	if o.splice {
		po.Interceptor = nil
		r.roots = world
	}
	if r.proxy, err = proxy.New(po); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- r.proxy.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

type judge rigOptions

func (judge) Sandbox(netip.Addr) (string, bool) { return "sb1", true }

func (j judge) Judge(_ netip.Addr, c proxy.Claim) proxy.Verdict {
	if c.Name != "" && c.Name != testHost && c.Name != otherHost {
		return proxy.Verdict{Rule: -1, Reason: "the host is not in the policy"}
	}
	if c.Name == "" && c.Protocol == proxy.HTTP2 {
		return proxy.Verdict{Rule: -1, Reason: "the request names no host"}
	}
	return proxy.Verdict{Allow: true, Rule: j.rule, Named: j.rule >= 0, Request: j.request}
}

// bind makes the sandbox's vault. Credentials are c (testValue) and those given
// as name and value; auths are those of bindings for the destination's port.
func (r *rig) bind(match string, auths ...string) {
	r.t.Helper()
	var bindings []string
	for i, a := range auths {
		bindings = append(bindings, fmt.Sprintf(`{"name":"b%d","match":{"hosts":[%q],"ports":[%d]%s},"auth":{%s}}`, i, testHost, r.port, match, a))
	}
	r.vaultOf(fmt.Sprintf(`{"credentials":[{"name":"c","source":{"type":"inline","value":%q}},{"name":"basic","source":{"value":"dXNlcjpwYXNzd29yZA=="}}],"bindings":[%s]}`,
		testValue, strings.Join(bindings, ",")))
}

func (r *rig) vaultOf(body string) {
	r.t.Helper()
	api := &vault.API{Vaults: r.vaults, Sandbox: "sb1", Hold: func(ctx context.Context, change func(context.Context, vault.Ground) error) error {
		return change(ctx, vault.Ground{Rules: []policy.Rule{{Action: policy.Allow, Target: testHost}}})
	}}
	for _, method := range []string{"DELETE", "POST"} {
		req := httptest.NewRequest(method, vault.Prefix, strings.NewReader(body))
		req.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		if method == "POST" && w.Code != 201 {
			r.t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}

// transport is a client in the sandbox.
func (r *rig) transport(http2 bool) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			to := r.listener.Addr().String()
			if r.o.direct {
				to = r.addr.String()
			}
			return new(net.Dialer).DialContext(ctx, "tcp4", to)
		},
		TLSClientConfig:    &tls.Config{RootCAs: r.roots},
		ForceAttemptHTTP2:  http2,
		DisableCompression: true,
		Protocols:          new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	r.t.Cleanup(t.CloseIdleConnections)
	return t
}

func (r *rig) url(path string) string {
	return fmt.Sprintf("https://%s:%d%s", testHost, r.port, path)
}

// do makes a request and reads the answer.
func (r *rig) do(rt http.RoundTripper, req *http.Request) (*http.Response, string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resp, err := rt.RoundTrip(req.WithContext(ctx))
	if err != nil {
		r.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: reading the answer: %v", req.Method, req.URL, err)
	}
	return resp, string(body)
}

func (r *rig) request(method, path, body string) *http.Request {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url(path), strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body == "" {
		req.Body = nil
	}
	return req
}

// raw is a connection on which a test writes what it likes.
func (r *rig) raw(overTLS bool) net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp4", r.listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if !overTLS {
		return c
	}
	return tls.Client(c, &tls.Config{RootCAs: r.roots, ServerName: testHost, NextProtos: []string{"http/1.1"}})
}

// versions runs a test over both versions of HTTP.
func versions(t *testing.T, f func(t *testing.T, http2 bool)) {
	t.Run("http1", func(t *testing.T) { f(t, false) })
	t.Run("http2", func(t *testing.T) { f(t, true) })
}
