package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// waitingFor makes a wait say that it has begun and last until it is released.
func waitingFor(begun, release chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		begun <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestEndpoint(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Pending)
	f.m.put("paused", sandbox.Paused)
	host := strings.TrimPrefix(f.url, "http://")
	for path, endpoint := range map[string]string{
		"/v1/sandboxes/sb/endpoints/44772":                        "/v1/sandboxes/sb/proxy/44772",
		"/v1/sandboxes/sb/endpoints/18081?use_server_proxy=true":  "/v1/sandboxes/sb/proxy/18081",
		"/sandboxes/sb/endpoints/1?use_server_proxy=on":           "/sandboxes/sb/proxy/1",
		"/v1/sandboxes/sb/endpoints/65535?use_server_proxy=False": "/v1/sandboxes/sb/proxy/65535",
		"/v1/sandboxes/paused/endpoints/80":                       "/v1/sandboxes/paused/proxy/80",
	} {
		a := f.call("GET", path, "").is(200, "")
		id := strings.Split(strings.TrimPrefix(path, "/v1"), "/")[2]
		want := fmt.Sprintf(`{"endpoint":%q,"headers":{"OpenSandbox-Secure-Access":"token-of-%s"}}`+"\n", host+endpoint, id)
		if a.body != want {
			t.Errorf("%s = %s, want %s", path, a.body, want)
		}
	}
	for _, port := range []string{"0", "65536", "-1", "+1", "x", "1.5", "99999999999999999999", "%20"} {
		f.call("GET", "/v1/sandboxes/sb/endpoints/"+port, "").is(400, sandbox.CodeInvalidPort)
	}
	f.call("GET", "/v1/sandboxes/sb/endpoints/80?use_server_proxy=maybe", "").is(400, sandbox.CodeInvalidParameter).says("use_server_proxy", `"maybe"`)
	f.call("GET", "/v1/sandboxes/sb/endpoints/80?expires=1999999999", "").is(400, sandbox.CodeNotSupported).says("expires")
	f.call("GET", "/v1/sandboxes/no/endpoints/80", "").is(404, sandbox.CodeNotFound)
	failed := f.m.put("failed", sandbox.Failed)
	f.m.byID[failed.ID].Status.Message = "No such program."
	f.call("GET", "/v1/sandboxes/failed/endpoints/80", "").is(409, sandbox.CodeNotRunning).says("No such program.")

	// The question waits a little for a sandbox that is being made: here one
	// that is still Pending then, and one that turns out not to be possible.
	f.m.put("slow", sandbox.Pending)
	f.m.waited = func(context.Context) error { return context.DeadlineExceeded }
	f.call("GET", "/v1/sandboxes/slow/endpoints/80", "").is(200, "")
	f.m.waited = func(context.Context) error {
		f.m.mu.Lock()
		defer f.m.mu.Unlock()
		f.m.byID["slow"].Status = sandbox.Status{State: sandbox.Failed, Message: "No such program."}
		return context.Canceled
	}
	f.call("GET", "/v1/sandboxes/slow/endpoints/80", "").is(409, sandbox.CodeNotRunning).says("No such program.")

	named := start(t, func(o *Options) { o.PublicHost = "sandboxes.example:8443" })
	named.m.put("sb", sandbox.Running)
	if a := named.call("GET", "/v1/sandboxes/sb/endpoints/80", ""); a.member("endpoint") != "sandboxes.example:8443/v1/sandboxes/sb/proxy/80" {
		t.Errorf("endpoint = %v", a.member("endpoint"))
	}
}

