package code

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// refusal is the body of an error answer.
type refusal struct{ Code, Message string }

func (s *sandbox) refused(what string, status int, body []byte, wantStatus int, wantCode, wantText string) {
	s.t.Helper()
	var e refusal
	_ = json.Unmarshal(body, &e)
	if status != wantStatus || e.Code != wantCode || !strings.Contains(e.Message, wantText) {
		s.t.Errorf("%s: %d %s; want %d %s with %q", what, status, body, wantStatus, wantCode, wantText)
	}
}

func TestRefusals(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	for _, c := range []struct {
		method, path string
		body         any
		status       int
		code, text   string
	}{
		{"POST", "/code", "", 400, "INVALID_REQUEST_BODY", "empty"},
		{"POST", "/code", "{", 400, "INVALID_REQUEST_BODY", "JSON"},
		{"POST", "/code", "[]", 400, "INVALID_REQUEST_BODY", "object"},
		{"POST", "/code", `{"code":5}`, 400, "INVALID_REQUEST_BODY", `"code" is a JSON number`},
		{"POST", "/code", `{}`, 400, "INVALID_REQUEST_BODY", "code is missing"},
		{"POST", "/code", `{"code":" \n"}`, 400, "INVALID_REQUEST_BODY", "code is empty"},
		{"POST", "/code", `{"code":"1","context":{"id":"nope"}}`, 404, "CONTEXT_NOT_FOUND", "context not found"},
		{"POST", "/code", `{"code":"1","context":{"language":"cobol"}}`, 500, "NOT_SUPPORTED", "the languages are python"},
		{"POST", "/code", `{"code":"1","context":{"language":"sql"}}`, 500, "NOT_SUPPORTED", "sqlite3"},
		{"POST", "/code", fmt.Sprintf(`{"code":"1","context":{"id":%q,"language":"bash"}}`, id), 400, "INVALID_REQUEST_BODY", "is one of python"},
		{"POST", "/code", `{"code":"a\u0000b","context":{"language":"bash"}}`, 400, "INVALID_REQUEST_BODY", "NUL"},
		{"POST", "/code/context", `{}`, 400, "INVALID_REQUEST_BODY", "language is missing"},
		{"POST", "/code/context", `{"language":"command"}`, 500, "NOT_SUPPORTED", "no contexts"},
		{"POST", "/code/context", `{"language":"python","cwd":"/no/such"}`, 400, "INVALID_REQUEST_BODY", "/no/such"},
		{"GET", "/code/contexts?language=command", nil, 500, "NOT_SUPPORTED", "no contexts"},
		{"GET", "/code/contexts/nope", nil, 404, "CONTEXT_NOT_FOUND", "nope"},
		{"DELETE", "/code/contexts/nope", nil, 404, "CONTEXT_NOT_FOUND", "nope"},
		{"DELETE", "/code/contexts", nil, 400, "MISSING_QUERY", "language"},
		{"DELETE", "/code", nil, 400, "MISSING_QUERY", "id"},
		{"DELETE", "/code?id=nope", nil, 404, "COMMAND_NOT_FOUND", "nope"},
	} {
		status, body := s.call(c.method, c.path, c.body)
		s.refused(fmt.Sprint(c.method, " ", c.path, " ", c.body), status, body, c.status, c.code, c.text)
	}
}

func TestMissingProgram(t *testing.T) {
	s := newSandboxPath(t, t.TempDir())
	status, body := s.call("POST", "/code", map[string]any{"code": "1", "context": map[string]string{"language": "python"}})
	s.refused("python", status, body, 500, "RUNTIME_ERROR", "no program python3")
	_, body = s.call("GET", "/code/languages", nil)
	var list []languageInfo
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) < len(languages) || list[0].Language != "python" || list[0].Available || !strings.Contains(list[0].Missing, "python3") {
		t.Errorf("languages: %s", body)
	}
}

// TestBrokenProgram has an interpreter that ends at once.
func TestBrokenProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "python3"), []byte("#!/bin/sh\necho broken installation >&2\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSandboxPath(t, dir)
	for range 2 {
		status, body := s.call("POST", "/code/context", map[string]string{"language": "python"})
		s.refused("python", status, body, 500, "RUNTIME_ERROR", "exit status 7: broken installation")
	}
	if _, body := s.call("GET", "/code/contexts", nil); string(body) != "[]" {
		t.Errorf("contexts that could not be made are listed: %s", body)
	}
}

