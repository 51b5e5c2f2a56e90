package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve starts a server for a handler and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc, change ...func(*Options)) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	o := Options{Server: srv.URL, APIKey: "the-key"}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func TestServerAddress(t *testing.T) {
	for in, want := range map[string]string{
		"": "http://127.0.0.1:8080", "localhost:9": "http://localhost:9", "http://h:1/": "http://h:1",
		"http://h:1/v1": "http://h:1", "https://h/prefix/v1/": "https://h/prefix", "http://[::1]:8": "http://[::1]:8",
	} {
		c, err := New(Options{Server: in})
		if err != nil || c.Server() != want {
			t.Errorf("New(%q): server %v, %v, want %s", in, c, err, want)
		}
	}
	for _, in := range []string{"ftp://h", "http://", "http://u:secret@h", "http://h/?q", "://", "http://h:port:1"} {
		_, err := New(Options{Server: in})
		if err == nil {
			t.Errorf("New(%q) gave no error", in)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q) repeats a secret: %v", in, err)
		}
	}
	if _, err := New(Options{APIKey: "a\nb"}); err == nil {
		t.Error("a key with a line end was taken")
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name, body    string
		status        int
		code, message string
	}{
		{"contract", `{"code":"A::B","message":"wrong"}`, 400, "A::B", "wrong"},
		{"under detail", `{"detail":{"code":"C","message":"m"}}`, 404, "C", "m"},
		{"detail text", `{"detail":"Not Found"}`, 404, "", "Not Found"},
		{"error text", `{"error":"Unauthorized"}`, 401, "", "Unauthorized"},
		{"plain", "Bad Gateway\n", 500, "", "Bad Gateway"},
		{"empty", "", 503, "", ""},
		{"array", "[1]", 409, "", "[1]"},
		{"binary", "\xff\xfe", 500, "", "\uFFFD"},
		{"long", strings.Repeat("x", 1<<20), 500, "", strings.Repeat("x", 512) + "…"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Request-ID", "rid")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}, func(o *Options) { o.MaxRetries = -1 })
			_, err := cl.Get(context.Background(), "x")
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v is no *Error", err)
			}
			if e.StatusCode != c.status || e.Code != c.code || e.Message != c.message || e.RequestID != "rid" {
				t.Errorf("got %+v", e)
			}
			if e.Error() == "" {
				t.Error("no text")
			}
		})
	}
}

func TestErrorTextIsSafeToPrint(t *testing.T) {
	e := &Error{Message: "a\x1b[2Jb\u202e\nc", Code: "X\x07"}
	if s := e.Error(); strings.ContainsAny(s, "\x1b\x07\n\u202e") {
		t.Errorf("unsafe: %q", s)
	}
	if got := Printable("ä\t日本"); got != "ä\t日本" {
		t.Errorf("harmless text was changed: %q", got)
	}
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		call   func(*Client) error
		want   int32
	}{
		{"get 503", 503, func(c *Client) error { _, err := c.Get(context.Background(), "x"); return err }, 3},
		{"get 502", 502, func(c *Client) error { _, err := c.Get(context.Background(), "x"); return err }, 3},
		{"get 500", 500, func(c *Client) error { _, err := c.Get(context.Background(), "x"); return err }, 1},
		{"create 429", 429, func(c *Client) error {
			_, err := c.Create(context.Background(), CreateRequest{Image: "i"})
			return err
		}, 3},
		{"pause 503", 503, func(c *Client) error { return c.Pause(context.Background(), "x") }, 1},
		{"run 503", 503, func(c *Client) error {
			_, err := c.Run(context.Background(), "x", Command{Shell: "true"}, Output{})
			return err
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var calls atomic.Int32
			keys := map[string]bool{}
			cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				keys[r.Header.Get("Idempotency-Key")] = true
				reply(w, c.status, map[string]string{"code": "X", "message": "later"})
			}, func(o *Options) { o.MaxRetries = 2 })
			if err := c.call(cl); err == nil {
				t.Fatal("no error")
			}
			if calls.Load() != c.want {
				t.Errorf("%d requests, want %d", calls.Load(), c.want)
			}
			if len(keys) != 1 {
				t.Errorf("the idempotency key changed between attempts: %v", keys)
			}
		})
	}
}

func TestRetryAfterBeyondTheBoundIsNotWaitedFor(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.Header().Set("Retry-After", "3600")
		reply(w, 429, map[string]string{"code": "X", "message": "later"})
	})
	_, err := c.Get(context.Background(), "x")
	var e *Error
	if !errors.As(err, &e) || e.RetryAfter != time.Hour || calls.Load() != 1 {
		t.Errorf("%v after %d requests", err, calls.Load())
	}
}

func TestDeleteWhoseAnswerWasLost(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler) // done, but the connection breaks
		}
		reply(w, 404, map[string]string{"code": "X", "message": "no such sandbox"})
	})
	if err := c.Delete(context.Background(), "x"); err != nil {
		t.Errorf("a repeated delete failed: %v", err)
	}
	if err := c.Delete(context.Background(), "x"); !IsNotFound(err) {
		t.Errorf("a delete of what is not there: %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/evil" {
			t.Error("the redirect was followed, with the key " + r.Header.Get("OPEN-SANDBOX-API-KEY"))
		}
		http.Redirect(w, r, "/evil", http.StatusTemporaryRedirect)
	})
	if _, err := c.Get(context.Background(), "x"); err == nil {
		t.Error("no error")
	}
}

