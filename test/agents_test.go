package test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// agentSession starts the command that the document tells clients to start.
func agentSession(t *testing.T, s *harness.Server) *mcp.ClientSession {
	t.Helper()
	var config struct {
		Servers map[string]struct {
			Command string
			Args    []string
		} `json:"mcpServers"`
	}
	if err := json.Unmarshal([]byte(documented(t, s, "docs/agents.md", "mcp")), &config); err != nil {
		t.Fatal(err)
	}
	server := config.Servers["paddock"]
	if server.Command != "paddock" {
		t.Fatalf("the document's command is %q", server.Command)
	}
	cmd := exec.Command(harness.BinaryPath(), server.Args...)
	cmd.Env = s.Environ()
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	session, err := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil).
		Connect(t.Context(), &mcp.CommandTransport{Command: cmd, TerminateDuration: time.Minute}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	return session
}

// use calls a tool.
func use(t *testing.T, session *mcp.ClientSession, tool string, args map[string]any) (text string, res *mcp.CallToolResult) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	for _, c := range res.Content {
		if block, ok := c.(*mcp.TextContent); ok {
			text += block.Text
		}
	}
	return text, res
}

func TestAgentsOverMCP(t *testing.T) {
	s := withStarter(t)
	before := total(t, s)
	session := agentSession(t, s)
	if text, _ := use(t, session, "run_command", map[string]any{"command": "python3 -V"}); !strings.Contains(text, "Python 3") {
		t.Errorf("run_command: %s", text)
	}
	for _, c := range []struct {
		name   string
		args   map[string]any
		want   string
		failed bool
	}{
		{"a value", map[string]any{"code": "x = 6*7\nx"}, "--- result ---\n42\n", false},
		{"state", map[string]any{"code": "print(x + 1)"}, "--- stdout ---\n43\n", false},
		{"an exception", map[string]any{"code": "def f():\n    return 1/0\nf()"}, "ZeroDivisionError", true},
		{"an endless loop", map[string]any{"code": "print('begun')\nwhile True: pass", "timeout_seconds": 1}, "time-out of 1 seconds; variables are kept", true},
		{"its state", map[string]any{"code": "x"}, "42", false},
		{"restart", map[string]any{"code": "x", "restart": true}, "NameError", true},
		{"flood", map[string]any{"code": "for i in range(100000): print(i)"}, "bytes cut here", false},
		{"rich values", map[string]any{"code": "class P:\n    def _repr_markdown_(self): return '**bold**'\nP()"}, "**bold**", false},
		{"bash", map[string]any{"code": "A=shell; echo $A", "language": "bash"}, "shell\n", false},
		{"javascript", map[string]any{"code": "[1,2].map(n => n * 21)", "language": "javascript"}, "[ 21, 42 ]", false},
	} {
		text, res := use(t, session, "run_code", c.args)
		if res.IsError != c.failed || !strings.Contains(text, c.want) || len(text) > 100<<10 {
			t.Errorf("%s: error %v, %.2000q; want %q", c.name, res.IsError, text, c.want)
		}
	}
	// One pixel, shown as the picture that it is.
	pixel := `import base64
class Dot:
    def _repr_png_(self): return base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
Dot()`
	_, res := use(t, session, "run_code", map[string]any{"code": pixel})
	if picture, ok := res.Content[len(res.Content)-1].(*mcp.ImageContent); !ok || picture.MIMEType != "image/png" || len(picture.Data) != 70 {
		t.Errorf("a picture: %+v", res.Content)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
	if after := total(t, s); after != before {
		t.Errorf("the session leaves %d sandboxes", after-before)
	}
}

func TestAgentsWithPython(t *testing.T) {
	s := withStarter(t)
	python := sdkPython(t, newestSDK)
	before := total(t, s)
	out := script(t, python, "-c", documented(t, s, "docs/agents.md", "agentpython"))
	if !strings.HasPrefix(out, "42\n") || !strings.Contains(out, "No such file") || !strings.Contains(out, "exit code 2") {
		t.Errorf("it printed %q", out)
	}
	if after := total(t, s); after != before {
		t.Errorf("it leaves %d sandboxes", after-before)
	}
}

func TestAgentsWithTheCommandLine(t *testing.T) {
	s := withStarter(t)
	before := total(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", documented(t, s, "docs/agents.md", "shell"))
	cmd.Dir = t.TempDir()
	bin := t.TempDir()
	if err := os.Symlink(harness.BinaryPath(), filepath.Join(bin, "paddock")); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(s.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "42\nfrom a file\n") {
		t.Errorf("%v: %s", err, out)
	}
	if after := total(t, s); after != before {
		t.Errorf("it leaves %d sandboxes", after-before)
	}
}

// The interpreter through the client: what MCP does not show.
func TestCodeClient(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	made, err := s.Client.CreateCodeContext(ctx, sb.ID, "python", "/tmp")
	if err != nil {
		t.Fatal(err)
	}
	run := func(code string) (*client.CodeOutcome, string, []client.CodeResult) {
		t.Helper()
		var out strings.Builder
		var results []client.CodeResult
		o, err := s.Client.RunCode(ctx, sb.ID, client.Code{Source: code, Context: made.ID}, client.CodeOutput{
			Stdout: &out, OnResult: func(r client.CodeResult) error { results = append(results, r); return nil },
		})
		if err != nil {
			t.Fatalf("%q: %v", code, err)
		}
		return o, out.String(), results
	}
	o, out, results := run("import os; print(os.getcwd(), end=''); 6*7")
	if text, _ := results[0].Text("text/plain"); o.Err != nil || o.Context != made.ID || o.Count != 1 || out != "/tmp" || text != "42" {
		t.Errorf("%+v, %q, %v", o, out, results)
	}
	if o, _, _ := run("raise ValueError('so')"); o.Err == nil || o.Err.Name != "ValueError" || o.Err.Value != "so" || len(o.Err.Traceback) == 0 {
		t.Errorf("%+v", o.Err)
	}
	started, ended := make(chan struct{}), make(chan *client.CodeOutcome, 1)
	go func() {
		defer close(ended)
		o, err := s.Client.RunCode(ctx, sb.ID, client.Code{Source: "print('on')\nwhile True: pass", Context: made.ID},
			client.CodeOutput{Stdout: writerFunc(func(p []byte) (int, error) { close(started); return len(p), nil })})
		if err == nil {
			ended <- o
		}
	}()
	<-started
	if err := s.Client.InterruptCode(ctx, sb.ID, made.ID); err != nil {
		t.Error(err)
	}
	if o := <-ended; o == nil || o.Err == nil || o.Err.Name != "KeyboardInterrupt" {
		t.Errorf("interrupted: %+v", o)
	}
	list, err := s.Client.CodeContexts(ctx, sb.ID, "python")
	if err != nil || len(list) != 1 || list[0].ID != made.ID || list[0].Cwd != "/tmp" {
		t.Errorf("%+v, %v", list, err)
	}
	languages, err := s.Client.Languages(ctx, sb.ID)
	if err != nil || len(languages) == 0 || languages[0].Name != "python" || !languages[0].Available {
		t.Errorf("%+v, %v", languages, err)
	}
	if err := s.Client.DeleteCodeContext(ctx, sb.ID, made.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Client.CodeContext(ctx, sb.ID, made.ID); !client.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
