package gateway

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestRequestHeaders(t *testing.T) {
	seen := make(chan *http.Request, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { seen <- r })
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))

	do(t, "GET", f.URL+"/sb/8080/x", nil,
		"Connection", "X-Hop, keep-alive", "X-Hop", "1", "Keep-Alive", "timeout=5", "Te", "trailers", "Proxy-Authorization", "p",
		"Authorization", "Bearer secret", "Cookie", "a=b", "OPEN-SANDBOX-API-KEY", "key", "OpenSandbox-Secure-Access", "tok",
		"Forwarded", "for=1.2.3.4", "X-Forwarded-For", "1.2.3.4", "X-Forwarded-Anything", "x", "X-Real-IP", "1.2.3.4",
		"OpenSandbox-Access-Renew", "skip", "X-EXECD-ACCESS-TOKEN", "api-key-of-some-sdk", "X-Request-ID", "theirs",
		"X-Own", "1", "X-Own", "2", "Accept", "text/plain", "OPENSANDBOX-EGRESS-AUTH", "tok", "OpenSandbox-Ingress-To", "sb-8080", "OPEN-SANDBOX-INGRESS", "sb-8080")
	r := wait(t, seen, "the request")

	for _, name := range []string{"X-Hop", "Keep-Alive", "Te", "Proxy-Authorization", "Authorization", "Cookie",
		"Open-Sandbox-Api-Key", "Opensandbox-Secure-Access", "Forwarded", "X-Forwarded-Anything", "X-Real-Ip",
		"Opensandbox-Access-Renew", "X-Execd-Access-Token", "Connection", "Opensandbox-Egress-Auth", "Opensandbox-Ingress-To", "Open-Sandbox-Ingress"} {
		if v, ok := r.Header[name]; ok {
			t.Errorf("%s reached the sandbox: %q", name, v)
		}
	}
	if got := r.Header["X-Own"]; !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("X-Own = %q, want both values in order", got)
	}
	want := map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": strings.TrimPrefix(f.URL, "http://"),
		"Accept": "text/plain", "X-Request-Id": "request-1",
	}
	for k, v := range want {
		if got := r.Header.Values(k); len(got) != 1 || got[0] != v {
			t.Errorf("%s = %q, want %q once", k, got, v)
		}
	}
	if r.Host != "localhost:8080" {
		t.Errorf("Host = %q", r.Host)
	}
}

