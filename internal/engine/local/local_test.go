package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/engine/local/execdbin"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const testImage = "test/busybox:1"

// host is one instance on this machine: its directories and images. Engines are
// opened on it one after another, as a restarted server would.
type host struct {
	opts Options
}

// newHost makes an instance and, when the test ends, removes all of it.
func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	if _, err := execdbin.Binary(); err != nil {
		t.Skip(err)
	}
	run, err := os.MkdirTemp("/run", "paddock-engine-")
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	data := t.TempDir()
	images, err := image.Open(ctx, image.Options{Root: filepath.Join(data, "images")})
	if err != nil {
		t.Fatal(err)
	}
	archive := imagetest.Archive(t, testImage, imagetest.Busybox(t))
	if _, err := images.Import(ctx, bytes.NewReader(archive), testImage); err != nil {
		t.Fatal(err)
	}
	h := &host{opts: Options{
		DataDir: data, RunDir: run, Images: images, PoolSize: 2,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
	t.Cleanup(func() {
		if err := Reset(ctx, h.opts); err != nil {
			t.Errorf("removing the test's instance: %v", err)
		}
		images.Close()
		os.RemoveAll(run)
	})
	return h
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// open opens an engine on the host and recovers what is recorded.
func (h *host) open(t *testing.T, recorded ...*sandbox.Sandbox) (*Engine, map[string]sandbox.Found) {
	t.Helper()
	e, err := New(context.Background(), h.opts)
	if err != nil {
		t.Fatal(err)
	}
	found, err := e.Recover(context.Background(), recorded)
	if err != nil {
		e.Close()
		t.Fatal(err)
	}
	return e, found
}

func newEngine(t *testing.T) *Engine {
	t.Helper()
	e, _ := newHost(t).open(t)
	t.Cleanup(func() { e.Close() })
	return e
}

// create makes a sandbox from the test image.
func create(t *testing.T, e *Engine, change func(*sandbox.Spec)) (string, error) {
	t.Helper()
	spec := &sandbox.Spec{Image: testImage, Entrypoint: []string{"sleep", "1000000"}}
	if change != nil {
		change(spec)
	}
	ctx := context.Background()
	if err := e.Check(ctx, spec); err != nil {
		return "", err
	}
	id, err := e.Reserve(ctx, spec)
	if err != nil {
		return "", err
	}
	_, err = e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "token-of-" + id})
	if err == nil {
		t.Cleanup(func() { e.Remove(ctx, id) })
	}
	return id, err
}

func mustCreate(t *testing.T, e *Engine, change func(*sandbox.Spec)) string {
	t.Helper()
	id, err := create(t, e, change)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// run runs a shell command in a sandbox and returns its output and exit code.
func run(t *testing.T, e *Engine, id, command string) (string, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return e.Dial(ctx, id, sandbox.ExecdPort)
		},
	}, Timeout: 30 * time.Second}
	body, _ := json.Marshal(map[string]any{"command": command})
	req, _ := http.NewRequest(http.MethodPost, "http://execd/command", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(hostapi.TokenHeader, "token-of-"+id)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return parseEvents(t, raw)
}

func parseEvents(t *testing.T, raw []byte) (out, code string) {
	t.Helper()
	var lines []string
	code = "no terminal event in " + string(raw)
	for _, line := range strings.Split(string(raw), "\n") {
		line = strings.TrimPrefix(line, "data: ")
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var ev struct {
			Type, Text string
			Error      struct{ Evalue string }
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatal(err)
		}
		switch ev.Type {
		case "stdout", "stderr":
			lines = append(lines, ev.Text)
		case "execution_complete":
			code = "0"
		case "error":
			code = ev.Error.Evalue
		}
	}
	return strings.Join(lines, "\n"), code
}

func TestCommandInSandbox(t *testing.T) {
	for _, byPath := range []bool{false, true} {
		t.Run(fmt.Sprintf("overlay by path %v", byPath), func(t *testing.T) {
			h := newHost(t)
			h.opts.OverlayByPath = byPath
			e, _ := h.open(t)
			defer e.Close()
			id := mustCreate(t, e, func(s *sandbox.Spec) { s.Env = map[string]string{"GREETING": "hi"} })
			out, code := run(t, e, id, "id -u; echo $GREETING $OPENSANDBOX_ID; touch /etc/x && ls /etc/x; exit 7")
			if want := "0\nhi " + id + "\n/etc/x"; out != want || code != "7" {
				t.Errorf("got output %q and exit code %s, want %q and 7", out, code, want)
			}
		})
	}
}

// Browsers and machine learning put much into /dev/shm. It counts against the
// memory limit, so that is its size.
func TestSharedMemoryIsAsLargeAsTheLimit(t *testing.T) {
	for _, c := range []struct {
		limit int64
		want  string // in KiB
	}{{0, "65536"}, {48 << 20, "49152"}, {300 << 20, "307200"}} {
		e := newEngine(t)
		id := mustCreate(t, e, func(s *sandbox.Spec) { s.Limits.MemoryBytes = c.limit })
		out, code := run(t, e, id, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; grep ' /dev/shm ' /proc/mounts")
		size, mount, _ := strings.Cut(out, "\n")
		if code != "0" || size != c.want || !strings.Contains(mount, "rw,nosuid,nodev,noexec") {
			t.Errorf("with a limit of %d: exit code %s, %s KiB, want %s; %s", c.limit, code, size, c.want, mount)
		}
	}
}

// What a sandbox can read about itself must not tell about the host.
func TestCgroupPathIsHidden(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	out, code := run(t, e, id, "cat /proc/self/cgroup")
	if code != "0" || strings.Contains(out, id) || strings.Contains(out, "paddock") {
		t.Errorf("exit code %s, %s", code, out)
	}
}
