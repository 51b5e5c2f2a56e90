package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestGet(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	a := f.call("GET", "/v1/sandboxes/sb", "").is(200, "")
	want := `{"createdAt":"2030-01-02T03:04:05.678901Z","entrypoint":["sh"],"id":"sb","image":{"uri":"python:3.11"},` +
		`"status":{"lastTransitionAt":"2030-01-02T03:04:05.678901Z","state":"Running"}}` + "\n"
	if a.body != want {
		t.Errorf("body = %s\nwant   %s", a.body, want)
	}
	for _, secret := range []string{"hunter2", "token-of-sb"} {
		if strings.Contains(a.body, secret) {
			t.Errorf("%q is shown", secret)
		}
	}
	for _, id := range []string{"nope", strings.Repeat("a", 5000), "a%00b", "a%0Ab", "%C3%BC", "a%2Fb"} {
		f.call("GET", "/v1/sandboxes/"+id, "").is(404, sandbox.CodeNotFound)
	}
}

func TestList(t *testing.T) {
	f := start(t)
	for i := range 5 {
		f.m.put(fmt.Sprintf("sb-%d", i), sandbox.Running)
	}
	var l api.SandboxList
	f.call("GET", "/v1/sandboxes?state=Running&state=paused&metadata=a%3D1%26b%3Dx%252Fy%26a%3D2&page=2&pageSize=2", "").is(200, "").into(&l)
	if len(l.Items) != 2 || l.Pagination != (api.Pagination{Page: 2, PageSize: 2, TotalItems: 5, TotalPages: 3, HasNextPage: true}) {
		t.Errorf("list = %+v", l)
	}
	want := sandbox.Filter{States: []string{"Running", "paused"}, Metadata: map[string]string{"a": "2", "b": "x/y"}, Page: 2, PageSize: 2}
	if got := f.m.filters[0]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("filter = %+v, want %+v", got, want)
	}
	a := f.call("GET", "/v1/sandboxes?page=2147483647", "").is(200, "")
	if a.into(&l); l.Pagination.HasNextPage || !strings.Contains(a.body, `"items":[]`) {
		t.Errorf("a page past the end: %s", a.body)
	}
	for query, says := range map[string]string{
		"page=0": "page", "page=x": "page", "page=": "page", "page=1.5": "page", "page=99999999999": "page",
		"pageSize=0": "pageSize", "pageSize=201": "200", "pageSize=-1": "pageSize", "page=%zz": "malformed", "a;b=1": "malformed",
		strings.Repeat("state=x&", 33): "state",
	} {
		f.call("GET", "/v1/sandboxes?"+query, "").is(400, sandbox.CodeInvalidParameter).says(says)
	}
	for _, filter := range []string{"a", "a=1&b", "a=1&&b=2", "&", "%zz=1", "a=%z", strings.Repeat("a=1&", 5000) + "a=1"} {
		f.call("GET", "/v1/sandboxes?metadata="+url.QueryEscape(filter), "").is(400, codeMetadataFormat)
	}
	f.call("GET", "/v1/sandboxes?metadata=", "").is(200, "")
}

// Any labels that a client can encode come back as they were.
func TestLabelFilterProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.MapOfN(rapid.String(), rapid.String(), 1, 5).Draw(t, "labels")
		var pairs []string
		for k, v := range labels {
			pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(v))
		}
		got, err := parseLabelFilter(strings.Join(pairs, "&"))
		if err != nil || fmt.Sprint(got) != fmt.Sprint(labels) {
			t.Fatalf("%q became %q (%v)", labels, got, err)
		}
	})
}

func FuzzLabelFilter(f *testing.F) {
	for _, s := range []string{"a=1", "a=1&b=2", "", "a", "=&=", "%", "a=%41"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := parseLabelFilter(text)
		if err != nil {
			if a := toAnswer(err, "id"); a.status != 400 || a.code != codeMetadataFormat || len(a.message) > 1000 {
				t.Fatalf("%q: %+v", text, a)
			}
			return
		}
		if text != "" && len(filter) == 0 {
			t.Fatalf("%q filters nothing", text)
		}
	})
}