// The first Python SDKs do not send an endpoint's headers.
func TestEndpointForOldClients(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	for agent, endpoint := range map[string]string{
		"OpenSandbox-Python-SDK/0.1.0":  "/v1/sandboxes/sb.token-of-sb/proxy/80",
		"OpenSandbox-Python-SDK/0.1.4":  "/v1/sandboxes/sb.token-of-sb/proxy/80",
		"OpenSandbox-Python-SDK/0.1.5":  "/v1/sandboxes/sb/proxy/80",
		"OpenSandbox-Python-SDK/0.1.40": "/v1/sandboxes/sb/proxy/80",
		"OpenSandbox-Kotlin-SDK/1.0.0":  "/v1/sandboxes/sb.token-of-sb/proxy/80",
		"OpenSandbox-Kotlin-SDK/1.0.1":  "/v1/sandboxes/sb/proxy/80",
		"OpenSandbox-JS-SDK/0.1.0":      "/v1/sandboxes/sb/proxy/80",
	} {
		a := f.call("GET", "/v1/sandboxes/sb/endpoints/80", "", "User-Agent", agent).is(200, "")
		if got := fmt.Sprint(a.member("endpoint")); got != strings.TrimPrefix(f.url, "http://")+endpoint {
			t.Errorf("%s: endpoint %s, want %s", agent, got, endpoint)
		}
	}
	for path, status := range map[string]int{
		"/v1/sandboxes/sb.token-of-sb/proxy/80/x":    200,
		"/v1/sandboxes/sb.token-of-other/proxy/80/x": 401,
		"/v1/sandboxes/sb./proxy/80/x":               401,
		"/v1/sandboxes/no.token-of-no/proxy/80/x":    401,
		"/v1/sandboxes/sb.token-of-sb/endpoints/80":  401,
	} {
		resp, err := http.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status || status == 200 && string(body) != "/x" {
			t.Errorf("%s: %d %s, want %d", path, resp.StatusCode, body, status)
		}
	}
}

func TestProxyAuthentication(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "inside") })
	const path = "/v1/sandboxes/sb/proxy/80/x"
	for _, c := range []struct {
		key, token string
		status     int
	}{
		{testKey, "", 200}, {"", "token-of-sb", 200}, {"wrong", "token-of-sb", 200}, {testKey, "wrong", 200},
		{"", "", 401}, {"wrong", "", 401}, {"", "wrong", 401}, {"", "token-of-other", 401}, {"", testKey, 401}, {"", "token-of-s", 401},
	} {
		a := f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", c.key, "OpenSandbox-Secure-Access", c.token)
		if a.status != c.status {
			t.Errorf("key %q, token %q: %d %s", c.key, c.token, a.status, a.body)
		}
		if c.status == 401 {
			a.is(401, codeSecureAccess).says("OpenSandbox-Secure-Access", "endpoints")
		}
	}
	// A stranger learns nothing from ids that do not exist, or from ports.
	for _, p := range []string{"/v1/sandboxes/no/proxy/80/", "/sandboxes/sb/proxy/99999/", "/v1/sandboxes/sb/proxy/x", "/v1/sandboxes/%00/proxy/80"} {
		f.call("GET", p, "", "OPEN-SANDBOX-API-KEY", "").is(401, codeSecureAccess)
	}
	// The token opens ports and nothing else.
	for _, p := range []string{"/v1/sandboxes/sb", "/v1/sandboxes/sb/endpoints/80", "/v1/sandboxes/sb/logs"} {
		f.call("GET", p, "", "OPEN-SANDBOX-API-KEY", "", "OpenSandbox-Secure-Access", "token-of-sb").is(401, codeMissingKey)
	}
	// A record without a token is not open to those who send none.
	f.m.byID["sb"].Token = ""
	f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "").is(401, codeSecureAccess)

	open := start(t, func(o *Options) { o.APIKey, o.NoAuth = "", true })
	open.m.put("sb", sandbox.Running)
	open.m.dial = f.m.dial
	open.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "").is(200, "")
}