func TestContexts(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	list := func(query string) []description {
		_, body := s.call("GET", "/code/contexts"+query, nil)
		var l []description
		if err := json.Unmarshal(body, &l); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return l
	}
	if l := list("?language=python"); len(l) != 0 {
		t.Errorf("contexts at first: %v", l)
	}
	first := s.do("python", "v = 1")
	if again := s.do("PYTHON3", "v"); again.id != first.id || again.text(0) != "1" {
		t.Errorf("the default context is another: %s, %s", first.id, again.id)
	}
	a := s.make("python")
	b := s.make("bash")
	s.check("own state", step{name: "NameError"}, s.in(a, "v"))
	if l := list("?language=python"); len(l) != 2 || l[0].ID != first.id || l[1].ID != a {
		t.Errorf("python contexts: %v", l)
	}
	if l := list(""); len(l) != 3 {
		t.Errorf("all contexts: %v", l)
	}
	if status, body := s.call("GET", "/code/contexts/"+b, nil); status != 200 || !strings.Contains(string(body), `"language":"bash"`) {
		t.Errorf("get: %d %s", status, body)
	}
	if status, body := s.call("DELETE", "/code/contexts/"+a, nil); status != 200 || len(body) != 0 {
		t.Errorf("delete: %d %s", status, body)
	}
	if status, _ := s.call("DELETE", "/code/contexts/"+a, nil); status != 404 {
		t.Errorf("second delete: %d", status)
	}
	if status, _ := s.call("DELETE", "/code/contexts?language=python", nil); status != 200 {
		t.Errorf("delete by language: %d", status)
	}
	if l := list(""); len(l) != 1 || l[0].ID != b {
		t.Errorf("left: %v", l)
	}
	if o := s.do("python", "'new'"); o.id == first.id || o.text(0) != "'new'" {
		t.Errorf("the deleted default context is still there")
	}
}