func TestPatchMetadata(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `{"a":"1","b":null}`).is(200, "")
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `{}`, "Content-Type", "application/merge-patch+json").is(200, "")
	if p := f.m.patches[0]; len(p) != 2 || *p["a"] != "1" || p["b"] != nil {
		t.Errorf("patch = %v", p)
	}
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `{"opensandbox.io/x":null}`).is(400, sandbox.CodeReservedMetadata)
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `{"a":"x y"}`).is(400, sandbox.CodeInvalidMetadataLabel)
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `{"a":1}`).is(400, sandbox.CodeInvalidParameter).says("a must be a string")
	f.call("PATCH", "/v1/sandboxes/sb/metadata", `[]`).is(400, sandbox.CodeInvalidParameter)
	f.call("PATCH", "/v1/sandboxes/no/metadata", `{}`).is(404, sandbox.CodeNotFound)
}

func TestRenew(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	for text, want := range map[string]string{
		"2031-01-01T00:00:00Z": "2031-01-01T00:00:00Z", "2031-01-01T02:00:00.5+02:00": "2031-01-01T00:00:00.5Z",
		"2031-01-01T00:00:00.123456": "2031-01-01T00:00:00.123456Z", "2031-01-01t00:00:00z": "2031-01-01T00:00:00Z",
		"2031-01-01T00:00:00.123456789Z": "2031-01-01T00:00:00.123456Z", "2031-01-01 00:00:00+00:00": "2031-01-01T00:00:00Z",
	} {
		a := f.call("POST", "/v1/sandboxes/sb/renew-expiration", `{"expiresAt":"`+text+`"}`).is(200, "")
		if a.body != `{"expiresAt":"`+want+`"}`+"\n" {
			t.Errorf("%s became %s", text, a.body)
		}
	}
	for _, text := range []string{"tomorrow", "2031-13-01T00:00:00Z", "1924992000", "2031-01-01"} {
		f.call("POST", "/v1/sandboxes/sb/renew-expiration", `{"expiresAt":"`+text+`"}`).is(400, sandbox.CodeInvalidExpiration).says("expiresAt", text)
	}
	f.call("POST", "/v1/sandboxes/sb/renew-expiration", `{}`).is(400, sandbox.CodeInvalidParameter).says("expiresAt is missing")
	f.call("POST", "/v1/sandboxes/sb/renew-expiration", `{"expiresAt":1924992000}`).is(400, sandbox.CodeInvalidParameter).says("must be a string")
	f.call("POST", "/v1/sandboxes/sb/renew-expiration", `{"expiresAt":"2031-01-01T00:00:00Z","force":true}`).is(400, sandbox.CodeInvalidParameter).says("force", "Allowed: expiresAt")
	f.call("POST", "/v1/sandboxes/no/renew-expiration", `{"expires_at":"2031-01-01T00:00:00Z"}`).is(404, sandbox.CodeNotFound)
}

func TestPauseResumeDelete(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	for _, c := range []struct {
		method, path string
		status       int
	}{{"POST", "/pause", 202}, {"POST", "/resume", 202}, {"DELETE", "", 204}} {
		if a := f.call(c.method, "/v1/sandboxes/sb"+c.path, "").is(c.status, ""); a.body != "" {
			t.Errorf("%s has a body: %q", c.path, a.body)
		}
		f.call(c.method, "/v1/sandboxes/no"+c.path, "").is(404, sandbox.CodeNotFound)
	}
	f.call("DELETE", "/v1/sandboxes/sb", "").is(404, sandbox.CodeNotFound)
}

