package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/publicsuffix"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// secured serves the API by TLS and HTTP/2 and makes a client that finds every
// host name there, keeps cookies as browsers do, and follows redirects.
func (f *fixture) secured() *http.Client {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = f.s.HTTPServer()
	srv.EnableHTTP2 = true
	srv.StartTLS()
	f.t.Cleanup(srv.Close)
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		f.t.Fatal(err)
	}
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the test server's own certificate
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
		},
	}
	f.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Jar: jar, Timeout: patience}
}

// browse opens a page or, with another mode, a part of one.
func browse(t testing.TB, c *http.Client, target, mode string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", target, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Mode", mode)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if mode == "navigate" {
		req.Header.Set("Sec-Fetch-Dest", "document")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// signedURL asks the API as the command line does.
func (f *fixture) signedURL(id string, port int, for_ time.Duration) string {
	f.t.Helper()
	path := fmt.Sprintf("/v1/sandboxes/%s/endpoints/%d?expires=%d", id, port, time.Now().Add(for_).Unix())
	return "https://" + fmt.Sprint(f.call("GET", path, "").is(200, "").member("endpoint"))
}

// withOwnKeys signs with paddock's own signatures.
func withOwnKeys(t testing.TB) func(*Options) {
	return func(o *Options) { o.Ingress = Ingress{Keys: testKeys(t, false), BaseDomain: testBase + ":8443"} }
}

func TestBrowserOpensSignedAddress(t *testing.T) {
	f := withIngress(t, withOwnKeys(t))
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	f.m.dial = program(t, echo)
	c := f.secured()
	signed := f.signedURL("sb", 8000, time.Hour)

	// The signature is gone from the address that the page ends up with.
	resp, body := browse(t, c, signed+"/app?x=1", "navigate")
	if resp.StatusCode != 200 || resp.Request.URL.String() != "https://sb-8000.apps.test:8443/app?x=1" || resp.ProtoMajor != 2 {
		t.Fatalf("%s %s: %d %s", resp.Proto, resp.Request.URL, resp.StatusCode, body)
	}
	var s seen
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Header["Cookie"] != nil || s.URI != "/app?x=1" || s.Host != "sb-8000.apps.test:8443" ||
		s.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("the application saw %+v", s)
	}
	cookies := resp.Request.Response.Cookies()
	if len(cookies) != 1 || cookies[0].Name != "__Host-paddock-access" || !cookies[0].HttpOnly || !cookies[0].Secure ||
		cookies[0].SameSite != http.SameSiteLaxMode || cookies[0].Domain != "" || cookies[0].Path != "/" || cookies[0].MaxAge < 3500 || cookies[0].MaxAge > 3600 {
		t.Errorf("cookies = %+v", cookies)
	}
	if l := resp.Request.Response; l.StatusCode != 303 || l.Header.Get("Referrer-Policy") != "no-referrer" || l.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("redirect: %d %v", l.StatusCode, l.Header)
	}
	// What the page loads, and what it sends.
	if resp, body := browse(t, c, "https://sb-8000.apps.test:8443/static/app.js", "no-cors"); resp.StatusCode != 200 {
		t.Errorf("a script: %d %s", resp.StatusCode, body)
	}
	if resp, body := browse(t, c, "https://sb-8000.apps.test:8443/api", "cors", "Origin", "https://sb-8000.apps.test:8443", "Authorization", "Bearer of-the-application"); resp.StatusCode != 200 ||
		!strings.Contains(body, "of-the-application") {
		t.Errorf("fetch: %d %s", resp.StatusCode, body)
	}
	// With a strict policy browsers hide the origin of a form, to all.
	if resp, body := browse(t, c, "https://sb-8000.apps.test:8443/form", "navigate", "Origin", "null"); resp.StatusCode != 200 {
		t.Errorf("a form of a strict page: %d %s", resp.StatusCode, body)
	}
	if resp, _ := browse(t, c, "https://sb-8000.apps.test:8443/form", "navigate", "Origin", "null", "Sec-Fetch-Site", "same-site"); resp.StatusCode != 401 {
		t.Errorf("a form of another sandbox's strict page: %d", resp.StatusCode)
	}
	// A link from elsewhere opens the page; nothing else from there does anything.
	if resp, _ := browse(t, c, "https://sb-8000.apps.test:8443/", "navigate", "Sec-Fetch-Site", "cross-site"); resp.StatusCode != 200 {
		t.Errorf("a link from another site: %d", resp.StatusCode)
	}
	if resp, _ := browse(t, c, "https://sb-8000.apps.test:8443/", "no-cors", "Sec-Fetch-Site", "same-site"); resp.StatusCode != 401 {
		t.Errorf("another sandbox's page: %d", resp.StatusCode)
	}
	// Neither other ports nor other sandboxes are open.
	for _, host := range []string{"sb-8001", "other-8000", "sb-44772"} {
		if resp, body := browse(t, c, "https://"+host+".apps.test:8443/", "navigate"); resp.StatusCode != 401 {
			t.Errorf("%s: %d %s", host, resp.StatusCode, body)
		}
	}
}