func TestLimitOfContexts(t *testing.T) {
	need(t, "bash")
	s := newSandbox(t)
	var wait sync.WaitGroup
	for range maxContexts {
		wait.Go(func() {
			c, err := s.api.newContext(languageNames["bash"], "")
			if err == nil {
				err = s.api.contexts.add(c)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	status, body := s.call("POST", "/code/context", map[string]string{"language": "bash"})
	s.refused("one more", status, body, 429, "TOO_MANY_REQUESTS", "the limit")
	status, body = s.call("POST", "/code", map[string]any{"code": "1", "context": map[string]string{"language": "bash"}})
	s.refused("default", status, body, 429, "TOO_MANY_REQUESTS", "the limit")
}

// TestManyContexts runs code in many contexts at once, each with its own state.
func TestManyContexts(t *testing.T) {
	need(t, "bash")
	s := newSandbox(t)
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			id := s.make("bash")
			s.in(id, fmt.Sprintf("v=%d", i))
			if o := s.in(id, "echo $v"); o.stdout != fmt.Sprintf("%d\n", i) {
				t.Errorf("context %d printed %q", i, o.stdout)
			}
		})
	}
	wait.Wait()
}

func TestShellCommands(t *testing.T) {
	need(t, "bash")
	s := newSandbox(t)
	o := s.do("", "echo plain; exit 4")
	s.check("no language", step{out: "plain\n", name: "CommandExecError", value: "4"}, o)
	s.check("command", step{out: "c\n"}, s.do("command", "echo c"))
	file := filepath.Join(s.dir, "made")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	o = s.do("background-command", "echo done > "+file)
	if o.types() != "init execution_complete" {
		t.Errorf("background: %s", o.types())
	}
	if b, err := os.ReadFile(file); string(b) != "done\n" {
		t.Errorf("the background command wrote %q, %v", b, err)
	}
}

// running starts code that prints "ready", and returns when it has.
func (s *sandbox) running(ctx context.Context, id, code string) (*http.Response, *output) {
	s.t.Helper()
	resp := s.start(ctx, "", id, code)
	o := s.stream(resp, func(o *output) bool { return strings.Contains(o.stdout, "ready") })
	return resp, o
}

// interruptCases are code that runs for ever, for each language that this
// machine has.
var interruptCases = []struct{ lang, program, code, setup, probe, want string }{
	{"python", "python3", "print('ready', flush=True)\nwhile True: pass", "v = 1", "print(v)", "1\n"},
	{"python", "python3", "import time\nprint('ready', flush=True)\ntime.sleep(1000)", "v = 2", "print(v)", "2\n"},
	{"python", "python3", "import asyncio\nprint('ready', flush=True)\nawait asyncio.sleep(1000)", "v = 3", "print(v)", "3\n"},
	{"python", "python3", "import subprocess\nsubprocess.run('echo ready; exec sleep 1000', shell=True)", "v = 4", "print(v)", "4\n"},
	{"python", "python3", "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nprint('ready', flush=True)\nwhile True: pass", "v = 5", "print(v)", "5\n"},
	{"javascript", "node", "console.log('ready'); while (true) {}", "const v = 1", "console.log(v)", "1\n"},
	{"javascript", "node", "console.log('ready'); await new Promise(r => setTimeout(r, 1e8))", "let v = 2", "console.log(v)", "2\n"},
	{"javascript", "node", "await new Promise(r => setTimeout(r, 400)); console.log('ready'); while (true) {}", "let v = 3", "console.log(v)", "3\n"},
	{"javascript", "node", "require('child_process').execSync('echo ready >&2; sleep 1000', {stdio: ['ignore', 2, 1]})", "let v = 4", "console.log(v)", "4\n"},
	{"ruby", "ruby", "puts 'ready'; loop {}", "v = 1", "puts v", "1\n"},
	{"ruby", "ruby", "puts 'ready'; sleep", "v = 2", "puts v", "2\n"},
	{"r", "R", "cat('ready\\n'); repeat {}", "v <- 1", "cat(v)", "1"},
	{"r", "R", "cat('ready\\n'); Sys.sleep(1000)", "v <- 2", "cat(v)", "2"},
	{"go", "go", "fmt.Println(\"ready\"); for {}", "var v = 1", "fmt.Println(v)", "1\n"},
	{"java", "jshell", "System.out.println(\"ready\"); while (true) {}", "int v = 2;", "System.out.println(v)", "2\n"},
	{"bash", "bash", "echo ready; while :; do :; done", "v=6", "echo $v", "6\n"},
	{"bash", "bash", "echo ready; sleep 1000; echo on", "v=7", "echo $v", "7\n"},
	{"bash", "bash", "f() { echo ready; sleep 1000 | cat; f; }; f", "v=8", "echo $v", "8\n"},
}

func TestInterrupt(t *testing.T) {
	for _, c := range interruptCases {
		t.Run(c.lang, func(t *testing.T) {
			need(t, c.program)
			if testing.Short() && (c.lang == "go" || c.lang == "java") {
				t.Skip("takes its time")
			}
			t.Parallel()
			s := newSandbox(t)
			id := s.make(c.lang)
			s.in(id, c.setup)
			for range 2 {
				resp, o := s.running(t.Context(), id, c.code)
				status, body := s.call("POST", "/code", map[string]any{"code": "1", "context": map[string]string{"id": id}})
				s.refused("a second run", status, body, 500, "RUNTIME_ERROR", "session is busy")
				if status, body := s.call("DELETE", "/code?id="+id, nil); status != 200 {
					t.Errorf("interrupt: %d %s", status, body)
				}
				rest := s.stream(resp, nil)
				resp.Body.Close()
				if rest.errName == "" || rest.errName == kernelDied || strings.Contains(rest.stdout, "on") {
					t.Errorf("the interrupted run ended with %q %q, %q, after %q", rest.errName, rest.errValue, rest.stdout, o.stdout)
				}
				if p := s.in(id, c.probe); p.stdout != c.want {
					t.Errorf("the state after the interrupt: %q %q %q; want %q", p.stdout, p.stderr, p.errValue, c.want)
				}
			}
		})
	}
}

// An interrupt that comes late, for a run that is over, does nothing to the next.
func TestLateInterrupt(t *testing.T) {
	for lang, c := range map[string]struct{ program, code string }{
		"go":         {"go", "fmt.Println(\"ready\"); time.Sleep(300 * time.Millisecond); fmt.Println(\"done\")"},
		"java":       {"jshell", "System.out.println(\"ready\"); Thread.sleep(300); System.out.println(\"done\");"},
		"javascript": {"node", "console.log('ready'); await new Promise(r => setTimeout(r, 300)); console.log('done')"},
	} {
		t.Run(lang, func(t *testing.T) {
			need(t, c.program)
			if testing.Short() && lang != "javascript" {
				t.Skip("takes its time")
			}
			t.Parallel()
			s := newSandbox(t)
			id := s.make(lang)
			s.check("first", step{out: "ready\ndone\n"}, s.in(id, c.code))
			resp, o := s.running(t.Context(), id, c.code)
			defer resp.Body.Close()
			d := s.api.contexts.find(id).driver.(*driver)
			// As interrupt sends it, of the run before.
			d.proc.Signal(syscall.SIGINT)
			for _, f := range d.halts {
				nudge(f, "stop 1\n")
			}
			rest := s.stream(resp, nil)
			if rest.errName != "" || o.stdout+rest.stdout != "ready\ndone\n" {
				t.Errorf("the run ended with %q %q after %q", rest.errName, rest.errValue, o.stdout+rest.stdout)
			}
		})
	}
}

func TestInterruptIdle(t *testing.T) {
	need(t, "bash")
	s := newSandbox(t)
	id := s.make("bash")
	for range 3 {
		if status, body := s.call("DELETE", "/code?id="+id, nil); status != 200 {
			t.Errorf("interrupt: %d %s", status, body)
		}
		s.check("run", step{out: "x\n"}, s.in(id, "echo x"))
	}
}

// TestStubborn interrupts code that does not stop.
func TestStubborn(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.api.grace = 500 * time.Millisecond
	id := s.make("python")
	resp, _ := s.running(t.Context(), id, "import signal\nv = 1\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\nwhile True: pass")
	if status, body := s.call("DELETE", "/code?id="+id, nil); status != 200 {
		t.Errorf("interrupt: %d %s", status, body)
	}
	o := s.stream(resp, nil)
	resp.Body.Close()
	if o.errName != kernelDied || !strings.Contains(o.errValue, "did not stop within") {
		t.Errorf("ended with %q %q", o.errName, o.errValue)
	}
	s.check("next", step{name: "NameError"}, s.in(id, "v"))
}

// TestClientGone expects the run of a client that goes away to be interrupted.
func TestClientGone(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	ctx, cancel := context.WithCancel(t.Context())
	resp, _ := s.running(ctx, id, "v = 9\nprint('ready', flush=True)\nimport time\ntime.sleep(1000)")
	cancel()
	resp.Body.Close()
	s.untilFree(id)
	s.check("next", step{result: "9"}, s.in(id, "v"))
}

// untilFree waits for the end of the run that is under way.
func (s *sandbox) untilFree(id string) {
	s.t.Helper()
	c := s.api.contexts.find(id)
	select {
	case c.busy <- struct{}{}:
		<-c.busy
	case <-time.After(30 * time.Second):
		s.t.Fatal("the context is still busy")
	}
}

func TestKernelDies(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	o := s.in(id, "import os\nprint('last words', flush=True)\nv = 1\nos.kill(os.getpid(), 9)")
	s.check("killed", step{out: "last words\n", name: kernelDied, value: "signal: killed"}, o)
	s.check("anew", step{name: "NameError", err: "-"}, s.in(id, "v"))
	s.check("left", step{name: kernelDied, value: "exit status 3"}, s.in(id, "import os; os._exit(3)"))
	s.check("anew", step{out: "x"}, s.in(id, "print('x')"))

	// Between two runs.
	pid, err := strconv.Atoi(strings.TrimSpace(s.in(id, "import os; print(os.getpid())").stdout))
	if err != nil {
		t.Fatal(err)
	}
	d := s.api.contexts.find(id).driver
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-d.done()
	s.check("after", step{out: "y", err: "had ended (signal: killed)"}, s.in(id, "print('y')"))
	s.check("later", step{out: "z", err: "-"}, s.in(id, "print('z')"))
}

func TestDeleteBusy(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	resp, _ := s.running(t.Context(), id, "print('ready', flush=True)\nwhile True: pass")
	if status, body := s.call("DELETE", "/code/contexts/"+id, nil); status != 200 {
		t.Errorf("delete: %d %s", status, body)
	}
	o := s.stream(resp, nil)
	resp.Body.Close()
	if o.errName != kernelDied || !strings.Contains(o.errValue, "deleted") {
		t.Errorf("ended with %q %q", o.errName, o.errValue)
	}
}

func TestLargeCode(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	code := "x = '" + strings.Repeat("é\u2028"+`\x00`, 1<<20) + "'\nlen(x)"
	s.check("large", step{result: "3145728"}, s.do("python", code))
	need(t, "bash")
	s.check("large bash", step{out: "6000000"}, s.do("bash", "x='"+strings.Repeat("y", 6000000)+"'; echo ${#x}"))
	status, body := s.call("POST", "/code", map[string]any{"code": strings.Repeat("#", maxCode+1), "context": map[string]string{"language": "python"}})
	s.refused("too large", status, body, 413, "INVALID_REQUEST_BODY", "10485760")
}

// TestRunawayOutput has a client that reads a little of an endless output and
// goes away: execd must hold neither the output nor the run.
func TestRunawayOutput(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	ctx, cancel := context.WithCancel(t.Context())
	resp, _ := s.running(ctx, id, "print('ready')\nwhile True: print('x' * 1000)")
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	s.untilFree(id)
	s.check("next", step{out: "ok"}, s.in(id, "print('ok')"))
}

// TestOutputBetweenRuns: what a thread prints is shown by the next run.
func TestOutputBetweenRuns(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	s.in(id, "import threading\ngo, done = threading.Event(), threading.Event()\ndef f():\n    go.wait()\n    print('late')\n    display('lost')\n    done.set()\nthreading.Thread(target=f).start()")
	s.in(id, "threading.Timer(0.01, go.set).start()")
	o := s.in(id, "done.wait(20)")
	if !strings.Contains(o.stdout, "late") || o.text(len(o.results)-1) != "True" {
		t.Errorf("output %q, results %v", o.stdout, o.results)
	}
}

// TestHostileReports lets code write to the driver's own descriptors.
func TestHostileReports(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.api.grace = 500 * time.Millisecond
	id := s.make("python")
	for _, code := range []string{
		`import os; os.write(4, b'garbage\n{"t":"result","n":1}\n{"t":"ready"}\n\xff\x00\n')`,
		`import os; [os.write(4, b'{"t":"display","n":99,"data":{"text/plain":"x"}}\n') for i in range(1000)]`,
		`import os; [os.write(4, b'y' * 65536) for i in range(100)]; os.write(4, b'\n')`,
		`import os; os.write(4, b'[' * 60000 + b'\n')`,
	} {
		o := s.in(id, code+"\nprint('end')")
		s.check(cut(code, 80), step{out: "end\n"}, o)
	}
	// Reports nothing more, and keeps running: only an interrupt ends it.
	resp, _ := s.running(t.Context(), id, "import os, time\nos.close(4)\nprint('ready', flush=True)\ntime.sleep(1000)")
	s.call("DELETE", "/code?id="+id, nil)
	o := s.stream(resp, nil)
	resp.Body.Close()
	if o.errName != kernelDied {
		t.Errorf("ended with %q", o.errName)
	}
	s.check("next", step{out: "ok"}, s.in(id, "print('ok')"))
}

// TestCloseEndsDrivers looks for processes that are left.
func TestCloseEndsDrivers(t *testing.T) {
	need(t, "bash")
	s := newSandbox(t)
	for range 3 {
		s.make("bash")
	}
	var drivers []*process.Process
	for _, c := range s.api.contexts.list(nil) {
		drivers = append(drivers, c.driver.(*driver).proc)
	}
	s.api.Close()
	for _, p := range drivers {
		select {
		case <-p.Done():
		default:
			t.Errorf("process %d runs on", p.PID)
		}
	}
	status, body := s.call("POST", "/code/context", map[string]string{"language": "bash"})
	s.refused("after close", status, body, 429, "TOO_MANY_REQUESTS", "ending")
}
