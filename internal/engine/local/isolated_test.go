package local

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Copies work where overlayfs takes paths only, and on a disk of the sandbox's
// own.
func TestIsolatedCopies(t *testing.T) {
	for _, byPath := range []bool{false, true} {
		for _, disk := range []bool{false, true} {
			t.Run(fmt.Sprintf("overlay by path %v, limited disk %v", byPath, disk), func(t *testing.T) {
				h := newHost(t)
				h.opts.OverlayByPath = byPath
				e, _ := h.open(t)
				defer e.Close()
				change := func(*sandbox.Spec) {}
				if disk {
					needDisks(t)
					change = limited(64)
				}
				id := mustCreate(t, e, change)
				run(t, e, id, "mkdir /work; echo old > /work/file")
				status, body := isolatedCall(t, e, id, "POST", "session", `{"workspace":{"path":"/work"}}`)
				if status != http.StatusCreated {
					t.Fatalf("status %d: %s", status, body)
				}
				_, rest, _ := strings.Cut(body, `"session_id":"`)
				session := "session/" + rest[:36]
				if status, body := isolatedCall(t, e, id, "POST", session+"/run", `{"code":"echo new > file; rm -f none"}`); status != http.StatusOK || !strings.Contains(body, "execution_complete") {
					t.Errorf("run: status %d: %s", status, body)
				}
				if out, _ := run(t, e, id, "cat /work/file"); out != "old" {
					t.Errorf("before the commit the sandbox has %q", out)
				}
				if status, body := isolatedCall(t, e, id, "POST", session+"/commit", ""); status != http.StatusOK {
					t.Errorf("commit: status %d: %s", status, body)
				}
				if out, _ := run(t, e, id, "cat /work/file"); out != "new" {
					t.Errorf("after the commit the sandbox has %q", out)
				}
				if err := e.Remove(context.Background(), id); err != nil {
					t.Error(err)
				}
				if disk {
					awaitNoLoops(t, h)
				}
			})
		}
	}
}

// isolatedCall sends one request about isolated runs.
func isolatedCall(t *testing.T, e *Engine, id, method, path, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return e.Dial(ctx, id, sandbox.IsolatedPort)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://execd/v1/isolated/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(hostapi.TokenHeader, "token-of-"+id)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