func TestAuthentication(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	for _, path := range []string{"/v1/sandboxes", "/sandboxes/sb", "/v1/images", "/metrics", "/nothing", "/", "/v1", "/v1/sandboxes/", "/healthz", "/health/", "/v1/health", "/versions", "/docs", "/openapi.jsonx"} {
		f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "").is(401, codeMissingKey)
		for _, key := range []string{"x", testKey + "x", testKey[1:], strings.ToUpper(testKey), "Bearer " + testKey} {
			f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", key).is(401, codeInvalidKey)
		}
	}
	f.call("GET", "/v1/sandboxes", "", "OPEN-SANDBOX-API-KEY", "", "Authorization", "Bearer "+testKey).is(401, codeMissingKey)
	f.call("GET", "/v1/sandboxes?OPEN-SANDBOX-API-KEY="+testKey, "", "OPEN-SANDBOX-API-KEY", "").is(401, codeMissingKey)
	for path, want := range map[string]string{"/health": `{"status":"healthy"}`, "/version": `{"version":"1.2.3"}`, "/openapi.json": string(api.LifecycleJSON)} {
		if a := f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "").is(200, ""); strings.TrimSpace(a.body) != strings.TrimSpace(want) {
			t.Errorf("%s = %.100s", path, a.body)
		}
		f.call("HEAD", path, "", "OPEN-SANDBOX-API-KEY", "").is(200, "")
	}
	open := start(t, func(o *Options) { o.APIKey, o.NoAuth = "", true })
	open.call("GET", "/v1/sandboxes", "", "OPEN-SANDBOX-API-KEY", "").is(200, "")
	open.call("GET", "/metrics", "", "OPEN-SANDBOX-API-KEY", "").is(200, "")
	if _, err := New(Options{Manager: f.m}); err == nil {
		t.Error("a server without a key and with authentication was made")
	}
}

func TestTwoKeysAreNoKey(t *testing.T) {
	f := start(t)
	req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes", nil)
	req.Header["Open-Sandbox-Api-Key"] = []string{testKey, "other"}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestRouting(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	for path, allow := range map[string]string{
		"/v1/sandboxes": "GET, POST", "/sandboxes/sb": "DELETE, GET", "/v1/sandboxes/sb/pause": "POST", "/health": "GET, HEAD", "/v1/images": "DELETE, GET, POST",
	} {
		for _, m := range []string{"PUT", "OPTIONS", "BREW"} {
			if a := f.call(m, path, "").is(405, codeMethod); a.header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow %q, want %q", m, path, a.header.Get("Allow"), allow)
			}
		}
	}
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/sandboxes", "/v1/v1/sandboxes", "//sandboxes", "/sandboxes//", "/sandboxes/sb/nothing", "/metrics/events",
		"/v1/health", "/sandboxes/sb/pause/x", "/sandboxes/../health", "/Sandboxes", "/%2e%2e/x", "/sandboxes/sb/proxy", "/sandboxes/%zz"} {
		if path == "/sandboxes/%zz" { // net/http answers that one itself
			continue
		}
		f.call("GET", path, "").is(404, codeNoRoute)
	}
	a := f.call("GET", "/v1/sandboxes/?page=2&x=%2F", "")
	if a.is(307, codeNoRoute); a.header.Get("Location") != "/v1/sandboxes?page=2&x=%2F" {
		t.Errorf("Location = %q", a.header.Get("Location"))
	}
	f.call("POST", "/sandboxes/sb/pause/", "").is(307, "")
	f.call("GET", "//evil.example/sandboxes/", "").is(404, codeNoRoute)
}

func TestNotImplemented(t *testing.T) {
	f := start(t)
	for path, code := range map[string]string{
		"GET /v1/snapshots": "SNAPSHOT::NOT_IMPLEMENTED", "DELETE /snapshots/x": "SNAPSHOT::NOT_IMPLEMENTED", "POST /v1/sandboxes/sb/snapshots": "SNAPSHOT::NOT_IMPLEMENTED",
		"GET /v1/templates": "FSB::API_NOT_SUPPORTED", "GET /templates/x": "FSB::API_NOT_SUPPORTED",
		"GET /v1/pools": "KUBERNETES::POOL_NOT_SUPPORTED", "PUT /v1/pools/p": "KUBERNETES::POOL_NOT_SUPPORTED",
	} {
		method, path, _ := strings.Cut(path, " ")
		f.call(method, path, "").is(501, code)
	}
}