// A server without authentication is safe from the pages in its user's browser.
func TestNoAuthenticationAndBrowsers(t *testing.T) {
	f := start(t, func(o *Options) {
		o.APIKey, o.NoAuth, o.PublicHost, o.Origins = "", true, "paddock.example:8443", []string{"https://console.example"}
	})
	for _, c := range []struct {
		host, origin string
		status       int
	}{
		{"", "", 200}, {"localhost:8080", "", 200}, {"127.0.0.1", "", 200}, {"[::1]:8080", "", 200}, {"x.localhost", "", 200},
		{"paddock.example:8443", "", 200}, {"paddock.example", "", 200}, {"localhost:8080", "http://localhost:8080", 200}, {"", "https://console.example", 200},
		{"evil.example", "", 403}, {"evil.example", "http://evil.example", 403}, {"localhost.evil.example", "", 403}, {"127.0.0.1.evil.example", "", 403},
		{"localhost:8080", "http://evil.example", 403}, {"localhost:8080", "null", 403}, {"localhost:8080", "http://localhost:3000", 403},
	} {
		req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes", nil)
		req.Host = c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("Host %q, Origin %q: %d, want %d", c.host, c.origin, resp.StatusCode, c.status)
		}
	}
}

// A page from a sandbox is none of the API's own: where no key is asked for, it
// could do everything.
func TestNoAuthenticationAndPagesOfSandboxes(t *testing.T) {
	f := start(t, func(o *Options) { o.APIKey, o.NoAuth = "", true })
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Nel", `{"report_to":"x"}`)
		w.Header().Set("Report-To", `{"group":"x"}`)
		io.WriteString(w, "<script>fetch('/v1/sandboxes')</script>")
	})
	a := f.call("GET", "/v1/sandboxes/sb/proxy/8000/", "")
	if csp := a.header.Get("Content-Security-Policy"); a.status != 200 || !strings.HasPrefix(csp, "sandbox ") || strings.Contains(csp, "allow-same-origin") {
		t.Errorf("%d, Content-Security-Policy: %q", a.status, csp)
	}
	if a.header.Get("Nel") != "" || a.header.Get("Report-To") != "" {
		t.Error("the page has browsers report on others")
	}
}

// The answer to a request whose body never comes ends, whoever asked.
func TestBodyThatNeverComes(t *testing.T) {
	f := start(t)
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 401 ") {
		t.Errorf("%.200q, %v", b, err)
	}
}

func TestProxy(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusTeapot)
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q token=%q id=%q", r.Method, r.RequestURI, b, r.Header.Get("X-EXECD-ACCESS-TOKEN"), r.Header.Get("X-Request-ID"))
	})
	a := f.call("POST", "/v1/sandboxes/sb/proxy/44772/command?a=1", "body", "X-Request-ID", "r-1").is(418, "")
	if want := `POST /command?a=1 "body" token="token-of-sb" id="r-1"`; a.body != want {
		t.Errorf("body = %s, want %s", a.body, want)
	}
	if got := a.header.Values("X-Request-ID"); len(got) != 1 || got[0] != "r-1" {
		t.Errorf("X-Request-ID = %q", got)
	}
	if a := f.call("GET", "/sandboxes/sb/proxy/80", ""); !strings.HasPrefix(a.body, "GET / ") {
		t.Errorf("without a path: %s", a.body)
	}
	for _, mount := range []string{"", "/v1"} {
		a := f.call("GET", mount+"/sandboxes/sb/proxy/80/redirect", "")
		if got := a.header.Get("Location"); got != mount+"/sandboxes/sb/proxy/80/elsewhere" {
			t.Errorf("Location = %q", got)
		}
	}
	f.call("GET", "/v1/sandboxes/no/proxy/80/", "").is(404, sandbox.CodeNotFound)
	for _, port := range []string{"0", "65536", "x", "", "8_0", "%38%30"} {
		f.call("GET", "/v1/sandboxes/sb/proxy/"+port+"/", "").is(400, sandbox.CodeInvalidPort)
	}
	f.call("TRACE", "/v1/sandboxes/sb/proxy/80/", "").is(405, codeMethod)
	f.call("OPTIONS", "/v1/sandboxes/sb/proxy/80/", "").is(418, "")
}

