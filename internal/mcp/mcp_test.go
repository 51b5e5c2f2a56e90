package mcp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const image = "busybox:test"

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		harness.SweepStale(context.Background(), harness.BinaryPath())
	}
	code := m.Run()
	if dir, err := harness.RunDir(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// newServer starts a paddock server with an image.
func newServer(t *testing.T) *harness.Server {
	t.Helper()
	s := harness.New(t, map[string]string{"pool.size": "2"})
	if _, err := s.Client.ImportImage(t.Context(), bytes.NewReader(imagetest.Archive(t, image, imagetest.Busybox(t))), image); err != nil {
		t.Fatal(err)
	}
	return s
}

// agent is a client's session with `paddock mcp`.
type agent struct {
	*mcp.ClientSession
	t *testing.T
	// process is nil over HTTP.
	process *exec.Cmd
}

// overStdio starts `paddock mcp` and a session with it.
func overStdio(t *testing.T, s *harness.Server, o *mcp.ClientOptions, args ...string) *agent {
	t.Helper()
	cmd := exec.Command(harness.BinaryPath(), append([]string{"mcp", "--image", image}, args...)...)
	cmd.Env = s.Environ()
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return connect(t, &mcp.CommandTransport{Command: cmd, TerminateDuration: time.Minute}, o, cmd)
}

func connect(t *testing.T, transport mcp.Transport, o *mcp.ClientOptions, cmd *exec.Cmd) *agent {
	t.Helper()
	cs, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, o).Connect(t.Context(), transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cs.Close() })
	return &agent{cs, t, cmd}
}

type object = map[string]any

// result calls a tool.
func (a *agent) result(name string, args object) *mcp.CallToolResult {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 2*time.Minute)
	defer cancel()
	res, err := a.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		a.t.Fatalf("%s: %v", name, err)
	}
	return res
}

func textOf(res *mcp.CallToolResult) string {
	var b strings.Builder
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

// ok calls a tool that must succeed and returns its text.
func (a *agent) ok(name string, args object) string {
	a.t.Helper()
	res := a.result(name, args)
	if res.IsError {
		a.t.Fatalf("%s %v: %s", name, args, textOf(res))
	}
	return textOf(res)
}

// fails calls a tool that must fail, with words that say what to do.
func (a *agent) fails(want, name string, args object) {
	a.t.Helper()
	res := a.result(name, args)
	if !res.IsError || !strings.Contains(textOf(res), want) {
		a.t.Errorf("%s %v: error %v, %q; want an error with %q", name, args, res.IsError, textOf(res), want)
	}
}

// has calls a tool whose answer must contain words.
func (a *agent) has(want, name string, args object) string {
	a.t.Helper()
	got := a.ok(name, args)
	if !strings.Contains(got, want) {
		a.t.Errorf("%s %v: %q, want %q in it", name, args, got, want)
	}
	return got
}

// into decodes the JSON of an answer.
func (a *agent) into(out any, name string, args object) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.ok(name, args)), out); err != nil {
		a.t.Fatalf("%s: %v", name, err)
	}
}

func ids(t *testing.T, s *harness.Server) []string {
	t.Helper()
	var out []string
	for sb, err := range s.Client.All(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, sb.ID)
	}
	return out
}

func TestMCP(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct {
		name string
		f    func(*testing.T, *harness.Server)
	}{
		{"tools are described", testDescriptions}, {"commands", testCommands}, {"background", testBackground},
		{"files", testFiles}, {"edits and searches", testEdits}, {"sandboxes", testSandboxes}, {"code", testCode},
		{"own sandbox", testOwnSandbox}, {"lifetime", testLifetime}, {"progress", testProgress}, {"signals", testSignals}, {"cancel", testCancel}, {"http", testHTTP},
		{"usage", testUsage},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, s) })
	}
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("sandboxes are left: %v", left)
	}
}