// The document and the routes say the same.
func TestDocumentMatchesRoutes(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(api.LifecycleJSON, &doc); err != nil {
		t.Fatal(err)
	}
	s := start(t).s
	documented := map[string]bool{}
	for path, ops := range doc.Paths {
		example := strings.NewReplacer("{", "", "}", "").Replace(path)
		prefix := "/v1"
		if slices.Contains([]string{"/health", "/version", "/metrics", "/openapi.json"}, path) {
			prefix = ""
		}
		for method := range ops {
			method = strings.ToUpper(method)
			if !knownMethods[method] {
				continue
			}
			documented[method+" "+example] = true
			if _, ok := parseProxyPath(prefix + example); ok {
				continue
			}
			if r, _, _ := s.routes.find(prefix + example); r == nil || r.methods[method] == nil {
				t.Errorf("%s %s is documented and does not exist", method, path)
			}
		}
	}
	undocumented := []string{"/sandboxes/{id}/diagnostics/inspect", "/sandboxes/{id}/diagnostics/summary"} // deprecated and not built
	var walk func(n *node)
	walk = func(n *node) {
		for _, r := range []*route{n.v1, n.bare} {
			if r == nil || slices.Contains(undocumented, r.pattern) {
				continue
			}
			for method := range r.methods {
				found := method == "HEAD"
				for d := range documented {
					docMethod, path, _ := strings.Cut(d, " ")
					if got, _, _ := s.routes.find("/v1" + path); docMethod == method && got == n.v1 && got != nil {
						found = true
					}
					if got, _, _ := s.routes.find(path); docMethod == method && got == n.bare && got != nil {
						found = true
					}
				}
				if !found {
					t.Errorf("%s %s exists and is not documented", method, r.pattern)
				}
			}
		}
		for _, next := range n.fixed {
			walk(next)
		}
		if n.named != nil {
			walk(n.named)
		}
	}
	walk(s.routes)
}

func TestRequestIDs(t *testing.T) {
	f := start(t)
	for sent, want := range map[string]string{"abc-123": "abc-123", "  padded ": "padded", strings.Repeat("a", 128): strings.Repeat("a", 128)} {
		if got := f.call("GET", "/health", "", "X-Request-ID", sent).header.Get("X-Request-ID"); got != want {
			t.Errorf("id %q became %q", sent, got)
		}
	}
	seen := map[string]bool{}
	for _, sent := range []string{"", " ", "a b", "ü", strings.Repeat("a", 129)} {
		got := f.call("GET", "/nothing", "", "X-Request-ID", sent).header.Get("X-Request-ID")
		if len(got) != 32 || strings.Trim(got, "0123456789abcdef") != "" || seen[got] {
			t.Errorf("id for %q is %q", sent, got)
		}
		seen[got] = true
	}
}

func TestCrossOrigin(t *testing.T) {
	const page = "https://console.example"
	none := start(t)
	if h := none.call("GET", "/health", "", "Origin", page).header; h.Get("Access-Control-Allow-Origin") != "" {
		t.Error("an origin is allowed by default")
	}
	none.call("OPTIONS", "/v1/sandboxes", "", "Origin", page, "Access-Control-Request-Method", "POST").is(405, "")

	listed := start(t, func(o *Options) { o.Origins = []string{page} })
	a := listed.call("OPTIONS", "/v1/sandboxes", "", "Origin", page, "Access-Control-Request-Method", "POST", "OPEN-SANDBOX-API-KEY", "").is(204, "")
	if a.header.Get("Access-Control-Allow-Origin") != page || a.header.Get("Vary") != "Origin" || a.header.Get("Access-Control-Max-Age") != "600" || a.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight = %v", a.header)
	}
	listed.call("OPTIONS", "/v1/sandboxes/sb/proxy/80/", "", "Origin", page, "Access-Control-Request-Method", "POST", "OPEN-SANDBOX-API-KEY", "").is(204, "")
	if h := listed.call("GET", "/v1/sandboxes", "", "Origin", page).header; h.Get("Access-Control-Allow-Origin") != page {
		t.Errorf("answer = %v", h)
	}
	for _, other := range []string{"https://evil.example", "null", page + ".evil.example", "http://console.example"} {
		if h := listed.call("GET", "/v1/sandboxes", "", "Origin", other).header; h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s is allowed", other)
		}
	}
	all := start(t, func(o *Options) { o.Origins = []string{"*"} })
	if h := all.call("GET", "/v1/sandboxes", "", "Origin", "null").header; h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("answer = %v", h)
	}
	for _, bad := range []string{"console.example", "https://x/", "https://x/path", "", "https://*.example/*"} {
		if _, err := New(Options{Manager: newManager(), NoAuth: true, Origins: []string{bad}}); err == nil {
			t.Errorf("origin %q was taken", bad)
		}
	}
}

