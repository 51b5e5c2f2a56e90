package test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A copy into a sandbox whose disk is full says so, and leaves nothing.
func TestCopyIntoAFullSandbox(t *testing.T) {
	s := sharedServer(t)
	r := paddock(t, s, "create", busyboxImage, "--timeout", "10m", "--disk", "32Mi")
	if r.code != 0 {
		if strings.Contains(r.stderr, "ephemeral-storage") {
			t.Skipf("no limits of disks here: %s", r.stderr)
		}
		t.Fatal(r.stderr)
	}
	id := strings.TrimSpace(r.stdout)
	s.Forget(t, id)
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	content := make([]byte, 48<<20)
	for i := range content {
		content[i] = byte(i>>8) | 1 // not a hole
	}
	if err := os.WriteFile(big, content, 0o644); err != nil {
		t.Fatal(err)
	}
	before := s.Must(t, id, "ls -A / /tmp")
	for _, line := range [][]string{{"cp", big, id + ":/tmp/big"}, {"cp", dir + "/.", id + ":/tmp"}} {
		if r := paddock(t, s, line...); r.code != 1 || !strings.Contains(r.stderr, "no space left on device") {
			t.Errorf("%q: %+v", line, r)
		}
	}
	if after := s.Must(t, id, "ls -A / /tmp"); after != before {
		t.Errorf("left in the sandbox:\n%s\nbefore:\n%s", after, before)
	}
	ok(t, s, "cp", "/etc/hostname", id+":/tmp/small")
}

// Clients that go in the middle of a download, an archive or an upload leave
// nothing behind, and the sandbox goes on.
func TestAbandonedTransfers(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	s.Must(t, sb.ID, "mkdir /tmp/d && head -c 50000000 /dev/urandom >/tmp/d/big")
	execd := s.URL + "/v1/sandboxes/" + sb.ID + "/proxy/44772"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request := func(ctx context.Context, method, route string, body io.Reader) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, execd+route, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("OPEN-SANDBOX-API-KEY", s.Key)
		return http.DefaultClient.Do(req)
	}
	for _, route := range []string{"/files/download?path=" + url.QueryEscape("/tmp/d/big"), "/directories/archive?path=" + url.QueryEscape("/tmp/d")} {
		for range 10 {
			going, leave := context.WithCancel(ctx)
			resp, err := request(going, http.MethodGet, route, nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %v, %v", route, resp, err)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			leave()
			resp.Body.Close()
		}
	}
	going, leave := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := request(going, http.MethodPost, "/directories/archive?path=/tmp/d", pr); err == nil {
			resp.Body.Close()
		}
	}()
	go func() {
		_, _ = pw.Write(append(header("half", 30<<20), make([]byte, 1<<20)...))
		leave()
		pw.CloseWithError(context.Canceled)
	}()
	<-done
	// Of execd: PID 1. Its descriptors and the temporary file go with the
	// requests.
	for ctx.Err() == nil {
		if s.Must(t, sb.ID, "ls -l /proc/1/fd | grep -c /tmp/d; ls -A /tmp/d") == "0\nbig" {
			return
		}
	}
	t.Errorf("left: %s", s.Must(t, sb.ID, "ls -l /proc/1/fd; ls -A /tmp/d"))
}

// header is the header of a file in an archive.
func header(name string, size int64) []byte {
	var b bytes.Buffer
	// Writing only the header never fails.
	_ = tar.NewWriter(&b).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
	return b.Bytes()
}