func TestCreate(t *testing.T) {
	var body map[string]any
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.Path != "/v1/sandboxes" || r.Header.Get("OPEN-SANDBOX-API-KEY") != "the-key" {
			t.Errorf("unexpected request %s %s", r.Method, r.URL)
		}
		if got := r.Header.Get("Prefer"); got != "wait=5" {
			t.Errorf("Prefer = %q", got)
		}
		if r.Header.Get("Idempotency-Key") == "" {
			t.Error("no idempotency key")
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		reply(w, 202, map[string]any{"id": "s1", "createdAt": "2026-01-02T03:04:05.6Z", "entrypoint": []string{"x"},
			"status": map[string]any{"state": "Failed", "reason": "START_FAILED", "message": "because"}})
	})
	sb, err := c.Create(context.Background(), CreateRequest{Image: "i", Timeout: 2 * time.Minute, Wait: 5 * time.Second,
		Env: map[string]string{"A": "b"}, Volumes: []Volume{{Name: "v", MountPath: "/v", PVC: &PVC{ClaimName: "c"}}}})
	var failed *FailedError
	if !errors.As(err, &failed) || sb == nil || failed.Sandbox != sb || sb.ID != "s1" {
		t.Fatalf("got %+v, %v", sb, err)
	}
	if body["timeout"] != 120.0 || body["resourceLimits"] == nil || body["image"].(map[string]any)["uri"] != "i" {
		t.Errorf("body %v", body)
	}
	if _, ok := body["platform"]; ok {
		t.Error("an unset platform was sent")
	}
}

// Wait asks the gateway, which holds, and never answers before the change.
func TestWaitForPending(t *testing.T) {
	running := make(chan struct{})
	var gets, pings atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/sandboxes/s":
			state := "Pending"
			select {
			case <-running:
				state = "Running"
			default:
			}
			gets.Add(1)
			reply(w, 200, map[string]any{"id": "s", "status": map[string]any{"state": state}})
		case "/v1/sandboxes/s/proxy/44772/ping":
			pings.Add(1)
			close(running)
		default:
			t.Errorf("unexpected %s", r.URL)
		}
	})
	sb, err := c.Wait(context.Background(), "s", time.Minute)
	if err != nil || sb.Status.State != StateRunning {
		t.Fatalf("%+v, %v", sb, err)
	}
	if gets.Load() != 2 || pings.Load() != 1 {
		t.Errorf("%d gets and %d pings", gets.Load(), pings.Load())
	}
}

func TestListFilterAndPages(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		inner, err := url.ParseQuery(q.Get("metadata"))
		if err != nil || inner.Get("a&b") != "c=d" || len(q["state"]) != 2 {
			t.Errorf("query %s", r.URL.RawQuery)
		}
		next := q.Get("page") == "1"
		// The second page repeats a sandbox, as when one was made meanwhile.
		reply(w, 200, map[string]any{"items": []map[string]any{{"id": "x" + q.Get("page")}, {"id": "same"}},
			"pagination": map[string]any{"page": 1, "hasNextPage": next}})
	})
	var ids []string
	for sb, err := range c.All(context.Background(), ListOptions{States: []string{"Running", "Paused"}, Metadata: map[string]string{"a&b": "c=d"}}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, sb.ID)
	}
	if got := strings.Join(ids, " "); got != "x1 same x2" {
		t.Errorf("ids %s", got)
	}
}

func TestIDsAreEscaped(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/v1/sandboxes/a%2F..%2Fb%3Fc" {
			t.Errorf("path %s", r.URL.EscapedPath())
		}
		reply(w, 200, map[string]any{"id": "x"})
	})
	if _, err := c.Get(context.Background(), "a/../b?c"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", ".", ".."} {
		if _, err := c.Get(context.Background(), id); err == nil {
			t.Errorf("id %q was taken", id)
		}
	}
}

func TestTimeoutNamesTheServer(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}, func(o *Options) { o.RequestTimeout = 20 * time.Millisecond })
	_, err := c.Get(context.Background(), "x")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not answer within") {
		t.Errorf("error %v", err)
	}
}

func TestNothingListens(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	address := srv.URL
	srv.Close()
	c, err := New(Options{Server: address, MaxRetries: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(context.Background(), "x"); err == nil || !strings.Contains(err.Error(), "paddock serve") {
		t.Errorf("error %v", err)
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-3": 0, "x": 0, "999999999999": 0, "100000": 24 * time.Hour,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := parseRetryAfter(in, now); got != want && in != "999999999999" {
			t.Errorf("parseRetryAfter(%q) = %s, want %s", in, got, want)
		}
	}
	if got := parseRetryAfter("999999999999", now); got > 24*time.Hour {
		t.Errorf("unbounded: %s", got)
	}
}
