package server

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const testBase = "apps.test"

func testKeys(t testing.TB, short bool) *address.Keys {
	t.Helper()
	keys, active := map[string][]byte{}, ""
	if short {
		keys["a"], active = []byte("a key of the protocol"), "a"
	}
	k, err := address.New([]byte("a secret of thirty-two bytes....."), keys, active)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// withIngress makes all forms work on the API's port.
func withIngress(t testing.TB, change ...func(*Options)) *fixture {
	return start(t, append([]func(*Options){func(o *Options) {
		o.Ingress = Ingress{Keys: testKeys(t, true), BaseDomain: testBase}
	}}, change...)...)
}

// own serves the forms alone, as on a listener of their own.
func (f *fixture) own() string {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = f.s.IngressServer()
	srv.Start()
	f.t.Cleanup(srv.Close)
	return srv.URL
}

// seen is what a program in a sandbox saw of a request.
type seen struct {
	Method, Host, URI string
	Header            http.Header
	Body              string
}

// echo is a program that tells what it saw. The query can ask for headers.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	for _, h := range r.URL.Query()["set"] {
		k, v, _ := strings.Cut(h, ":")
		w.Header().Add(k, v)
	}
	json.NewEncoder(w).Encode(seen{r.Method, r.Host, r.RequestURI, r.Header, string(body)})
}

// visit is a request by any form.
type visit struct {
	host, path string
	header     []string
}

