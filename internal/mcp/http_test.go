package mcp_test

import (
	"bufio"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// httpServer starts `paddock mcp --transport http` and returns its URL and a
// function that ends it with a signal.
func httpServer(t *testing.T, s *harness.Server, args ...string) (url string, stop func()) {
	t.Helper()
	cmd := exec.Command(harness.BinaryPath(), append([]string{"mcp", "--image", image, "--transport", "http", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = s.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for url == "" && lines.Scan() {
		_, url, _ = strings.Cut(lines.Text(), "serving MCP at ")
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, stderr)
	}()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cmd.Process.Signal(syscall.SIGTERM)
		<-drained
		if err := cmd.Wait(); err != nil {
			t.Errorf("paddock mcp ended with %v", err)
		}
	}
	t.Cleanup(stop)
	if url == "" {
		t.Fatal("paddock mcp does not say where it serves")
	}
	return url, stop
}

// withHeader adds a header to every request.
type withHeader struct{ name, value string }

func (h withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(h.name, h.value)
	return http.DefaultTransport.RoundTrip(r)
}

func overHTTP(t *testing.T, url, header, value string) *agent {
	t.Helper()
	return connect(t, &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: withHeader{header, value}}}, nil, nil)
}

func testHTTP(t *testing.T, s *harness.Server) {
	url, stop := httpServer(t, s)
	a := overHTTP(t, url, "Authorization", "Bearer "+s.Key)
	b := overHTTP(t, url, "OPEN-SANDBOX-API-KEY", s.Key)
	a.has("42", "run_command", object{"command": "echo $((6*7)) | tee /tmp/f"})
	b.fails("no such file", "file_read", object{"path": "/tmp/f"})
	both := ids(t, s)
	if len(both) != 2 {
		t.Fatalf("sandboxes of two sessions: %v", both)
	}
	mine := ""
	for _, id := range both {
		if _, _, code := s.Shell(t, id, "test -e /tmp/f"); code == 0 {
			mine = id
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	// The end of a session is answered before its sandbox is deleted.
	for _, id := range both {
		if id != mine {
			s.Gone(t, id, time.Minute)
		}
	}
	for _, c := range []struct {
		headers []string
		status  int
	}{
		{nil, 401}, {[]string{"Authorization", "Bearer wrong"}, 401}, {[]string{"Authorization", "Basic " + s.Key}, 401},
		{[]string{"OPEN-SANDBOX-API-KEY", ""}, 401}, {[]string{"Authorization", "Bearer " + s.Key, "OPEN-SANDBOX-API-KEY", "wrong"}, 401},
		{[]string{"Authorization", "Bearer " + s.Key, "Origin", "http://evil.example"}, 403},
		{[]string{"Authorization", "Bearer " + s.Key, "Host", "evil.example"}, 403},
	} {
		if got := post(t, url, c.headers); got != c.status {
			t.Errorf("with %q: status %d, want %d", c.headers, got, c.status)
		}
	}
	stop()
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	url, _ = httpServer(t, s, "--insecure-no-auth")
	overHTTP(t, url, "X-Nothing", "x").has("ok", "run_command", object{"command": "echo ok"})
	if got := post(t, url, []string{"Host", "evil.example"}); got != 403 {
		t.Errorf("another host without a key: status %d", got)
	}
}

func post(t *testing.T, url string, headers []string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
