package execd_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

// binary is the execd under test, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "execd-test")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "execd")
	build := exec.Command("go", "build", "-o", binary, "github.com/paddock-sandbox/paddock/cmd/execd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if race {
		build.Args = append(build.Args[:2:2], append([]string{"-race"}, build.Args[2:]...)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building execd: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

const token = "secret-of-the-sandbox"

// box is an execd that is PID 1 of its own namespaces, as in a sandbox, but on
// the machine's filesystem.
type box struct {
	t      testing.TB
	dir    string
	client *http.Client
	logs   [2]string
	cmd    *exec.Cmd
}

// newBox starts an unclaimed execd.
func newBox(t testing.TB) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces of its own need root")
	}
	// Not t.TempDir: its name may be too long for a socket's.
	dir, err := os.MkdirTemp("", "execd")
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	extra := []*os.File{lf}
	for i := range b.logs {
		b.logs[i] = filepath.Join(dir, fmt.Sprint("log", i))
		f, err := os.Create(b.logs[i])
		if err != nil {
			t.Fatal(err)
		}
		extra = append(extra, f)
	}
	b.cmd = exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net",
		"sh", "-c", "ip link set lo up; exec "+binary)
	b.cmd.ExtraFiles = extra
	b.cmd.Stderr = os.Stderr
	if err := b.cmd.Start(); err != nil {
		t.Skipf("no namespaces can be made here: %v", err)
	}
	for _, f := range extra {
		f.Close()
	}
	t.Cleanup(func() {
		b.cmd.Process.Kill()
		b.cmd.Wait()
	})
	b.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 200,
	}}
	t.Cleanup(b.client.CloseIdleConnections)
	return b
}

// claimed starts an execd with an entrypoint that does nothing.
func claimed(t testing.TB) *box {
	t.Helper()
	b := newBox(t)
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
	return b
}

func (b *box) claim(c hostapi.Claim) {
	b.t.Helper()
	if status, body := b.tryClaim(c); status != 200 {
		b.t.Fatalf("claim: %d %s", status, body)
	}
}

func (b *box) tryClaim(c hostapi.Claim) (int, string) {
	b.t.Helper()
	c.ID, c.Token = "test", token
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	// Not the machine's own.
	c.Env["EXECD_ENVS"] = filepath.Join(b.dir, "envs")
	body, _ := json.Marshal(c)
	resp := b.do("POST", hostapi.ClaimPath, string(body))
	return resp.StatusCode, read(b.t, resp)
}

func (b *box) request(method, path, body string) *http.Request {
	b.t.Helper()
	r, err := http.NewRequest(method, "http://execd"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set(hostapi.TokenHeader, token)
	return r
}

func (b *box) do(method, path, body string) *http.Response {
	b.t.Helper()
	resp, err := b.client.Do(b.request(method, path, body))
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

func read(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// get answers status and body.
func (b *box) get(method, path, body string) (int, string) {
	b.t.Helper()
	resp := b.do(method, path, body)
	return resp.StatusCode, read(b.t, resp)
}

type event struct {
	Type          string
	Text          string
	EOL           *string
	Raw           *string
	ExecutionTime *int64 `json:"execution_time"`
	Error         *struct {
		EName, EValue string
		Traceback     []string
	}
}

// result is a finished run.
type result struct {
	id     string
	events []event
	// out and err are the exact bytes of the output.
	out, err bytes.Buffer
	// code is the exit code by the rule of the SDKs.
	code      string
	traceback string
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

type m = map[string]any

func (b *box) run(body any) *result {
	b.t.Helper()
	resp := b.do("POST", "/command", jsonOf(body))
	if resp.StatusCode != 200 {
		b.t.Fatalf("%v: %d %s", body, resp.StatusCode, read(b.t, resp))
	}
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		b.t.Errorf("content type %q", ct)
	}
	return parse(b.t, read(b.t, resp))
}

// sh runs shell text and returns its exact stdout, which must end well.
func (b *box) sh(text string) string {
	b.t.Helper()
	r := b.run(m{"command": text})
	if r.code != "0" {
		b.t.Fatalf("%s: exit %s, stderr %q", text, r.code, r.err.String())
	}
	return r.out.String()
}

func parse(t testing.TB, body string) *result {
	t.Helper()
	r := &result{}
	terminal, pings := 0, 0
	for frame := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		var e event
		data, ok := strings.CutPrefix(frame, "data: ")
		if !ok {
			t.Fatalf("bad frame %q", frame)
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if terminal > 0 {
			t.Errorf("%q follows the terminal event", data)
		}
		switch e.Type {
		case "init":
			r.id = e.Text
		case "stdout":
			r.out.WriteString(exact(t, e))
		case "stderr":
			r.err.WriteString(exact(t, e))
		case "execution_complete":
			terminal++
			r.code = "0"
		case "error":
			terminal++
			r.code, r.traceback = e.Error.EValue, strings.Join(e.Error.Traceback, "\n")
		}
		if e.Type == "ping" {
			pings++
			continue // they may come anywhere
		}
		r.events = append(r.events, e)
	}
	if pings == 0 {
		t.Errorf("no ping with the first event: %.300q", body)
	}
	if terminal != 1 || len(r.events) == 0 || r.events[0].Type != "init" {
		t.Errorf("no proper stream: %.300q", body)
	}
	return r
}

// exact applies the rule of package event.
func exact(t testing.TB, e event) string {
	text, eol := e.Text, "\n"
	if text == "\n" {
		text = ""
	}
	if e.Raw != nil {
		raw, err := base64.StdEncoding.DecodeString(*e.Raw)
		if err != nil {
			t.Fatal(err)
		}
		text = string(raw)
	}
	if e.EOL != nil {
		eol = *e.EOL
	}
	return text + eol
}

func (b *box) log() string {
	b.t.Helper()
	r, err := entrylog.Open(b.t.Context(), b.logs, entrylog.Options{})
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}
