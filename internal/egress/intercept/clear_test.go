package intercept

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
)

// HTTP/2 without TLS: each request is judged by its own authority.
func TestHTTP2WithoutTLS(t *testing.T) {
	h, ch := listening(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "got "+r.Header.Get("Authorization")) })
	r := newRig(t, rigOptions{plain: true, http2: true, rule: 4, request: func(method, target string) string {
		if method == "DELETE" || strings.HasPrefix(target, "/private") {
			return "rule 4 does not allow it"
		}
		return ""
	}}, h)
	r.bind(`,"schemes":["http"]`, bearer)
	rt := r.transport(true)
	ask := func(method, host, path string) (int, string) {
		req := r.request(method, path, "")
		req.URL.Scheme, req.Host = "http", host
		resp, body := r.do(rt, req)
		if resp.ProtoMajor != 2 {
			t.Fatalf("over %s", resp.Proto)
		}
		return resp.StatusCode, body
	}
	stars := strings.Repeat("*", len(testValue))
	for _, x := range []struct {
		method, host, path string
		status             int
		body               string
	}{
		{"GET", testHost, "/", 200, "got Bearer " + stars},
		{"GET", fmt.Sprintf("%s:%d", strings.ToUpper(testHost), r.port), "/", 200, "got Bearer " + stars},
		{"GET", otherHost, "/", 200, "got "},
		{"GET", "evil.example.com", "/", 403, "not in the policy"},
		{"GET", testHost + ":1", "/", 403, "port"},
		{"GET", "127.0.0.1", "/", 403, "names no host"},
		{"GET", "10.0.0.1", "/", 403, "10.0.0.1"},
		{"DELETE", testHost, "/", 403, "rule 4 does not allow it"},
		{"GET", otherHost, "/private/x", 403, "rule 4 does not allow it"},
	} {
		status, body := ask(x.method, x.host, x.path)
		if status != x.status || !strings.Contains(body, x.body) || status == 403 && !strings.Contains(body, codePolicy) {
			t.Errorf("%s %s%s: %d %s", x.method, x.host, x.path, status, body)
		}
		if status == 200 {
			if got := <-ch; got.Proto != "HTTP/2.0" || x.host == testHost && got.Header.Get("Authorization") != "Bearer "+testValue {
				t.Errorf("arrived: %+v", got)
			}
		}
	}
	if len(ch) > 0 {
		t.Error("a request that was refused arrived")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.denied) != 6 || r.denied[0].Claim.Name != "evil.example.com" || r.denied[0].Claim.Protocol != proxy.HTTP2 || r.denied[4].Rule != 4 {
		t.Errorf("told: %+v", r.denied)
	}
	if s := r.i.Stats(); s.Conns != 1 || s.Injected != 2 {
		t.Errorf("%+v", s)
	}
}

// A server may send its settings before the client has said anything.
func TestServersThatBegin(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f := http2.NewFramer(c, c)
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		_, _ = io.CopyN(io.Discard, c, int64(len(http2.ClientPreface)))
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			if fr, ok := fr.(*http2.HeadersFrame); ok {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: fr.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true, EndStream: true}) // :status 200
			}
		}
	}()
	r := rigTo(t, rigOptions{plain: true, http2: true}, l.Addr().(*net.TCPAddr).AddrPort(), nil)
	c := r.raw(false)
	time.Sleep(10 * time.Millisecond) // its settings may come first, or not: both must do
	cc, err := new(http2.Transport).NewClientConn(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		req := r.request("GET", "/", "")
		req.URL.Scheme = "http"
		if resp, body := r.do(cc, req); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

// What speaks no HTTP/2 is said not to, in HTTP/2.
func TestHTTP2ToWhatDoesNotSpeakIt(t *testing.T) {
	h, _ := listening(nil)
	r := newRig(t, rigOptions{plain: true}, h)
	req := r.request("GET", "/", "")
	req.URL.Scheme = "http"
	resp, body := r.do(r.transport(true), req)
	if resp.StatusCode != 502 || !strings.Contains(body, codeUnreachable) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