// Cookies of applications stay with their host name, even if a browser would let
// them out; the gateway's are out of their reach.
func TestCookiesOfApplications(t *testing.T) {
	f := withIngress(t, withOwnKeys(t))
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	f.m.dial = program(t, echo)
	c := f.secured()
	q := url.Values{"set": {
		"Set-Cookie:session=1; Path=/; HttpOnly", "Set-Cookie:wide=1; Domain=apps.test; Path=/", "Set-Cookie:wider=1; domain=.test",
		"Set-Cookie:__Host-paddock-access=forged; Path=/; Secure", "Set-Cookie: paddock-access=forged; Path=/", "Set-Cookie:PADDOCK-ACCESS=forged",
		"Clear-Site-Data:\"cookies\"", "Alt-Svc:h3=\":443\"", "X-Accel-Redirect:/etc",
	}}.Encode()
	browse(t, c, f.signedURL("sb", 8000, time.Hour)+"/", "navigate")
	browse(t, c, f.signedURL("other", 8000, time.Hour)+"/", "navigate")
	resp, _ := browse(t, c, "https://sb-8000.apps.test:8443/login?"+q, "cors")
	for _, h := range []string{"Clear-Site-Data", "Alt-Svc", "X-Accel-Redirect"} {
		if resp.Header[h] != nil {
			t.Errorf("%s came through", h)
		}
	}
	if got := fmt.Sprint(resp.Header["Set-Cookie"]); got != "[session=1; Path=/; HttpOnly wide=1; Path=/ wider=1]" {
		t.Errorf("Set-Cookie = %s", got)
	}
	var s seen
	_, body := browse(t, c, "https://sb-8000.apps.test:8443/login", "cors")
	if json.Unmarshal([]byte(body), &s); s.Header.Get("Cookie") != "session=1; wide=1; wider=1" {
		t.Errorf("the application got %q back", s.Header.Get("Cookie"))
	}
	s = seen{}
	_, body = browse(t, c, "https://other-8000.apps.test:8443/login", "cors")
	if json.Unmarshal([]byte(body), &s); s.URI != "/login" || s.Header["Cookie"] != nil {
		t.Errorf("another sandbox got %q", s.Header["Cookie"])
	}
	// On host names that sandboxes share there are none at all.
	for _, v := range []visit{{path: "/ingress/sb/80/?" + q}, {path: "/?" + q, header: []string{"OpenSandbox-Ingress-To", "sb-80"}}} {
		a := v.send(t, f.url, "OPEN-SANDBOX-API-KEY", testKey, "Cookie", "session=1", "Authorization", "Basic dTpw", "Origin", "null")
		if a.header["Set-Cookie"] != nil || strings.Contains(a.body, "session=1") {
			t.Errorf("%+v: cookies %q, %s", v, a.header["Set-Cookie"], a.body)
		}
		if shared := v.header == nil; shared != strings.Contains(a.header.Get("Content-Security-Policy"), "sandbox") || shared == strings.Contains(a.body, "Basic") ||
			shared != (a.header.Get("Access-Control-Allow-Origin") == "null") {
			t.Errorf("%+v: %v %s", v, a.header, a.body)
		}
	}
	// Beneath the API's path they stay there.
	a := (visit{path: "/v1/sandboxes/sb/proxy/80/?" + q}).send(t, f.url, "OPEN-SANDBOX-API-KEY", testKey)
	if got := a.header["Set-Cookie"]; len(got) != 3 || got[0] != "session=1; Path=/v1/sandboxes/sb/proxy/80/; HttpOnly" || got[2] != "wider=1" {
		t.Errorf("proxy: %q", got)
	}
}

