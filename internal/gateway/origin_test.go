package gateway

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestOwnCookiesAreTakenOut(t *testing.T) {
	for in, want := range map[string]string{
		"a=1; b=2":                     "a=1; b=2",
		"a=1;b=2":                      "a=1;b=2",
		"paddock-access=x":             "",
		"a=1; paddock-access=x; b=2":   "a=1; b=2",
		"__Host-paddock-access=x; a=1": "a=1",
		"__HOST-Paddock-Access=x;PADDOCK-ACCESS; a=": "a=",
		" paddock-access = x; a=1":                   "a=1",
		"my-paddock-access=1; a=paddock-access":      "my-paddock-access=1; a=paddock-access",
		";;paddock-access=1;;":                       "",
	} {
		if got := withoutOwnCookies(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestCookiesStayWhereTheyAre(t *testing.T) {
	beneath := &Target{Port: 80, Prefix: "/v1/sandboxes/sb/proxy/80", Origin: OriginAPI}
	own := &Target{Port: 80, Origin: OriginOwn}
	for in, want := range map[string][2]string{
		"a=1":                                  {"a=1", "a=1"},
		"a=1; Path=/x; HttpOnly":               {"a=1; Path=/v1/sandboxes/sb/proxy/80/x; HttpOnly", "a=1; Path=/x; HttpOnly"},
		"a=1; path = / ;Secure":                {"a=1; Path=/v1/sandboxes/sb/proxy/80/;Secure", "a=1; path = / ;Secure"},
		"a=1; Path=relative":                   {"a=1; Path=relative", "a=1; Path=relative"},
		"a=1; Domain=.example.com; SameSite=x": {"a=1; SameSite=x", "a=1; SameSite=x"},
		"a=1;DOMAIN=a;domain;Domain=":          {"a=1", "a=1"},
		"a=Domain=x; Max-Age=1":                {"a=Domain=x; Max-Age=1", "a=Domain=x; Max-Age=1"},
	} {
		for i, tg := range []*Target{beneath, own} {
			if got := tg.responseCookies([]string{in}); len(got) != 1 || got[0] != want[i] {
				t.Errorf("%q became %q, want %q", in, got, want[i])
			}
		}
	}
	for _, in := range []string{"paddock-access=1", " __Host-paddock-access =1; Path=/", "Paddock-Access"} {
		if got := own.responseCookies([]string{in}); len(got) != 0 {
			t.Errorf("%q was set", in)
		}
	}
}

// However a sandbox writes a cookie, what is left has no Domain and is not one
// of the gateway's.
func FuzzResponseCookies(f *testing.F) {
	for _, s := range []string{"a=1; Domain=x; Path=/", "paddock-access=1", ";domain", "a=1; domain\t=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, o := range []Origin{OriginAPI, OriginOwn} {
			for _, v := range (&Target{Prefix: "/p", Origin: o}).responseCookies([]string{line}) {
				c, err := http.ParseSetCookie(v)
				if err != nil {
					continue
				}
				if c.Domain != "" || isOwnCookie(c.Name) {
					t.Errorf("%q became %q", line, v)
				}
				if o == OriginAPI && strings.HasPrefix(c.Path, "/") && !strings.HasPrefix(c.Path, "/p/") {
					t.Errorf("%q became %q, which reaches beyond /p", line, v)
				}
			}
		}
		for _, c := range (&http.Request{Header: http.Header{"Cookie": {withoutOwnCookies(line)}}}).Cookies() {
			if isOwnCookie(c.Name) {
				t.Errorf("%q kept %q", line, c.Name)
			}
		}
	})
}

// A page with an opaque origin may send what it likes to its own address, and is
// answered without the sandbox.
func TestPreflightOfSharedOrigin(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
	})
	g := newGateway(t, Options{Dialer: dialTo(addr)})
	srv := frontFor(t, g, &Target{ID: "sb", Port: 80, Path: "/", Origin: OriginShared})
	ask := []string{"Origin", "null", "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-a"}
	resp := do(t, "OPTIONS", srv.URL, nil, ask...)
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Methods") != "PUT" || resp.Header.Get("Access-Control-Allow-Headers") != "x-a" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	resp = do(t, "PUT", srv.URL, nil, "Origin", "null")
	if h := resp.Header; h.Get("Access-Control-Allow-Origin") != "null" || h["Access-Control-Allow-Credentials"] != nil || len(h["Content-Security-Policy"]) != 2 {
		t.Errorf("%v", h)
	}
	// Another page's preflight is the application's business.
	ask[1] = "https://elsewhere.example"
	if resp := do(t, "OPTIONS", srv.URL, nil, ask...); resp.StatusCode != 200 || resp.Header["Access-Control-Allow-Origin"] != nil {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// However requests come and go: never more are open than may be, none is refused
// below that, and nothing is remembered about sandboxes without any.
func TestLimitsCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l limits
		most := rapid.IntRange(1, 4).Draw(t, "most")
		l.init(most, 0)
		open := map[string][]func(){}
		t.Repeat(map[string]func(*rapid.T){
			"enter": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id")
				leave, err := l.enter(id)
				if (err == nil) != (len(open[id]) < most) {
					t.Fatalf("%d of %d open: %v", len(open[id]), most, err)
				}
				if err == nil {
					open[id] = append(open[id], leave)
				}
			},
			"leave": func(t *rapid.T) {
				id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id")
				if n := len(open[id]); n > 0 {
					open[id][n-1]()
					open[id] = open[id][:n-1]
				}
			},
			"sweep": func(*rapid.T) { l.sweep(time.Now()) },
			"": func(t *rapid.T) {
				for id, o := range open {
					if u := l.by[id]; (u == nil) != (len(o) == 0) || u != nil && u.open != len(o) {
						t.Fatalf("%s: %+v, %d open", id, u, len(o))
					}
				}
			},
		})
	})
}

func TestRateLimit(t *testing.T) {
	var l limits
	l.init(10, 2)
	for i, want := range []bool{true, true, false} {
		leave, err := l.enter("sb")
		if (err == nil) != want {
			t.Errorf("request %d: %v", i, err)
		}
		if err == nil {
			leave()
		}
	}
	l.sweep(time.Now())
	if len(l.by) != 1 {
		t.Error("a sandbox was forgotten before its time")
	}
	l.by["sb"].at = time.Now().Add(-time.Second)
	if _, err := l.enter("sb"); err != nil {
		t.Errorf("after a second: %v", err)
	}
	l.by["sb"].open = 0
	l.sweep(time.Now().Add(time.Minute))
	if len(l.by) != 0 {
		t.Error("a sandbox without requests was not forgotten")
	}
}

// Tunnels and upgrades count as what they are: something open.
func TestLimitHoldsForEveryWay(t *testing.T) {
	g := newGateway(t, Options{PerSandbox: 1, Dialer: dialTo("127.0.0.1:1")})
	if _, err := g.limits.enter("sb"); err != nil {
		t.Fatal(err)
	}
	target := &Target{ID: "sb", Port: 80, Path: "/"}
	for name, way := range map[string]func(http.ResponseWriter, *http.Request, *Target) (int, error){"proxy": g.Proxy, "tunnel": g.Tunnel} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", TunnelProtocol)
		var e *Error
		if _, err := way(httptest.NewRecorder(), r, target); !errors.As(err, &e) || e.Status != http.StatusTooManyRequests || e.RetryAfter == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