func TestProxyToWhatDoesNotRun(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Paused)
	f.call("GET", "/v1/sandboxes/sb/proxy/80/", "").is(409, sandbox.CodeNotRunning).says("paused")
	f.m.put("up", sandbox.Running)
	f.m.dial = tcpTo("127.0.0.1:1") // tcpmux: nobody listens there
	f.call("GET", "/v1/sandboxes/up/proxy/80/", "").is(502, gateway.CodeConnectionFailed).says("port 80", `"up"`)
}

func TestRenewOnAccess(t *testing.T) {
	f := start(t)
	f.m.put("plain", sandbox.Running)
	f.m.put("sb", sandbox.Running)
	f.m.byID["sb"].Spec.Extensions = map[string]string{extensionRenew: "300"}
	f.m.dial = program(t, func(http.ResponseWriter, *http.Request) {})
	f.call("GET", "/v1/sandboxes/plain/proxy/80/", "").is(200, "")
	f.call("GET", "/v1/sandboxes/sb/proxy/80/", "", "OpenSandbox-Access-Renew", "skip").is(200, "")
	f.call("GET", "/v1/sandboxes/sb/proxy/80/", "", "OPEN-SANDBOX-API-KEY", "").is(401, "")
	if len(f.m.renewals) != 0 {
		t.Errorf("renewed: %v", f.m.renewals)
	}
	f.call("GET", "/v1/sandboxes/sb/proxy/80/", "").is(200, "")
	f.call("GET", "/v1/sandboxes/sb/proxy/80/", "", "OpenSandbox-Access-Renew", "Skip").is(200, "")
	if fmt.Sprint(f.m.renewals) != "[sb sb]" {
		t.Errorf("renewed: %v", f.m.renewals)
	}
	if a := f.call("GET", "/v1/sandboxes/sb", ""); a.member("extensions") != nil {
		t.Errorf("the setting is shown: %s", a.body)
	}
}

func TestStreamLogs(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	pr, pw := io.Pipe()
	f.m.log = pr
	req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes/sb/logs?tail=7&since=2029-01-01T00:00:00Z&timestamps=1&follow=true", nil)
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	resp, err := http.DefaultClient.Do(req) // the header comes before any line
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, line := range []string{"one\n", "<script>\xff\n"} {
		io.WriteString(pw, line)
		if got, err := lines.ReadString('\n'); err != nil || got != line {
			t.Fatalf("%q, %v", got, err)
		}
	}
	pw.CloseWithError(io.ErrUnexpectedEOF)
	if _, err := lines.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("a log that breaks off ends with %v", err)
	}
	if resp.Header.Get("Content-Type") != textPlain || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers = %v", resp.Header)
	}
	want := sandbox.LogOptions{Tail: 7, Since: time.Date(2029, 1, 1, 0, 0, 0, 0, time.UTC), Timestamps: true, Follow: true}
	if f.m.logOpts != want {
		t.Errorf("options = %+v, want %+v", f.m.logOpts, want)
	}

	f.m.log, f.m.logText = nil, "all of it"
	for _, query := range []string{"", "?tail=all", "?tail=0", "?since=10m"} {
		if a := f.call("GET", "/v1/sandboxes/sb/logs"+query, "").is(200, ""); a.body != "all of it" {
			t.Errorf("%s: %q", query, a.body)
		}
	}
	for query, says := range map[string]string{"tail=-1": "tail", "tail=x": "tail", "since=yesterday": "since", "since=10": "since", "since=99999d": "since", "follow=perhaps": "follow", "timestamps=x": "timestamps"} {
		f.call("GET", "/v1/sandboxes/sb/logs?"+query, "").is(400, sandbox.CodeInvalidParameter).says(says)
	}
	f.call("GET", "/v1/sandboxes/no/logs", "").is(404, sandbox.CodeNotFound)
}

