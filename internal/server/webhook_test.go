package server

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// hook is a webhook towards answer; calls gives the bodies that it gets.
func hook(t *testing.T, answer http.HandlerFunc) (h *DenialWebhook, calls chan map[string]any) {
	t.Helper()
	calls = make(chan map[string]any, 2*webhookQueue)
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var got map[string]any
		if err := json.Unmarshal(body, &got); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, body, err)
		}
		calls <- got
		answer(w, r)
	}))
	t.Cleanup(ts.Close)
	h, err := NewDenialWebhook(ts.URL+"/hook?key=secret", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h.backoff = time.Millisecond
	t.Cleanup(h.Close)
	return h, calls
}

func take(t *testing.T, calls chan map[string]any) map[string]any {
	t.Helper()
	select {
	case c := <-calls:
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("no call")
		return nil
	}
}

func TestWebhookBody(t *testing.T) {
	h, calls := hook(t, func(http.ResponseWriter, *http.Request) {})
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	h.Send(sandbox.Denial{ID: "sb", At: at, Protocol: "dns", Name: "bad.example", Rule: 3, Target: "*.example"}, 7)
	c := take(t, calls)
	for name, want := range map[string]any{"hostname": "bad.example", "timestamp": "2030-01-02T03:04:05Z", "source": "opensandbox-egress", "sandboxId": "sb",
		"protocol": "dns", "rule": 3.0, "target": "*.example", "count": 7.0} {
		if c[name] != want {
			t.Errorf("%s is %v, want %v", name, c[name], want)
		}
	}
	h.Send(sandbox.Denial{ID: "sb", At: at, Protocol: "tcp", To: netip.MustParseAddrPort("192.0.2.1:25"), Rule: -1}, 1)
	if c = take(t, calls); c["hostname"] != "192.0.2.1" || c["address"] != "192.0.2.1:25" {
		t.Errorf("%v", c)
	}
}

func TestWebhookRetries(t *testing.T) {
	for _, test := range []struct {
		status, calls int
	}{{500, 1 + webhookRetries}, {503, 1 + webhookRetries}, {400, 1}, {404, 1}, {302, 1}, {200, 1}} {
		h, calls := hook(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(test.status)
		})
		_ = h.deliver(denialEvent{Hostname: "a.example"})
		if len(calls) != test.calls {
			t.Errorf("%d: %d calls, want %d", test.status, len(calls), test.calls)
		}
	}
	left := atomic.Int32{}
	left.Store(2)
	h, calls := hook(t, func(w http.ResponseWriter, _ *http.Request) {
		if left.Add(-1) >= 0 {
			w.WriteHeader(500)
		}
	})
	if err := h.deliver(denialEvent{}); err != nil || len(calls) != 3 {
		t.Errorf("%v after %d calls", err, len(calls))
	}
}

// A receiver that does not answer holds up neither what sends nor the end.
func TestWebhookHangs(t *testing.T) {
	over := make(chan struct{})
	h, calls := hook(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-over:
		case <-r.Context().Done():
		}
	})
	defer close(over)
	for range 2 * webhookQueue {
		h.Send(sandbox.Denial{ID: "sb"}, 1)
	}
	take(t, calls)
	if h.dropped.Load() == 0 {
		t.Error("more wait than are allowed to")
	}
	h.Close()
}

func TestWebhookURL(t *testing.T) {
	for _, bad := range []string{"", "ftp://a.example", "//a.example", "https://", "a.example/hook"} {
		if h, err := NewDenialWebhook(bad, nil); err == nil {
			h.Close()
			t.Errorf("%q is taken", bad)
		}
	}
}