// send sends a visit to a server, whatever its host name is.
func (v visit) send(t testing.TB, server string, header ...string) answered {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", server+v.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.host != "" {
		req.Host = v.host
	}
	for all, i := slices.Concat(v.header, header), 0; i < len(all); i += 2 {
		req.Header.Add(all[i], all[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{t, resp.StatusCode, resp.Header, string(b)}
}

// forms are every way to a port, with a signature or without.
func forms(id string, port int, expires uint64, sig string) map[string]visit {
	label, p := address.Label(id, port), strconv.Itoa(port)
	path, rest := "/"+id+"/"+p, ""
	if sig != "" {
		until := address.FormatExpires(expires)
		label += "-" + until + "-" + sig
		path += "/" + until + "/" + sig
		rest = "/" + until + "/" + sig
	}
	all := map[string]visit{
		"path":       {path: "/ingress" + path + "/x?q=1"},
		"header":     {path: "/x?q=1", header: []string{"OpenSandbox-Ingress-To", label}},
		"old header": {path: "/x?q=1", header: []string{"OPEN-SANDBOX-INGRESS", label}},
		"own path":   {path: path + "/x?q=1"},
	}
	if len(label) <= address.MaxLabel {
		all["host"] = visit{host: label + "." + testBase + ":8443", path: "/x?q=1"}
		all["own host"] = all["host"]
	}
	if sig != "" {
		all["host, signed path"] = visit{host: address.Label(id, port) + "." + testBase, path: rest + "/x?q=1"}
	}
	all["own header"] = all["header"]
	return all
}

// serverOf is the URL that a form is for.
func serverOf(f *fixture, own, form string) string {
	if strings.HasPrefix(form, "own") {
		return own
	}
	return f.url
}

func TestEveryFormForThoseWhoMay(t *testing.T) {
	for _, short := range []bool{true, false} {
		f := withIngress(t, func(o *Options) { o.Ingress.Keys = testKeys(t, short) })
		own := f.own()
		f.m.put("sb", sandbox.Running)
		f.m.dial = program(t, echo)
		later := uint64(time.Now().Add(time.Hour).Unix())
		check := func(name, form string, a answered) {
			t.Helper()
			var s seen
			if a.status != 200 || json.Unmarshal([]byte(a.body), &s) != nil || s.URI != "/x?q=1" {
				t.Errorf("%s by %s: %d %s", form, name, a.status, a.body)
				return
			}
			for _, h := range []string{"Open-Sandbox-Api-Key", "Opensandbox-Secure-Access", "Opensandbox-Ingress-To", "Open-Sandbox-Ingress", "X-Execd-Access-Token"} {
				if s.Header[h] != nil {
					t.Errorf("%s by %s: %s reached the sandbox", form, name, h)
				}
			}
			if a.header.Get("Reverse-Proxy-Server-PowerBy") != "OpenSandbox-ingress" {
				t.Errorf("%s does not say that it is the gateway's", form)
			}
		}
		for form, v := range forms("sb", 8000, 0, "") {
			check("key", form, v.send(t, serverOf(f, own, form), "OPEN-SANDBOX-API-KEY", testKey))
			check("token", form, v.send(t, serverOf(f, own, form), "OpenSandbox-Secure-Access", "token-of-sb"))
		}
		for form, v := range forms("sb", 8000, later, f.s.opts.Ingress.Keys.Sign("sb", 8000, later)) {
			check("signature", form, v.send(t, serverOf(f, own, form)))
			check("signature and token", form, v.send(t, serverOf(f, own, form), "OpenSandbox-Secure-Access", "token-of-sb"))
		}
	}
}

// Strangers learn nothing: not even whether a sandbox exists.
func TestEveryFormForStrangers(t *testing.T) {
	f := withIngress(t)
	own := f.own()
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	f.m.put("paused", sandbox.Paused)
	f.m.dial = func(context.Context, string, int) (net.Conn, error) {
		t.Error("somebody got in")
		return nil, io.ErrClosedPipe
	}
	keys := f.s.opts.Ingress.Keys
	now := time.Now()
	later, past := uint64(now.Add(time.Hour).Unix()), uint64(now.Add(-time.Minute).Unix())
	until := address.FormatExpires(later)
	cookies := func(id string, port int) []string {
		c := keys.Cookie(id, port, until)
		return []string{"Cookie", "paddock-access=" + c + "; __Host-paddock-access=" + c}
	}
	expired := keys.Cookie("sb", 8000, address.FormatExpires(past))
	for name, c := range map[string]struct {
		expires uint64
		sig     string
		header  []string
	}{
		"nothing":                {},
		"wrong key":              {header: []string{"OPEN-SANDBOX-API-KEY", testKey + "x"}},
		"two keys":               {header: []string{"OPEN-SANDBOX-API-KEY", "x", "OPEN-SANDBOX-API-KEY", testKey}},
		"other's token":          {header: []string{"OpenSandbox-Secure-Access", "token-of-other"}},
		"empty token":            {header: []string{"OpenSandbox-Secure-Access", ""}},
		"two tokens":             {header: []string{"OpenSandbox-Secure-Access", "x", "OpenSandbox-Secure-Access", "token-of-sb"}},
		"key as token":           {header: []string{"OpenSandbox-Secure-Access", testKey}},
		"token as key":           {header: []string{"OPEN-SANDBOX-API-KEY", "token-of-sb"}},
		"egress token":           {header: []string{"OPENSANDBOX-EGRESS-AUTH", "egress-of-sb"}},
		"authorization":          {header: []string{"Authorization", "Bearer " + testKey}},
		"other's signature":      {expires: later, sig: keys.Sign("other", 8000, later)},
		"other port's signature": {expires: later, sig: keys.Sign("sb", 8001, later)},
		"other time's signature": {expires: later + 1, sig: keys.Sign("sb", 8000, later)},
		"expired signature":      {expires: past, sig: keys.Sign("sb", 8000, past)},
		"unknown key":            {expires: later, sig: keys.Sign("sb", 8000, later)[:8] + "b"},
		"wrong token with a good signature": {expires: later, sig: keys.Sign("sb", 8000, later),
			header: []string{"OpenSandbox-Secure-Access", "token-of-other"}},
		"other's cookie":         {header: cookies("other", 8000)},
		"other port's cookie":    {header: cookies("sb", 8001)},
		"expired cookie":         {header: []string{"Cookie", "paddock-access=" + expired}},
		"signature as cookie":    {header: []string{"Cookie", "paddock-access=" + until + "." + keys.Sign("sb", 8000, later)}},
		"good cookie, too late":  {header: []string{"Cookie", strings.Repeat("paddock-access=x; ", 4) + "paddock-access=" + keys.Cookie("sb", 8000, until)}},
		"good cookie, long ago":  {header: []string{"Cookie", "paddock-access=" + keys.Cookie("sb", 8000, "0")}},
		"cookie from elsewhere":  {header: append(cookies("sb", 8000), "Origin", "http://other-8000."+testBase)},
		"cookie from a sibling":  {header: append(cookies("sb", 8000), "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors")},
		"cookie from nowhere":    {header: append(cookies("sb", 8000), "Origin", "null")},
		"cookie from a frame":    {header: append(cookies("sb", 8000), "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe")},
		"cookie from other site": {header: append(cookies("sb", 8000), "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors")},
	} {
		for form, v := range forms("sb", 8000, c.expires, c.sig) {
			a := v.send(t, serverOf(f, own, form), c.header...)
			if a.status != 401 || !strings.HasPrefix(a.body, "OpenSandbox Ingress: ") {
				t.Errorf("%s, %s: %d %s", form, name, a.status, a.body)
			}
			// The same for a sandbox that does not exist, and one that is not ready.
			for _, id := range []string{"no", "paused"} {
				u := forms(id, 8000, c.expires, c.sig)[form]
				if b := u.send(t, serverOf(f, own, form), c.header...); b.status != a.status || b.body != a.body {
					t.Errorf("%s, %s: %q differs from %q for %s", form, name, b.body, a.body, id)
				}
			}
		}
	}
}

// A signature that has expired says so to whoever has it, and one that nothing
// can verify here is the gateway's lack. A token decides before both.
func TestSignaturesThatCannotHelp(t *testing.T) {
	f := withIngress(t, func(o *Options) { o.Ingress.Keys = testKeys(t, false) })
	own := f.own()
	f.m.put("sb", sandbox.Running)
	past, later := time.Now().Add(-time.Minute).Truncate(time.Second), uint64(time.Now().Add(time.Hour).Unix())
	expired := f.s.opts.Ingress.Keys.Sign("sb", 8000, uint64(past.Unix()))
	foreign := testKeys(t, true).Sign("sb", 8000, later)
	for form, v := range forms("sb", 8000, uint64(past.Unix()), expired) {
		if a := v.send(t, serverOf(f, own, form)); a.status != 401 || !strings.Contains(a.body, "expired at "+past.UTC().Format(time.RFC3339)) {
			t.Errorf("%s: %d %s", form, a.status, a.body)
		}
	}
	for _, id := range []string{"sb", "no"} {
		for form, v := range forms(id, 8000, later, foreign) {
			if form == "host, signed path" {
				continue // the protocol has no such form
			}
			if a := v.send(t, serverOf(f, own, form)); a.status != 503 || !strings.Contains(a.body, "gateway.signing_keys") {
				t.Errorf("%s of %s: %d %s", form, id, a.status, a.body)
			}
			if a := v.send(t, serverOf(f, own, form), "OpenSandbox-Secure-Access", "x"); a.status != 401 {
				t.Errorf("%s of %s with a wrong token: %d %s", form, id, a.status, a.body)
			}
		}
	}
}

func TestIngressErrors(t *testing.T) {
	f := withIngress(t)
	own := f.own()
	f.m.put("sb", sandbox.Running)
	f.m.put("paused", sandbox.Paused)
	key := []string{"OPEN-SANDBOX-API-KEY", testKey}
	for id, want := range map[string]struct {
		status int
		says   string
	}{"no": {404, `"no"`}, "paused": {503, "Resume it first"}} {
		for form, v := range forms(id, 8000, 0, "") {
			a := v.send(t, serverOf(f, own, form), key...)
			if a.status != want.status || !strings.HasPrefix(a.body, "OpenSandbox Ingress: ") || !strings.Contains(a.body, want.says) ||
				!strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
				t.Errorf("%s, %s: %d %s", form, id, a.status, a.body)
			}
		}
	}
	// A port on which nobody listens, and a program that speaks no HTTP.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()
	f.m.dial = tcpTo(dead)
	for form, v := range forms("sb", 8000, 0, "") {
		if a := v.send(t, serverOf(f, own, form), key...); a.status != 502 || !strings.Contains(a.body, "Nothing listens on port 8000") {
			t.Errorf("%s: %d %s", form, a.status, a.body)
		}
	}
	for _, v := range []visit{
		{path: "/ingress/sb"}, {path: "/ingress/sb/0/"}, {path: "/ingress/sb/080/"}, {path: "/ingress/SB/80/"}, {path: "/ingress/s%62/80/"},
		{path: "/ingress//80/"}, {path: "/ingress/"},
		{path: "/", header: []string{"OpenSandbox-Ingress-To", "sb"}}, {path: "/", header: []string{"OpenSandbox-Ingress-To", ""}},
		{path: "/", header: []string{"OpenSandbox-Ingress-To", "sb-80", "OpenSandbox-Ingress-To", "sb-81"}},
		{path: "/", header: []string{"OpenSandbox-Ingress-To", "SB-80"}},
		{host: "sb." + testBase, path: "/"}, {host: "." + testBase, path: "/"}, {host: "a.sb-80." + testBase, path: "/"}, {host: "sb-99999." + testBase, path: "/"},
		{host: "sb-80." + testBase, path: "/", header: []string{"OpenSandbox-Ingress-To", "other-80"}},
	} {
		if a := v.send(t, f.url, key...); a.status != 400 || !strings.HasPrefix(a.body, "OpenSandbox Ingress: bad route: ") {
			t.Errorf("%+v: %d %s", v, a.status, a.body)
		}
	}
	// The API is on its own port only, and nothing else is on the gateway's.
	for _, path := range []string{"/v1/sandboxes", "/health", "/"} {
		if a := (visit{path: path}).send(t, own, key...); a.status != 400 || !strings.HasPrefix(a.body, "OpenSandbox Ingress: bad route: ") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if a := (visit{path: "/status.ok"}).send(t, own); a.status != 200 || a.body != "OK" {
		t.Errorf("health: %d %s", a.status, a.body)
	}
	// What merely begins like the prefix is the API's.
	for _, path := range []string{"/ingress", "/ingressx/sb/80/"} {
		(visit{path: path}).send(t, f.url, key...).is(404, codeNoRoute)
	}
}

// Host names have no case and may end in a dot; nothing else about them gives.
func TestHostNames(t *testing.T) {
	f := withIngress(t)
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	raw := func(text string) (int, string) {
		t.Helper()
		c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, text)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	const auth = "OpenSandbox-Secure-Access: token-of-sb\r\nConnection: close\r\n\r\n"
	for _, c := range []struct {
		request string
		status  int
		uri     string
	}{
		{"GET /a HTTP/1.1\r\nHost: SB-80.Apps.TEST\r\n", 200, "/a"},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test.\r\n", 200, "/a"},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test:1\r\n", 200, "/a"},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test.:1\r\n", 200, "/a"},
		{"GET http://sb-80.apps.test/a?b HTTP/1.1\r\nHost: elsewhere\r\n", 200, "/a?b"}, // RFC 9112, 3.2.2
		{"GET /%2e%2e//a%2Fb/../c;d=%41 HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 200, "/%2e%2e//a%2Fb/../c;d=%41"},
		{"GET //evil.example/ HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 200, "//evil.example/"},
		{"GET /v1/sandboxes HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 200, "/v1/sandboxes"},
		{"GET /ingress/other/81/ HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 200, "/ingress/other/81/"},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test\r\nHost: other-80.apps.test\r\n", 400, ""},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test..\r\n", 401, ""}, // another host
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test@x\r\n", 400, ""},
		{"GET /a HTTP/1.1\r\nHost: sb-80.xapps.test\r\n", 401, ""},
		{"GET /a HTTP/1.1\r\nHost: sb-80.äpps.test\r\n", 400, ""},
		{"GET /a HTTP/1.1\r\nHost: sb%2d80.apps.test\r\n", 400, ""},
		{"CONNECT sb-80.apps.test:80 HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 400, ""},
		{"TRACE /a HTTP/1.1\r\nHost: sb-80.apps.test\r\n", 405, ""},
		// What Connection names is for this hop, and can't name what is set here.
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test\r\nConnection: X-Forwarded-For, Host, OpenSandbox-Secure-Access\r\n", 200, "/a"},
		{"GET /a HTTP/1.1\r\nHost: sb-80.apps.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\n", 501, ""},
	} {
		status, body := raw(c.request + auth)
		var s seen
		_ = json.Unmarshal([]byte(body), &s)
		if status != c.status || s.URI != c.uri {
			t.Errorf("%q: %d %s", c.request, status, body)
		}
		if s.URI != "" && (s.Header.Get("X-Forwarded-For") != "127.0.0.1" || !strings.Contains(strings.ToLower(s.Host), "sb-80.apps.test")) {
			t.Errorf("%q arrived as %+v", c.request, s)
		}
	}
}

func TestEgressAndExecdByEveryForm(t *testing.T) {
	f := withIngress(t)
	own := f.own()
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	later := uint64(time.Now().Add(time.Hour).Unix())
	for form, v := range forms("sb", sandbox.ExecdPort, later, f.s.opts.Ingress.Keys.Sign("sb", sandbox.ExecdPort, later)) {
		a := v.send(t, serverOf(f, own, form))
		if a.status != 200 || !strings.Contains(a.body, `"X-Execd-Access-Token":["token-of-sb"]`) {
			t.Errorf("execd, %s: %d %s", form, a.status, a.body)
		}
	}
	f.m.dial = func(context.Context, string, int) (net.Conn, error) {
		t.Error("the egress API is not in the sandbox")
		return nil, io.ErrClosedPipe
	}
	for form, v := range forms("sb", EgressPort, later, f.s.opts.Ingress.Keys.Sign("sb", EgressPort, later)) {
		v.path = strings.Replace(v.path, "/x?q=1", "/policy", 1)
		if a := v.send(t, serverOf(f, own, form)); a.status != 401 {
			t.Errorf("egress without its token, %s: %d %s", form, a.status, a.body)
		}
		if a := v.send(t, serverOf(f, own, form), "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb"); a.status != 200 || !strings.Contains(a.body, `"policy"`) {
			t.Errorf("egress, %s: %d %s", form, a.status, a.body)
		}
	}
}

// What looks like a signature and is none is the application's path, for those
// who may reach it otherwise.
func TestPathThatLooksSigned(t *testing.T) {
	f := withIngress(t)
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	for _, v := range []visit{{path: "/ingress/sb/80/x2qxvj/32ec6d3ba/y"}, {host: "sb-80." + testBase, path: "/x2qxvj/32ec6d3ba/y"}} {
		var s seen
		v.send(t, f.url, "OPEN-SANDBOX-API-KEY", testKey).is(200, "").into(&s)
		if s.URI != "/x2qxvj/32ec6d3ba/y" {
			t.Errorf("%+v arrived as %s", v, s.URI)
		}
	}
}

func TestIngressRenews(t *testing.T) {
	f := withIngress(t)
	own := f.own()
	f.m.put("sb", sandbox.Running)
	f.m.byID["sb"].Spec.Extensions = map[string]string{extensionRenew: "600"}
	f.m.dial = program(t, echo)
	all := forms("sb", 80, 0, "")
	for form, v := range all {
		v.send(t, serverOf(f, own, form), "OpenSandbox-Secure-Access", "token-of-sb")
		v.send(t, serverOf(f, own, form), "OpenSandbox-Secure-Access", "token-of-sb", "OpenSandbox-Access-Renew", "skip")
		v.send(t, serverOf(f, own, form))
	}
	if len(f.m.renewals) != len(all) {
		t.Errorf("%d renewals by %d forms", len(f.m.renewals), len(all))
	}
}

func TestLimitsOfOneSandbox(t *testing.T) {
	f := withIngress(t, func(o *Options) { o.Limits.PerSandbox, o.Limits.Header = 1, 8<<10 })
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	begun, release := make(chan struct{}), make(chan struct{})
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			begun <- struct{}{}
			<-release
		}
	})
	key := []string{"OPEN-SANDBOX-API-KEY", testKey}
	done := make(chan answered, 1)
	go func() { done <- (visit{path: "/ingress/sb/80/wait"}).send(t, f.url, key...) }()
	<-begun
	a := (visit{path: "/ingress/sb/81/"}).send(t, f.url, key...)
	if a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "gateway.max_connections") {
		t.Errorf("beyond the limit: %d %s", a.status, a.body)
	}
	if a := (visit{path: "/ingress/other/80/"}).send(t, f.url, key...); a.status != 200 {
		t.Errorf("another sandbox: %d %s", a.status, a.body)
	}
	close(release)
	if a := <-done; a.status != 200 {
		t.Errorf("within the limit: %d %s", a.status, a.body)
	}
	if a := (visit{path: "/ingress/sb/80/"}).send(t, f.url, append(key, "X-Large", strings.Repeat("x", 16<<10))...); a.status != 431 {
		t.Errorf("large header: %d", a.status)
	}

	slow := withIngress(t, func(o *Options) { o.Limits.RatePerSandbox = 0.001 })
	slow.m.put("sb", sandbox.Running)
	slow.m.dial = program(t, echo)
	for i, want := range []int{200, 429, 429} {
		if a := (visit{path: "/ingress/sb/80/"}).send(t, slow.url, key...); a.status != want {
			t.Errorf("request %d: %d %s", i, a.status, a.body)
		}
	}
}

// Without authentication, a web page of somebody else gets nowhere.
func TestIngressWithoutAuthentication(t *testing.T) {
	f := withIngress(t, func(o *Options) { o.APIKey, o.NoAuth = "", true })
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	host := "sb-80." + testBase
	for _, c := range []struct {
		visit
		origin string
		status int
	}{
		{visit{path: "/ingress/sb/80/"}, "", 200},
		{visit{path: "/ingress/sb/80/"}, f.url, 200},
		{visit{path: "/ingress/sb/80/"}, "https://evil.example", 401},
		{visit{path: "/ingress/sb/80/"}, "null", 401},
		{visit{host: "rebound.evil.example", path: "/ingress/sb/80/"}, "", 401},
		{visit{host: host, path: "/"}, "", 200},
		{visit{host: host, path: "/"}, "http://" + host, 200},
		{visit{host: host, path: "/"}, "http://other-80." + testBase, 401},
		{visit{host: host, path: "/"}, "null", 401},
		{visit{host: host, path: "/", header: []string{"Sec-Fetch-Site", "same-origin"}}, "null", 200},
		{visit{host: host, path: "/", header: []string{"Sec-Fetch-Site", "cross-site"}}, "null", 401},
	} {
		var h []string
		if c.origin != "" {
			h = []string{"Origin", c.origin}
		}
		if a := c.send(t, f.url, h...); a.status != c.status {
			t.Errorf("%+v from %q: %d %s", c.visit, c.origin, a.status, a.body)
		}
	}
}

// Pages that may use the API may use the ports that they have credentials for;
// about host names of their own, applications decide.
func TestIngressCrossOrigin(t *testing.T) {
	const page = "https://console.example"
	f := withIngress(t, func(o *Options) { o.Origins = []string{page} })
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, echo)
	host := visit{host: "sb-80." + testBase, path: "/"}
	for _, c := range []struct {
		visit
		origin string
		allow  string
	}{
		{visit{path: "/ingress/sb/80/"}, page, page},
		{visit{path: "/ingress/sb/80/"}, "https://evil.example", ""},
		{visit{path: "/", header: []string{"OpenSandbox-Ingress-To", "sb-80"}}, page, page},
		{host, page, ""},
	} {
		a := c.send(t, f.url, "Origin", c.origin, "OpenSandbox-Secure-Access", "token-of-sb")
		if got := a.header.Get("Access-Control-Allow-Origin"); a.status != 200 || got != c.allow {
			t.Errorf("%+v from %s: %d, allowed %q", c.visit, c.origin, a.status, got)
		}
	}
	f.call("OPTIONS", "/ingress/sb/80/", "", "Origin", page, "Access-Control-Request-Method", "PUT", "OPEN-SANDBOX-API-KEY", "").is(204, "")
}