// A frame may keep no cookie, so its address keeps the signature. So does a
// client that is no browser.
func TestSignedAddressWithoutBrowser(t *testing.T) {
	f := withIngress(t, withOwnKeys(t))
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusFound)
			return
		}
		echo(w, r)
	})
	c := f.secured()
	at := f.signedURL("sb", 8000, time.Hour)
	for _, header := range [][]string{{"Sec-Fetch-Dest", "iframe"}, {"Sec-Fetch-Mode", "cors"}} {
		resp, body := browse(t, c, at+"/old", "navigate", header...)
		if resp.StatusCode != 200 || resp.Request.URL.String() != at+"/new" || !strings.Contains(body, `"URI":"/new"`) {
			t.Errorf("%v: %s %d %s", header, resp.Request.URL, resp.StatusCode, body)
		}
	}
	// Where a redirect must not lead.
	for _, path := range []string{"//evil.example/", "/\\evil.example/", "///evil.example", ""} {
		req, _ := http.NewRequest("GET", at, nil)
		req.URL.Opaque = "//" + req.URL.Host + req.URL.Path + path
		req.Header.Set("Sec-Fetch-Mode", "navigate")
		resp, err := c.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if l := resp.Header.Get("Location"); resp.StatusCode != 303 || !strings.HasPrefix(l, "/") || strings.HasPrefix(l, "//") || strings.HasPrefix(l, `/\`) {
			t.Errorf("%q leads to %q (%d)", path, l, resp.StatusCode)
		}
	}
}

// An address is given out without a slash at its end. A browser is sent to where
// relative names lead to the application; other clients get what they asked for.
func TestBrowserIsSentToTheSlash(t *testing.T) {
	f := withIngress(t, withOwnKeys(t), func(o *Options) { o.APIKey, o.NoAuth = "", true })
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	later := uint64(time.Now().Add(time.Hour).Unix())
	signed := address.FormatExpires(later) + "/" + f.s.opts.Ingress.Keys.Sign("sb", 8000, later)
	last := signed[strings.IndexByte(signed, '/')+1:]
	for path, want := range map[string]string{
		"/ingress/sb/8000":                     "8000/",
		"/ingress/sb/8000?x=1":                 "8000/?x=1",
		"/ingress/sb/8000/" + signed:           last + "/",
		"/ingress/sb/8000/" + signed + "/":     "",
		"/ingress/sb/8000/" + signed + "/page": "",
		"/v1/sandboxes/sb/proxy/8000":          "8000/",
		"/sandboxes/sb/proxy/8000?x":           "8000/?x",
		"/v1/sandboxes/sb/proxy/8000/":         "",
	} {
		status := 307
		if want == "" {
			status = 200
		}
		if a := (visit{path: path}).send(t, f.url, "Sec-Fetch-Mode", "navigate"); a.status != status || a.header.Get("Location") != want {
			t.Errorf("%s: %d to %q", path, a.status, a.header.Get("Location"))
		}
		if a := (visit{path: path}).send(t, f.url); a.status != 200 {
			t.Errorf("%s of another client: %d %s", path, a.status, a.body)
		}
	}
	framed := visit{host: "sb-8000." + testBase, path: "/" + signed}
	if a := framed.send(t, f.url, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"); a.status != 307 || a.header.Get("Location") != last+"/" || a.header["Set-Cookie"] == nil {
		t.Errorf("in a frame: %d %v", a.status, a.header)
	}
}

// The cookie of a frame is kept apart for each site that shows the frame, where
// browsers take it at all.
func TestCookieOfFrames(t *testing.T) {
	for host, want := range map[string]string{
		"https://sb-8000.apps.test:8443": "__Host-paddock-access=…; HttpOnly; Secure; SameSite=None; Partitioned",
		"http://sb-8000.localhost:8080":  "paddock-access=…; HttpOnly; Secure; SameSite=None; Partitioned",
		"http://sb-8000.apps.test":       "paddock-access=…; HttpOnly; SameSite=Lax",
		"http://sb-8000.xlocalhost":      "paddock-access=…; HttpOnly; SameSite=Lax",
	} {
		at, err := url.Parse(host)
		if err != nil {
			t.Fatal(err)
		}
		f := withIngress(t, func(o *Options) {
			_, base, _ := strings.Cut(at.Hostname(), ".")
			o.Ingress = Ingress{Keys: testKeys(t, false), BaseDomain: base, Secure: at.Scheme == "https"}
		})
		f.m.put("sb", sandbox.Running)
		f.m.dial = program(t, echo)
		later := uint64(time.Now().Add(time.Hour).Unix())
		signed := "/" + address.FormatExpires(later) + "/" + f.s.opts.Ingress.Keys.Sign("sb", 8000, later)
		a := (visit{host: at.Host, path: signed + "/x"}).send(t, f.url, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "iframe")
		got := a.header["Set-Cookie"]
		if a.status != 200 || len(got) != 1 {
			t.Fatalf("%s: %d %q", host, a.status, got)
		}
		name, rest, _ := strings.Cut(got[0], "=")
		_, attributes, _ := strings.Cut(rest, "; Path=/; Max-Age=3600; ")
		if name+"=…; "+attributes != want {
			t.Errorf("%s: %s", host, got[0])
		}
	}
}

func TestWebSocketByEveryForm(t *testing.T) {
	f := withIngress(t, withOwnKeys(t))
	own := f.own()
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil) // checks the Origin against the Host
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	talk := func(target string, o *websocket.DialOptions) error {
		c, _, err := websocket.Dial(ctx, target, o)
		if err != nil {
			return err
		}
		defer c.CloseNow()
		if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
			return err
		}
		if _, msg, err := c.Read(ctx); err != nil || string(msg) != "hello" {
			return fmt.Errorf("echo %q: %w", msg, err)
		}
		return c.Close(websocket.StatusNormalClosure, "")
	}
	later := uint64(time.Now().Add(time.Hour).Unix())
	for form, v := range forms("sb", 8000, later, f.s.opts.Ingress.Keys.Sign("sb", 8000, later)) {
		o := &websocket.DialOptions{Host: v.host, HTTPHeader: http.Header{}}
		for i := 0; i < len(v.header); i += 2 {
			o.HTTPHeader.Set(v.header[i], v.header[i+1])
		}
		if err := talk(serverOf(f, own, form)+v.path, o); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	// From a page, with the cookie: by TLS, where HTTP/2 is spoken too.
	c := f.secured()
	browse(t, c, f.signedURL("sb", 8000, time.Hour)+"/", "navigate")
	const at = "https://sb-8000.apps.test:8443"
	header := func(origin string) *websocket.DialOptions {
		return &websocket.DialOptions{HTTPClient: c, HTTPHeader: http.Header{"Origin": {origin}}}
	}
	if err := talk(at, header(at)); err != nil {
		t.Errorf("from the application's page: %v", err)
	}
	if err := talk(at, header("https://other-8000.apps.test:8443")); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("from another sandbox's page: %v", err)
	}
}

// HTTP/2 without TLS, where it is switched on: many requests on one connection,
// events as they come, large bodies both ways, an answer before the body's end.
func TestHTTP2(t *testing.T) {
	f := withIngress(t, func(o *Options) { o.H2C = true })
	f.m.put("sb", sandbox.Running)
	next := make(chan struct{})
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				http.NewResponseController(w).Flush()
				<-next
			}
		case "/refuse":
			w.WriteHeader(413)
		default:
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, r.Body)
		}
	})
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	dials := 0
	tr := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: patience}
	send := func(method, path string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, f.url+"/ingress/sb/80"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("OpenSandbox-Secure-Access", "token-of-sb")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if resp.ProtoMajor != 2 {
			t.Errorf("%s", resp.Proto)
		}
		return resp
	}
	events := send("GET", "/events", nil)
	one := make([]byte, len("data: 0\n\n"))
	for i := range 3 {
		if _, err := io.ReadFull(events.Body, one); err != nil || string(one) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("event %d: %q %v", i, one, err)
		}
		next <- struct{}{}
	}
	const large = 8 << 20
	if n, err := io.Copy(io.Discard, send("POST", "/", io.LimitReader(zeros{}, large)).Body); n != large || err != nil {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if resp := send("POST", "/refuse", io.LimitReader(zeros{}, large)); resp.StatusCode != 413 {
		t.Errorf("status %d", resp.StatusCode)
	}
	// The connection is still good.
	if resp := send("GET", "/", nil); resp.StatusCode != 200 || dials != 1 {
		t.Errorf("status %d, %d connections", resp.StatusCode, dials)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Over plain HTTP browsers don't say which page has them send a request, so the
// answers to what only the cookie opens say which pages may use them.
func TestCookieWithoutSite(t *testing.T) {
	f := withIngress(t, withOwnKeys(t))
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	signed := strings.TrimPrefix(f.signedURL("sb", 8000, time.Hour), "https://sb-8000."+testBase+":8443")
	const host = "sb-8000." + testBase + ":8443"
	opened := (visit{host: host, path: signed + "/"}).send(t, f.url, "Accept", "text/html")
	if opened.status != 303 {
		t.Fatalf("%d %s", opened.status, opened.body)
	}
	cookie, _, _ := strings.Cut(opened.header.Get("Set-Cookie"), ";")
	const self, none = "frame-ancestors 'self'", "frame-ancestors 'none'"
	for _, c := range []struct {
		set    url.Values
		header []string
		corp   string
		csp    []string
	}{
		{nil, []string{"Cookie", cookie}, "same-origin", []string{self}},
		{nil, []string{"Cookie", cookie, "Referer", "http://" + host + "/"}, "same-origin", []string{self}},
		{url.Values{"set": {"Cross-Origin-Resource-Policy:cross-origin", "Content-Security-Policy:default-src 'self'; frame-ancestors 'none'"}},
			[]string{"Cookie", cookie}, "same-origin", []string{"default-src 'self'; frame-ancestors 'none'", self}},
		{url.Values{"set": {"X-Frame-Options:DENY"}}, []string{"Cookie", cookie}, "same-origin", []string{none}},
		{url.Values{"set": {"X-Frame-Options:SAMEORIGIN"}}, []string{"Cookie", cookie}, "same-origin", []string{self}},
		{url.Values{"set": {"X-Frame-Options:DENY", "Content-Security-Policy:frame-ancestors *"}}, []string{"Cookie", cookie}, "same-origin", []string{"frame-ancestors *", self}},
		// Who says where the request comes from, or has more than the cookie.
		{nil, []string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, "", nil},
		{nil, []string{"Cookie", cookie, "OPEN-SANDBOX-API-KEY", testKey}, "", nil},
	} {
		a := (visit{host: host, path: "/a?" + c.set.Encode()}).send(t, f.url, c.header...)
		if a.status != 200 || a.header.Get("Cross-Origin-Resource-Policy") != c.corp || !slices.Equal(a.header["Content-Security-Policy"], c.csp) {
			t.Errorf("%v %v: %d, %q %q", c.set, c.header[2:], a.status, a.header.Get("Cross-Origin-Resource-Policy"), a.header["Content-Security-Policy"])
		}
	}
	if a := (visit{host: host, path: signed + "/a"}).send(t, f.url, "Accept", "*/*"); a.status != 200 || a.header["Content-Security-Policy"] != nil {
		t.Errorf("with the signature: %d %v", a.status, a.header)
	}
}