func TestPanics(t *testing.T) {
	f := start(t)
	f.m.panics.Store(true)
	a := f.call("POST", "/v1/sandboxes", with(`"timeout":60`), "X-Request-ID", "boom").is(500, sandbox.CodeInternal).says("boom")
	if strings.Contains(a.body, "a bug") {
		t.Errorf("the panic is shown: %s", a.body)
	}
	if !strings.Contains(f.log.String(), "a bug") || !strings.Contains(f.log.String(), "helpers_test.go") {
		t.Error("the panic and its stack are not in the log")
	}
	// In the way into sandboxes the answer may have begun.
	req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes/sb/proxy/80/", nil)
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("status %d, want a broken connection", resp.StatusCode)
	}
	f.m.panics.Store(false)
	f.call("GET", "/v1/sandboxes", "").is(200, "")
}

func TestOverload(t *testing.T) {
	f := start(t, func(o *Options) { o.Limits.Requests, o.Limits.Streams = 1, 1 })
	f.m.state = sandbox.Pending
	waiting, release := make(chan struct{}), make(chan struct{})
	f.m.waited = waitingFor(waiting, release)
	done := make(chan answered, 1)
	go func() { done <- f.call("POST", "/v1/sandboxes", with(`"timeout":60`), "Prefer", "wait=60") }()
	<-waiting
	if a := f.call("GET", "/v1/sandboxes", "").is(503, codeOverloaded); a.header.Get("Retry-After") != "1" {
		t.Errorf("headers = %v", a.header)
	}
	close(release)
	(<-done).is(202, "")
	f.call("GET", "/v1/sandboxes", "").is(200, "")
}