// Every tool and every argument says what it is for.
func testDescriptions(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	if a.InitializeResult().Instructions == "" {
		t.Error("no instructions")
	}
	n := 0
	for tool, err := range a.Tools(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if len(tool.Description) < 20 || tool.Annotations == nil || tool.Annotations.Title == "" {
			t.Errorf("%s is not described", tool.Name)
		}
		schema := tool.InputSchema.(object)
		for name, property := range schema["properties"].(object) {
			if d, _ := property.(object)["description"].(string); len(d) < 8 {
				t.Errorf("%s: %s is not described", tool.Name, name)
			}
		}
		if required, _ := schema["required"].([]any); strings.Contains(fmt.Sprint(required), "sandbox_id") != (tool.Name == "sandbox_delete") {
			t.Errorf("%s requires %v", tool.Name, required)
		}
	}
	if n != 17 {
		t.Errorf("%d tools", n)
	}
	a.fails("additional", "run_command", object{"command": "true", "cmd": "x"})
	a.fails("command", "run_command", object{})
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("sandboxes were made without need: %v", left)
	}
}

func testCommands(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	first := a.has("exit code 0\n--- stdout ---\n42\n", "run_command", object{"command": "echo $((6*7))"})
	if !strings.Contains(first, "made this session's sandbox") {
		t.Errorf("the sandbox that was made is not named: %q", first)
	}
	if again := a.ok("run_command", object{"command": "true"}); again != "exit code 0\n(no output)\n" {
		t.Errorf("got %q", again)
	}
	a.has("exit code 3\n--- stdout ---\nout\n--- stderr ---\nerr\n", "run_command", object{"command": "echo out; echo err >&2; exit 3"})
	a.has("/tmp-b", "run_command", object{"command": "echo $PWD-$A", "cwd": "/tmp", "env": object{"A": "b"}})
	a.has("\uFFFD", "run_command", object{"command": `printf '\377'`})
	a.has("killed by a signal", "run_command", object{"command": "kill -9 $$"})
	a.fails("time-out of 1 seconds", "run_command", object{"command": "echo begun; sleep 100", "timeout_seconds": 1})
	long := a.has("bytes cut here", "run_command", object{"command": "seq 100000", "max_output_bytes": 2000})
	if len(long) > 3000 || !strings.Contains(long, "\n1\n2\n") || !strings.Contains(long, "99999\n100000\n") || !strings.Contains(long, "file_read") {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	a.fails("command is empty", "run_command", object{"command": " "})
	a.fails("max_output_bytes", "run_command", object{"command": "true", "max_output_bytes": 5})
	a.fails("timeout_seconds", "run_command", object{"command": "true", "timeout_seconds": 1e6})
	a.fails("cwd", "run_command", object{"command": "true", "cwd": "/no/such"})
	a.fails("sandbox_list", "run_command", object{"command": "true", "sandbox_id": "nope"})
}

func testBackground(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	command := func(text string) string {
		_, rest, _ := strings.Cut(text, "command_id ")
		id, _, _ := strings.Cut(rest, "\n")
		return id
	}
	id := command(a.has("background", "run_command", object{"command": "echo one; read x < /tmp/go; echo two; exit 4", "background": true}))
	a.ok("run_command", object{"command": "mkfifo /tmp/go 2>/dev/null; true"})
	id = command(a.ok("run_command", object{"command": "echo one; read x < /tmp/go; echo two; exit 4", "background": true}))
	var st struct {
		Running  bool
		ExitCode *int `json:"exit_code"`
	}
	if a.into(&st, "command_status", object{"command_id": id}); !st.Running || st.ExitCode != nil {
		t.Errorf("status %+v", st)
	}
	a.ok("run_command", object{"command": "echo > /tmp/go"})
	if a.into(&st, "command_status", object{"command_id": id, "wait_seconds": 50}); st.Running || st.ExitCode == nil || *st.ExitCode != 4 {
		t.Errorf("status %+v", st)
	}
	if got := a.ok("command_logs", object{"command_id": id}); got != "one\ntwo\n--- next cursor 8; the command has ended with exit code 4 ---\n" {
		t.Errorf("logs %q", got)
	}
	a.has("two\n", "command_logs", object{"command_id": id, "cursor": 4})
	id = command(a.ok("run_command", object{"command": "seq 10000; sleep 1000", "background": true}))
	var got strings.Builder
	for cursor := 0; !strings.HasSuffix(got.String(), "\n10000\n"); {
		part := a.ok("command_logs", object{"command_id": id, "cursor": cursor, "max_output_bytes": 1024})
		body, note, _ := strings.Cut(part, "--- next cursor ")
		fmt.Sscan(note, &cursor)
		got.WriteString(body)
		if got.Len() < cursor { // a line end was added to an unfinished line
			t.Fatalf("%d bytes with cursor %d", got.Len(), cursor)
		}
		text := got.String()
		got.Reset()
		got.WriteString(text[:cursor])
	}
	a.ok("command_stop", object{"command_id": id})
	if a.into(&st, "command_status", object{"command_id": id, "wait_seconds": 50}); st.Running {
		t.Error("it was not stopped")
	}
	a.ok("command_stop", object{"command_id": id})
	a.fails("command_id that run_command gave", "command_status", object{"command_id": "nope"})
	a.fails("command_id that run_command gave", "command_logs", object{"command_id": "../../files/info"})
}

func testSandboxes(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	var made struct {
		ID        string `json:"sandbox_id"`
		State     string
		ExpiresAt time.Time `json:"expires_at"`
	}
	a.into(&made, "sandbox_create", object{"timeout_seconds": 600, "env": object{"A": "b"}, "memory": "64Mi", "metadata": object{"task": "x"}})
	if made.State != "Running" || time.Until(made.ExpiresAt) > 600*time.Second {
		t.Errorf("%+v", made)
	}
	s.Forget(t, made.ID)
	a.has("b\n", "run_command", object{"command": "echo $A", "sandbox_id": made.ID})
	a.has(made.ID, "sandbox_list", object{"state": "Running"})
	a.has(`"total":1`, "sandbox_list", object{})
	a.ok("sandbox_pause", object{"sandbox_id": made.ID})
	a.fails("sandbox_resume", "run_command", object{"command": "true", "sandbox_id": made.ID})
	a.ok("sandbox_resume", object{"sandbox_id": made.ID})
	before := made.ExpiresAt
	if a.into(&made, "sandbox_renew", object{"sandbox_id": made.ID, "timeout_seconds": 3600}); !made.ExpiresAt.After(before) {
		t.Errorf("not renewed: %v, then %v", before, made.ExpiresAt)
	}
	var port struct {
		URL     string
		Headers map[string]string
	}
	a.ok("run_command", object{"sandbox_id": made.ID, "background": true,
		"command": `mkdir -p /tmp/www && echo served > /tmp/www/index.html && httpd -f -p 8000 -h /tmp/www || nc -lk -p 8000 -e printf 'HTTP/1.0 200 OK\r\n\r\nserved\n'`})
	a.into(&port, "port_url", object{"sandbox_id": made.ID, "port": 8000})
	if got := fetch(t, port.URL, port.Headers); got != "served\n" {
		t.Errorf("the port answers %q", got)
	}
	a.fails("1 to 65535", "port_url", object{"sandbox_id": made.ID, "port": 0})
	a.fails("60 to 86400", "sandbox_create", object{"timeout_seconds": 5})
	a.fails("memory", "sandbox_create", object{"memory": "lots"})
	a.fails("nowhere", "sandbox_create", object{"image": "127.0.0.1:1/nowhere:1"})
	a.ok("sandbox_delete", object{"sandbox_id": made.ID})
	a.fails("sandbox_list", "sandbox_delete", object{"sandbox_id": made.ID})
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// fetch gets a page, and waits until somebody serves it.
func fetch(t *testing.T, url string, headers map[string]string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range headers {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadGateway {
			return string(body)
		}
		select {
		case <-ctx.Done():
			t.Fatal("nobody serves")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// The image has no python, and that is said.
func testCode(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	a.fails("another image", "run_code", object{"code": "1"})
	a.fails("not supported", "run_code", object{"code": "1", "language": "cobol"})
	a.fails("code is empty", "run_code", object{"code": ""})
}

// A session has one sandbox, and takes it along when it ends.
func testOwnSandbox(t *testing.T, s *harness.Server) {
	a, b := overStdio(t, s, nil), overStdio(t, s, nil)
	a.ok("run_command", object{"command": "echo mine > /tmp/f"})
	a.has("mine", "file_read", object{"path": "/tmp/f"})
	b.fails("no such file", "file_read", object{"path": "/tmp/f"})
	both := ids(t, s)
	if len(both) != 2 {
		t.Fatalf("sandboxes %v", both)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	left := ids(t, s)
	if len(left) != 1 {
		t.Fatalf("after the end of a session: %v", left)
	}
	// One that was taken away is replaced, and that is said.
	if err := s.Client.Delete(t.Context(), left[0]); err != nil {
		t.Fatal(err)
	}
	a.fails("gone", "run_command", object{"command": "true"})
	a.has("made this session's sandbox", "run_command", object{"command": "true"})
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// The sandbox outlives every call by its lifetime.
func testLifetime(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil, "--timeout", "1m", "--memory", "64Mi")
	left := func() time.Duration {
		t.Helper()
		sb, err := s.Client.Get(t.Context(), ids(t, s)[0])
		if err != nil || sb.ExpiresAt == nil {
			t.Fatalf("%+v, %v", sb, err)
		}
		return time.Until(*sb.ExpiresAt)
	}
	a.ok("run_command", object{"command": "true", "timeout_seconds": 1})
	if d := left(); d < time.Minute || d > 5*time.Minute {
		t.Errorf("after a short call %s are left", d)
	}
	a.ok("run_command", object{"command": "true", "timeout_seconds": 3600})
	if d := left(); d < time.Hour {
		t.Errorf("for a call of an hour %s are left", d)
	}
}

// A client that asks is told that a long command still runs.
func testProgress(t *testing.T, s *harness.Server) {
	heard := make(chan string, 100)
	a := overStdio(t, s, &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
		heard <- r.Params.Message
	}})
	a.ok("run_command", object{"command": "mkfifo /tmp/go"})
	id := ids(t, s)[0]
	called := make(chan *mcp.CallToolResult, 1)
	go func() {
		p := &mcp.CallToolParams{Name: "run_command", Arguments: object{"command": "cat /tmp/go"}}
		p.SetProgressToken("token")
		res, err := a.CallTool(t.Context(), p)
		if err != nil {
			t.Error(err)
		}
		called <- res
	}()
	select {
	case text := <-heard:
		if !strings.Contains(text, "running for") {
			t.Errorf("heard %q", text)
		}
	case <-time.After(time.Minute):
		t.Error("nothing was heard")
	}
	s.Must(t, id, "echo on > /tmp/go")
	if res := <-called; res == nil || !strings.Contains(textOf(res), "exit code 0") {
		t.Errorf("%+v", res)
	}
}

// A signal ends the server in the middle of a call, and it leaves nothing.
func testSignals(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	a.ok("run_command", object{"command": "true"})
	called := make(chan error, 1)
	go func() {
		_, err := a.CallTool(t.Context(), &mcp.CallToolParams{Name: "run_command", Arguments: object{"command": "touch /tmp/begun; sleep 1000"}})
		called <- err
	}()
	id := ids(t, s)[0]
	s.Must(t, id, "until test -e /tmp/begun; do sleep 0.01; done")
	if err := a.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-called:
	case <-time.After(time.Minute):
		t.Fatal("the call does not end")
	}
	a.Close()
	if left := ids(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A call that its client cancels ends its command.
func testCancel(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	a.ok("run_command", object{"command": "true"})
	id := ids(t, s)[0]
	ctx, cancel := context.WithCancel(t.Context())
	called := make(chan error, 1)
	go func() {
		_, err := a.CallTool(ctx, &mcp.CallToolParams{Name: "run_command", Arguments: object{"command": "echo $$ > /tmp/pid; exec sleep 1000"}})
		called <- err
	}()
	s.Must(t, id, "until test -s /tmp/pid; do sleep 0.01; done")
	cancel()
	if err := <-called; err == nil {
		t.Error("the cancelled call succeeded")
	}
	s.Must(t, id, "n=0; while kill -0 $(cat /tmp/pid) 2>/dev/null; do n=$((n+1)); test $n -lt 3000 || exit 1; sleep 0.01; done")
	a.has("exit code 0", "run_command", object{"command": "true"})
}

func testUsage(t *testing.T, s *harness.Server) {
	for _, args := range [][]string{
		{"--transport", "carrier-pigeon"}, {"--listen", "127.0.0.1:1"}, {"--timeout", "1s"}, {"--memory", "x"}, {"--cpu", "x"},
		{"--transport", "http", "--insecure-no-auth", "--listen", "0.0.0.0:0"}, {"--image", ""}, {"what"},
	} {
		cmd := exec.CommandContext(t.Context(), harness.BinaryPath(), append([]string{"mcp"}, args...)...)
		cmd.Env = s.Environ()
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "Try:") {
			t.Errorf("paddock mcp %q: %d, %s", args, cmd.ProcessState.ExitCode(), out)
		}
	}
}