// images is an Images without a registry.
type images struct {
	pull    func(ctx context.Context, ref string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error)
	export  func(w io.Writer) error
	taken   string
	removed string
	all     bool
	fail    error
}

var python = &image.Image{Name: "docker.io/library/python:3.11", Digest: "sha256:1", Platform: sandbox.Platform{OS: "linux", Arch: "amd64"}, SizeBytes: 7, CreatedAt: created}

const pythonJSON = `{"createdAt":"2030-01-02T03:04:05.678901Z","digest":"sha256:1","name":"docker.io/library/python:3.11","platform":{"arch":"amd64","os":"linux"},"sizeBytes":7}`

func (i *images) List(context.Context) ([]*image.Image, error) {
	return []*image.Image{python}, i.fail
}
func (i *images) Pull(ctx context.Context, ref string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error) {
	return i.pull(ctx, ref, p, auth, progress)
}
func (i *images) Import(_ context.Context, r io.Reader, name string) ([]*image.Image, error) {
	b, err := io.ReadAll(r)
	i.taken = name + ":" + string(b)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid, "The archive is damaged.")
	}
	return []*image.Image{python}, i.fail
}
func (i *images) Export(_ context.Context, _ string, w io.Writer) error { return i.export(w) }
func (i *images) Remove(_ context.Context, ref string) error {
	i.removed = ref
	return i.fail
}
func (i *images) Prune(_ context.Context, all bool) (image.PruneResult, error) {
	i.all = all
	return image.PruneResult{Bytes: 5}, i.fail
}

func startWithImages(t *testing.T) (*fixture, *images) {
	i := new(images)
	return start(t, func(o *Options) { o.Images = i }), i
}

func TestImages(t *testing.T) {
	f, i := startWithImages(t)
	if a := f.call("GET", "/v1/images", "").is(200, ""); a.body != `{"items":[`+pythonJSON+`]}`+"\n" {
		t.Errorf("body = %s", a.body)
	}
	f.call("DELETE", "/v1/images?ref=python%3A3.11", "").is(204, "")
	if i.removed != "python:3.11" {
		t.Errorf("removed %q", i.removed)
	}
	f.call("DELETE", "/v1/images", "").is(400, sandbox.CodeInvalidParameter).says("ref is missing")
	f.call("DELETE", "/v1/images?ref="+strings.Repeat("a", 2000), "").is(400, sandbox.CodeInvalidParameter)
	if a := f.call("POST", "/v1/images/prune", `{"all":true}`).is(200, ""); a.body != `{"bytes":5,"images":[]}`+"\n" || !i.all {
		t.Errorf("body = %s, all %v", a.body, i.all)
	}
	f.call("POST", "/v1/images/prune", "").is(200, "")
	if i.all {
		t.Error("a prune without a body is one of everything")
	}
	f.call("POST", "/v1/images/prune", `{"al":true}`).is(400, sandbox.CodeInvalidParameter).says("al", "all")
	i.fail = sandbox.Errorf(sandbox.KindConflict, sandbox.CodeImageInUse, "In use.")
	f.call("DELETE", "/v1/images?ref=x", "").is(409, sandbox.CodeImageInUse)
	start(t).call("GET", "/v1/images", "").is(501, sandbox.CodeNotSupported)
}