func TestMetrics(t *testing.T) {
	f := start(t)
	f.call("POST", "/v1/sandboxes", with(`"timeout":60`)).is(202, "")
	f.call("GET", "/v1/sandboxes/x", "").is(404, "")
	f.call("BREW", "/v1/sandboxes", "").is(405, "")
	f.call("GET", "/v1/sandboxes/x/proxy/80/", "").is(404, "")
	f.call("GET", "/secret-path-of-a-user", "").is(404, "")
	event := `{"eventType":"sandbox.create","sandboxId":"x","image":null,"createDurationMs":120,"success":true}`
	f.call("POST", "/v1/metrics/events", event, "User-Agent", "OpenSandbox-Python-SDK/1.1.1").is(204, "")
	f.call("POST", "/v1/metrics/events", event, "User-Agent", "OpenSandbox-Evil123-SDK/1").is(204, "")
	for _, bad := range []string{`{}`, `{"eventType":"x","createDurationMs":1,"success":true}`, `{"eventType":"sandbox.create","success":true}`,
		`{"eventType":"sandbox.create","createDurationMs":-1,"success":true}`, `{"eventType":"sandbox.create","createDurationMs":1}`, `[]`} {
		f.call("POST", "/v1/metrics/events", bad).is(400, sandbox.CodeInvalidParameter)
	}
	text := f.call("GET", "/metrics", "").is(200, "").body
	for _, want := range []string{
		`paddock_http_requests_total{method="POST",route="/sandboxes",status="202"} 1`,
		`paddock_http_requests_total{method="GET",route="/sandboxes/{id}",status="404"} 1`,
		`paddock_http_requests_total{method="other",route="/sandboxes",status="405"} 1`,
		`paddock_http_requests_total{method="GET",route="/sandboxes/{id}/proxy/{port}",status="404"} 1`,
		`paddock_http_requests_total{method="GET",route="unknown",status="404"} 1`,
		`paddock_sandboxes{state="Running"} 3`, `paddock_sandboxes{state="Failed"} 0`, `paddock_held_requests 2`,
		`paddock_sandbox_create_seconds_count{outcome="accepted"} 1`, `paddock_sandbox_creates_total 7`,
		`paddock_client_create_seconds_count{sdk="python",success="true"} 1`, `paddock_client_create_seconds_count{sdk="other",success="true"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(text, "secret-path") {
		t.Error("metrics have a label that a client chose")
	}
}

func TestVolumes(t *testing.T) {
	f := start(t)
	f.m.volumes = []sandbox.VolumeInfo{{Name: "data", CreatedAt: created, SizeBytes: 4096}}
	if a := f.call("GET", "/v1/volumes", "").is(200, ""); a.body != `{"items":[{"createdAt":"2030-01-02T03:04:05.678901Z","name":"data","sizeBytes":4096}]}`+"\n" {
		t.Errorf("body = %s", a.body)
	}
	f.call("DELETE", "/v1/volumes/data", "").is(204, "")
	f.call("DELETE", "/v1/volumes/..%2F..%2Fetc", "").is(404, sandbox.CodeVolumeNotFound)
	if fmt.Sprint(f.m.removed) != "[data]" {
		t.Errorf("removed = %v", f.m.removed)
	}
	f.m.volumes = nil
	if a := f.call("GET", "/volumes", ""); a.body != `{"items":[]}`+"\n" {
		t.Errorf("body = %s", a.body)
	}
	f.m.fail = sandbox.Errorf(sandbox.KindConflict, sandbox.CodeVolumeInUse, "In use.")
	f.call("DELETE", "/v1/volumes/data", "").is(409, sandbox.CodeVolumeInUse)
}

func TestSlowAndFailedRequestsAreWarned(t *testing.T) {
	f := start(t)
	f.m.fail = errors.New("the reason")
	f.call("POST", "/v1/sandboxes/x/pause?token=hunter2", "").is(500, "")
	log := f.log.String()
	if !strings.Contains(log, "the reason") || !strings.Contains(log, `"level":"WARN","msg":"request"`) {
		t.Errorf("log = %s", log)
	}
	if strings.Contains(log, "hunter2") || strings.Contains(log, testKey) {
		t.Errorf("a secret is in the log: %s", log)
	}
}

func TestDrain(t *testing.T) {
	f := start(t)
	hs := f.s.HTTPServer()
	f.s.draining.Store(true)
	f.call("GET", "/health", "").is(503, codeDraining)
	if err := f.s.Drain(t.Context(), hs); err != nil {
		t.Error(err)
	}
}

// Whatever comes, the answer is no failure of the server and every error has
// the contract's form.
func TestHostileRequests(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	steps := rapid.SampledFrom([]string{"", "v1", "sandboxes", "sb", "proxy", "80", "endpoints", "44772", "metadata", "images", "export", "volumes", "logs",
		"diagnostics", "health", "..", ".", "%2e%2e", "%2F", "%00", "ü", "renew-expiration", "pause", "metrics", "events", "0", "99999", "a b"})
	rapid.Check(t, func(rt *rapid.T) {
		path := "/" + strings.Join(rapid.SliceOfN(steps, 0, 6).Draw(rt, "path"), "/")
		query := rapid.SampledFrom([]string{"", "?", "?page=x", "?a=b;c", "?%zz", "?tail=-1", "?since=x", "?scope=", "?expires=1", "?ref="}).Draw(rt, "query")
		method := rapid.SampledFrom([]string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "X"}).Draw(rt, "method")
		key := rapid.SampledFrom([]string{testKey, "", "wrong"}).Draw(rt, "key")
		body := rapid.SampledFrom([]string{"", "{}", "[]", "null", "{", fullCreate, "\xff", `{"expiresAt":"x"}`}).Draw(rt, "body")
		u, err := url.Parse(f.url + path + query)
		if err != nil {
			return // no client can send it
		}
		req := &http.Request{Method: method, URL: u, Header: http.Header{"Content-Type": {"application/json"}, "Open-Sandbox-Api-Key": {key}}}
		if body != "" {
			req, err = http.NewRequest(method, u.String(), strings.NewReader(body))
			if err != nil {
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("OPEN-SANDBOX-API-KEY", key)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			rt.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 500 && resp.StatusCode != 501 {
			rt.Fatalf("%s %s: %d", method, path+query, resp.StatusCode)
		}
		if resp.StatusCode >= 400 && method != "HEAD" {
			b := make([]byte, 4096)
			n, _ := resp.Body.Read(b)
			if err := wellFormedError(resp.StatusCode, resp.Header, b[:n], new(api.Error)); err != nil {
				rt.Fatalf("%s %s: %v", method, path+query, err)
			}
		}
	})
}
