package execd

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// Where the engine comes over TCP anybody on the host may come first: nothing but
// the key claims the sandbox, and nothing but its token does anything after that.
func TestClaimNeedsItsKey(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Host: l, Key: "key", Procs: process.NewTable()})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	defer func() {
		stop()
		<-served
	}()
	ask := func(method, path, header, value string) int {
		t.Helper()
		// Of an isolated session: it starts no entrypoint on this machine.
		body := `{"id":"x","token":"token","session":{"id":"x"}}`
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(header, value)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		method, path, header, value string
		want                        int
	}{
		{"POST", hostapi.ClaimPath, "X-Other", "key", 401},
		{"POST", hostapi.ClaimPath, hostapi.KeyHeader, "", 401},
		{"POST", hostapi.ClaimPath, hostapi.KeyHeader, "key2", 401},
		{"POST", hostapi.ClaimPath, hostapi.TokenHeader, "token", 401},
		{"GET", hostapi.ExitPath, hostapi.KeyHeader, "key", 503},
		{"POST", hostapi.ClaimPath, hostapi.KeyHeader, "key", 200},
		{"POST", hostapi.ClaimPath, hostapi.KeyHeader, "key", 401},
		{"GET", hostapi.ExitPath, hostapi.KeyHeader, "key", 401},
		{"GET", "/ping", hostapi.KeyHeader, "key", 401},
		{"GET", "/ping", hostapi.TokenHeader, "token", 200},
		{"POST", hostapi.ClaimPath, hostapi.TokenHeader, "token", 404},
	} {
		if got := ask(c.method, c.path, c.header, c.value); got != c.want {
			t.Errorf("%s %s with %s %q: %d, want %d", c.method, c.path, c.header, c.value, got, c.want)
		}
	}
}