func TestNoUserAgentIsAdded(t *testing.T) {
	heads := make(chan string, 1)
	addr := rawBackend(t, func(c netConn) {
		heads <- readHeader(c)
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	do(t, "GET", f.URL+"/sb/80/", nil, "User-Agent", "")
	if head := wait(t, heads, "the request"); strings.Contains(strings.ToLower(head), "user-agent") {
		t.Errorf("a User-Agent was made up:\n%s", head)
	}
}

func TestExecdGetsTheToken(t *testing.T) {
	seen := make(chan string, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- strings.Join(r.Header.Values("X-EXECD-ACCESS-TOKEN"), "|")
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	for port, want := range map[string]string{"44772": "token-of-sb", "44773": "", "8080": ""} {
		do(t, "GET", f.URL+"/sb/"+port+"/ping", nil, "X-EXECD-ACCESS-TOKEN", "from the caller")
		if got := wait(t, seen, "the request"); got != want {
			t.Errorf("port %s: token %q, want %q", port, got, want)
		}
	}
}

func TestResponseHeaders(t *testing.T) {
	addr := rawBackend(t, answerWith("HTTP/1.1 201 Created\r\nServer: evil/1\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n"+
		"Keep-Alive: timeout=9\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Request-ID: theirs\r\nX-App: yes\r\nContent-Length: 2\r\n\r\nok"))
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	resp := do(t, "GET", f.URL+"/sb/80/", nil)
	if resp.StatusCode != 201 || text(t, resp) != "ok" {
		t.Errorf("status %d", resp.StatusCode)
	}
	for _, name := range []string{"Server", "X-Hop", "Keep-Alive"} {
		if v, ok := resp.Header[name]; ok {
			t.Errorf("%s came through: %q", name, v)
		}
	}
	if got := resp.Header["Set-Cookie"]; !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("Set-Cookie = %q, want both", got)
	}
	if got := resp.Header["X-Request-Id"]; !slices.Equal(got, []string{"request-1"}) {
		t.Errorf("X-Request-Id = %q, want the server's own", got)
	}
	if got := resp.Header.Get("X-App"); got != "yes" {
		t.Errorf("X-App = %q", got)
	}
}

func TestLocations(t *testing.T) {
	tg := &Target{Port: 8080, Prefix: "/v1/sandboxes/sb/proxy/8080"}
	for in, want := range map[string]string{
		"/login":                           "/v1/sandboxes/sb/proxy/8080/login",
		"/":                                "/v1/sandboxes/sb/proxy/8080/",
		"//elsewhere.example/x":            "//elsewhere.example/x",
		"relative":                         "relative",
		"?q=1":                             "?q=1",
		"https://elsewhere.example/":       "https://elsewhere.example/",
		"http://localhost:8080/a":          "/v1/sandboxes/sb/proxy/8080/a",
		"http://localhost:8080":            "/v1/sandboxes/sb/proxy/8080/",
		"http://localhost:8080//evil.com":  "/v1/sandboxes/sb/proxy/8080/evil.com",
		"http://api.example/a?b":           "/v1/sandboxes/sb/proxy/8080/a?b",
		"https://api.example":              "/v1/sandboxes/sb/proxy/8080/",
		"https://api.example.evil.com/":    "https://api.example.evil.com/",
		"http://localhost:80801/a":         "http://localhost:80801/a",
		"http://localhost:8080.evil.com/a": "http://localhost:8080.evil.com/a",
		"":                                 "",
	} {
		if got := tg.locations([]string{in}, "api.example", true)[0]; got != want {
			t.Errorf("Location %q became %q, want %q", in, got, want)
		}
	}
}

// A program that wants TLS sends a client that came without on to it, and not
// back to where it came from.
func TestLocationsChangeToTLS(t *testing.T) {
	const host = "sb-8080.apps.example"
	for _, c := range []struct {
		t            Target
		in, off, tls string
	}{
		{Target{Port: 8080, Host: host}, "https://" + host + "/a", "https://" + host + "/a", "/a"},
		{Target{Port: 8080, Host: host}, "http://" + host + "/a", "/a", "/a"},
		{Target{Port: 8080, Prefix: "/p"}, "https://" + host + "/a", "https://" + host + "/a", "/p/a"},
		{Target{Port: 8080, Prefix: "/p"}, "http://" + host, "/p/", "/p/"},
		{Target{Port: 8080, Prefix: "/p"}, "https://localhost:8080/a", "/p/a", "/p/a"},
	} {
		for secure, want := range map[bool]string{false: c.off, true: c.tls} {
			if got := c.t.locations([]string{c.in}, host, secure)[0]; got != want {
				t.Errorf("Location %q with TLS %v became %q, want %q", c.in, secure, got, want)
			}
		}
	}
}

func TestRedirectToTLSReachesTheClient(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "https://"+r.Header.Get("X-Forwarded-Host")+"/a")
		w.WriteHeader(http.StatusMovedPermanently)
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	req, _ := http.NewRequest("GET", f.URL+"/sb/80/a", nil)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, want := resp.Header.Get("Location"), "https://"+req.URL.Host+"/a"; got != want {
		t.Errorf("Location = %q, want %q", got, want)
	}
}

func TestPathAndQueryPassUnchanged(t *testing.T) {
	lines := make(chan string, 1)
	addr := rawBackend(t, func(c netConn) {
		line, _, _ := strings.Cut(readHeader(c), "\r\n")
		lines <- line
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	for _, path := range []string{"/", "/a%2Fb/c%20d", "//double//slash/", "/..%2f../up", "/a/../b/./c", "/a;b=c:d@e", "/%E4%B8%AD",
		"/q?", "/q?x=1&y=%20;z&&", "/q?a[]=1&b=/?", "/~user/!$&'()*+,=", "/%41%7e"} {
		conn := dialRaw(t, f)
		io.WriteString(conn, "GET /sb/80"+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if got, want := wait(t, lines, "the request for "+path), "GET "+path+" HTTP/1.1"; got != want {
			t.Errorf("the sandbox saw %q, want %q", got, want)
		}
	}
}

func TestEveryMethod(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Method", r.Method)
		w.Header().Set("Content-Length", "5")
		if r.Method != "HEAD" {
			io.WriteString(w, "hello")
		}
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
		resp := do(t, m, f.URL+"/sb/80/", nil)
		if resp.Header.Get("X-Method") != m || resp.ContentLength != 5 {
			t.Errorf("%s arrived as %q, length %d", m, resp.Header.Get("X-Method"), resp.ContentLength)
		}
	}
}