func TestPull(t *testing.T) {
	f, i := startWithImages(t)
	i.pull = func(_ context.Context, ref string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error) {
		if ref != "python:3.11" || p.Arch != "arm64" || auth.Password != "p" {
			t.Errorf("pull of %s for %v with %v", ref, p, auth)
		}
		if progress != nil {
			progress(image.Progress{Phase: image.PhaseDownloading, LayersTotal: 2, BytesDone: 5})
			progress(image.Progress{Phase: image.PhaseUnpacking, LayersDone: 1, LayersTotal: 2})
		}
		return python, nil
	}
	const body = `{"image":{"uri":"python:3.11","auth":{"username":"u","password":"p"}},"platform":{"os":"linux","arch":"arm64"}}`
	if a := f.call("POST", "/v1/images", body).is(200, ""); a.body != pythonJSON+"\n" {
		t.Errorf("body = %s", a.body)
	}
	a := f.call("POST", "/v1/images", body, "Accept", "text/html, text/event-stream;q=0.5").is(200, "")
	events := strings.Split(strings.TrimSpace(a.body), "\n\n")
	if len(events) != 3 || !strings.Contains(events[0], `"phase":"downloading"`) || !strings.Contains(events[1], `"layersDone":1`) ||
		!strings.Contains(events[2], `"image":`+pythonJSON) || !strings.Contains(events[2], `"phase":"done"`) {
		t.Errorf("events = %q", events)
	}
	for _, bad := range []string{`{}`, `{"image":{}}`, `{"image":{"uri":"x"},"platform":{"os":"windows","arch":"amd64"}}`, `[]`} {
		f.call("POST", "/v1/images", bad).is(400, "")
	}

	// A failure is an ordinary error before the first event and an event after.
	missing := sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound, "No such image.")
	begin := false
	i.pull = func(_ context.Context, _ string, _ *sandbox.Platform, _ *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error) {
		if begin {
			progress(image.Progress{Phase: image.PhaseResolving})
		}
		return nil, missing
	}
	f.call("POST", "/v1/images", body, "Accept", "text/event-stream").is(404, sandbox.CodeImageNotFound)
	begin = true
	a = f.call("POST", "/v1/images", body, "Accept", "text/event-stream").is(200, "")
	if !strings.Contains(a.body, `"error":{"code":"SANDBOX::IMAGE_NOT_FOUND","message":"No such image."}`) || !strings.Contains(a.body, `"phase":"error"`) {
		t.Errorf("events = %s", a.body)
	}
}

func TestPullEndsWithItsClient(t *testing.T) {
	f, i := startWithImages(t)
	begun, ended := make(chan struct{}), make(chan struct{})
	i.pull = func(ctx context.Context, _ string, _ *sandbox.Platform, _ *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error) {
		progress(image.Progress{Phase: image.PhaseResolving})
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", f.url+"/v1/images", strings.NewReader(`{"image":{"uri":"x"}}`))
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the pull goes on")
	}
}

func TestImportAndExport(t *testing.T) {
	f, i := startWithImages(t)
	archive := strings.Repeat("tar", 1<<20) // more than a JSON body may have
	if a := f.call("POST", "/v1/images/import?name=mine%3A1", archive, "Content-Type", "application/octet-stream").is(200, ""); a.body != `{"items":[`+pythonJSON+`]}`+"\n" || i.taken != "mine:1:"+archive {
		t.Errorf("body = %s, %d bytes taken", a.body, len(i.taken))
	}
	f.call("POST", "/v1/images/import", "").is(400, sandbox.CodeInvalidParameter).says("empty")

	i.export = func(w io.Writer) error { _, err := io.WriteString(w, archive); return err }
	if a := f.call("GET", "/v1/images/export?ref=x", "").is(200, ""); a.body != archive || a.header.Get("Content-Type") != "application/x-tar" {
		t.Errorf("%d bytes, %v", len(a.body), a.header)
	}
	i.export = func(io.Writer) error { return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound, "No.") }
	f.call("GET", "/v1/images/export?ref=x", "").is(404, sandbox.CodeImageNotFound)
	f.call("GET", "/v1/images/export", "").is(400, sandbox.CodeInvalidParameter)

	i.export = func(w io.Writer) error {
		io.WriteString(w, archive)
		return io.ErrUnexpectedEOF
	}
	req, _ := http.NewRequest("GET", f.url+"/v1/images/export?ref=x", nil)
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("an archive that broke off looks whole")
	}
}
