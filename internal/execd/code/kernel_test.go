package code

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	pngimage "image/png"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// kernelSandbox is a sandbox whose python3 has ipykernel.
func kernelSandbox(t testing.TB) *sandbox {
	t.Helper()
	return kernelSandboxEnv(t, nil)
}

func kernelSandboxEnv(t testing.TB, more map[string]string) *sandbox {
	t.Helper()
	return newSandboxEnv(t, filepath.Join(environment(t, "jupyter"), "bin")+":"+searchPath, more)
}

// install writes a kernel spec into the sandbox's home directory.
func (s *sandbox) install(name string, spec map[string]any) {
	s.t.Helper()
	dir := filepath.Join(s.dir, ".local/share/jupyter/kernels", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel.json"), b, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func TestKernelState(t *testing.T) {
	t.Parallel()
	s := kernelSandbox(t)
	s.steps("python", []step{
		{code: "print(1)", out: "1\n", err: "-", result: "-"},
		{code: "get_ipython().__class__.__name__", result: "ZMQInteractiveShell"},
		{code: "x = 41", out: "-", result: "-"},
		{code: "x + 1", result: "42", out: "-"},
		{code: "import sys; print('e', file=sys.stderr)", err: "e\n", out: "-"},
		{code: "import os; os.getcwd()", result: s.dir},
		{code: "1/0", name: "ZeroDivisionError", value: "division by zero", trace: "1/0"},
		{code: "input('name? ')", name: "StdinNotImplementedError", value: "does not support input"},
		{code: "len?", out: "Return the number of items"},
		{code: "!echo $((6*7))", out: "42"},
		{code: "import asyncio\nawait asyncio.sleep(0, 'done')", result: "'done'"},
		{code: "exit()"},
		{code: "x", name: "NameError", err: "had ended (exit status 0)"},
	})
}

// jupyterServer starts a Jupyter server and returns the variables with which an
// image says where it is.
func jupyterServer(t testing.TB) map[string]string {
	t.Helper()
	env := environment(t, "jupyter")
	dir := t.TempDir()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	program := filepath.Join(env, "bin", "jupyter-server")
	proc, err := table.Start(process.Spec{
		Path: program,
		Argv: []string{program, "--allow-root", "--no-browser", "--port=" + port, "--ServerApp.ip=127.0.0.1",
			"--ServerApp.port_retries=0", "--IdentityProvider.token=secret", "--KernelRestarter.time_to_dead=0.3", "--ServerApp.root_dir=" + dir},
		Env:   []string{"HOME=" + dir, "PATH=" + filepath.Join(env, "bin") + ":" + searchPath, "LANG=C.UTF-8"},
		Dir:   dir,
		Files: []*os.File{null, log, log},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Its kernels were deleted with the contexts, and end without it.
		proc.SignalGroup(syscall.SIGKILL)
		<-proc.Done()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the server's log:\n%s", b[max(0, len(b)-4096):])
		}
	})
	return map[string]string{"JUPYTER_HOST": "http://127.0.0.1:" + port, "JUPYTER_PORT": port, "JUPYTER_TOKEN": "secret"}
}

// withoutProtocols returns the address of a server that does not hear which
// WebSocket protocols are offered, as those before v1 did not.
func withoutProtocols(t testing.TB, server string) string {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Header.Del("Sec-Websocket-Protocol")
	}})
	t.Cleanup(proxy.Close)
	return proxy.URL
}

func TestKernelServer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes its time")
	}
	t.Parallel()
	env := jupyterServer(t)
	old := maps.Clone(env)
	old["JUPYTER_HOST"] = withoutProtocols(t, env["JUPYTER_HOST"])
	for name, env := range map[string]map[string]string{"v1": env, "legacy": old} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSandboxEnv(t, searchPath, env)
			s.steps("python", []step{
				{code: "print(1)", out: "1\n", err: "-", result: "-"},
				{code: "get_ipython().__class__.__name__", result: "ZMQInteractiveShell"},
				{code: "import os; os.getcwd()", result: s.dir},
				{code: "x = 41"},
				{code: "x + 1", result: "42"},
				{code: "1/0", name: "ZeroDivisionError", value: "division by zero", trace: "1/0"},
				{code: "input('name? ')", name: "StdinNotImplementedError"},
				{code: "import os; os.kill(os.getpid(), 9)", name: kernelDied},
				{code: "x", name: "NameError", err: "-"},
			})
		})
	}
}

// TestKernelRich: the events are those of the driver.
func TestKernelRich(t *testing.T) {
	t.Parallel()
	s := kernelSandbox(t)
	id := s.make("python")
	o := s.in(id, `
class Table:
    def _repr_html_(self): return "<b>é</b>"
    def _repr_png_(self): return b"\x89PNG"
    def _repr_json_(self): return {"a": [1, None, True, 1.5, "\u2028"]}
    def __repr__(self): return "a table"
print("before")
display(Table(), Table())
print("between")
display({"text/markdown": "# x"}, raw=True)
print("after", end="")
Table()`)
	s.check("rich", step{out: "before\nbetween\nafter", err: "-"}, o)
	if got, want := o.types(), "init status stdout result result stdout result stdout execution_count result status execution_complete"; got != want {
		t.Errorf("order of events: %s; want %s", got, want)
	}
	for kind, want := range map[string]string{
		"text": "a table", "text/html": "<b>é</b>", "image/png": "iVBORw==", "application/json": `{"a":[1,null,true,1.5,"\u2028"]}`,
	} {
		if got := o.mime(3, kind); got != want {
			t.Errorf("%s is %q; want %q", kind, got, want)
		}
	}
	for _, st := range []step{
		{code: "h = display('first', display_id=True)\nh.update('second')", result: "'second'"},
		{code: "class Big:\n    def _repr_html_(self): return 'x' * 5_000_000\n    def __repr__(self): return 'big'\nBig()", result: "big", err: "text/html was left out: it has 5000002 bytes"},
		{code: "print('x' * 40_000_000)", err: "bytes from the kernel was left out"},
		{code: "print('y' * 6_000_000); 'end'", out: "yyy", result: "'end'"},
		{code: "def f():\n    raise ValueError('bad\\nvalue')\nf()", name: "ValueError", value: "bad\nvalue", trace: "raise ValueError('bad"},
		{code: "x = (1,", name: "SyntaxError"},
		{code: "from IPython.display import clear_output; clear_output(); 7", result: "7"},
	} {
		o := s.in(id, st.code)
		s.check(st.code, st, o)
		if strings.Contains(o.traceback, "\x1b") {
			t.Errorf("%s: the traceback has escape sequences: %q", st.code, o.traceback)
		}
	}
}

// TestPandas shows real tables and figures, with the driver and with the kernel.
func TestPandas(t *testing.T) {
	if testing.Short() {
		t.Skip("takes its time")
	}
	for name, s := range map[string]*sandbox{
		"driver": kernelSandboxEnv(t, map[string]string{kernelsVar: kernelsOff}),
		"kernel": kernelSandbox(t),
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			id := s.make("python")
			o := s.in(id, "import pandas\npandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
			s.check("table", step{result: "a  b", err: "-"}, o)
			if got := o.mime(0, "text/html"); !strings.Contains(got, "<table") || !strings.Contains(got, "<td>y</td>") {
				t.Errorf("the table as HTML: %q", got)
			}
			o = s.in(id, "import matplotlib.pyplot as plt\n_ = plt.plot([1, 4, 9])")
			s.check("figure", step{out: "-"}, o)
			png, err := base64.StdEncoding.DecodeString(o.mime(0, "image/png"))
			if err != nil {
				t.Fatalf("%v: %s", err, o.types())
			}
			if _, err := pngimage.DecodeConfig(bytes.NewReader(png)); err != nil || len(o.results) != 1 {
				t.Errorf("%d results, the first of which is no picture: %v", len(o.results), err)
			}
			s.check("again", step{result: "-"}, s.in(id, "1;"))
		})
	}
}

func TestKernelInterrupt(t *testing.T) {
	t.Parallel()
	s := kernelSandbox(t)
	// By message, and over ports: nothing says that it is ipykernel.
	python := filepath.Join(environment(t, "jupyter"), "bin/python")
	s.install("Mine", map[string]any{
		"argv":     []string{python, "-c", "from ipykernel.kernelapp import launch_new_instance as run; run()", "-f", "{connection_file}"},
		"language": "Ours", "interrupt_mode": "message", "env": map[string]string{"MINE": "${LANG}!"},
	})
	for _, lang := range []string{"python", "mine", "OURS", "kernel:mine"} {
		id := s.make(lang)
		s.check("before", step{}, s.in(id, "x = 41"))
		resp, _ := s.running(t.Context(), id, "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.1)")
		if status, body := s.call("DELETE", "/code?id="+id, nil); status != 200 {
			t.Fatalf("%s: interrupt: %d %s", lang, status, body)
		}
		s.check("interrupted", step{name: "KeyboardInterrupt", result: "-"}, s.stream(resp, nil))
		resp.Body.Close()
		s.check("after", step{result: "42"}, s.in(id, "x + 1"))
		if lang == "python" {
			continue
		}
		s.check("environment", step{result: "'C.UTF-8!'"}, s.in(id, "import os; os.environ['MINE']"))
		var list []description
		_, body := s.call("GET", "/code/contexts?language="+lang, nil)
		if err := json.Unmarshal(body, &list); err != nil || len(list) != 1 || list[0].ID != id || list[0].Language != strings.ToLower(lang) {
			t.Errorf("contexts of %s: %s", lang, body)
		}
	}
	status, body := s.call("POST", "/code/context", map[string]string{"language": "kernel:none"})
	s.refused("unknown kernel", status, body, 500, "NOT_SUPPORTED", "kernel:mine")
}

// TestKernelDeaf: a kernel that no longer listens is killed.
func TestKernelDeaf(t *testing.T) {
	t.Parallel()
	s := kernelSandbox(t)
	s.api.grace = 500 * time.Millisecond
	id := s.make("python")
	resp, _ := s.running(t.Context(), id, "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\nwhile True: time.sleep(1)")
	if status, body := s.call("DELETE", "/code?id="+id, nil); status != 200 {
		t.Fatalf("interrupt: %d %s", status, body)
	}
	s.check("killed", step{name: kernelDied, value: "did not stop within 500ms of the interrupt, so its python process was killed"}, s.stream(resp, nil))
	resp.Body.Close()
	s.check("anew", step{out: "x", err: "-"}, s.in(id, "print('x')"))
}

func TestKernelEnds(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	s := kernelSandbox(t)
	id := s.make("python")
	s.check("killed", step{name: kernelDied, value: "signal: killed"}, s.in(id, "import os; os.kill(os.getpid(), 9)"))
	s.check("left", step{name: kernelDied, value: "exit status 3"}, s.in(id, "import os; os._exit(3)"))
	s.check("mark", step{}, s.in(id, "import atexit, pathlib; _ = atexit.register(lambda: pathlib.Path('ended').touch())"))
	if status, body := s.call("DELETE", "/code/contexts/"+id, nil); status != 200 {
		t.Errorf("delete: %d %s", status, body)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "ended")); err != nil {
		t.Errorf("the kernel had no time to clean up: %v", err)
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("files of kernels are left: %v", left)
	}
}

// TestKernelChoice is what runs a language where there are several ways.
func TestKernelChoice(t *testing.T) {
	if environment(t, "jupyter") == "" {
		return
	}
	t.Run("off", func(t *testing.T) {
		s := kernelSandboxEnv(t, map[string]string{kernelsVar: kernelsOff})
		s.check("plain", step{name: "NameError"}, s.do("python", "get_ipython"))
		s.check("named", step{result: "method"}, s.do("kernel:python3", "get_ipython"))
	})
	t.Run("fails", func(t *testing.T) {
		s := newSandbox(t)
		s.install("broken", map[string]any{"argv": []string{"python3", "-m", "ipykernel_launcher", "{connection_file}"}, "language": "python"})
		s.check("plain", step{out: "1", err: "the kernel broken could not be started: exit status 1"}, s.do("python", "print(1)"))
		s.check("once", step{out: "2", err: "-"}, s.do("python", "print(2)"))
		status, body := s.call("POST", "/code/context", map[string]string{"language": "broken"})
		s.refused("named", status, body, 500, "RUNTIME_ERROR", "the kernel broken could not be started")
	})
	t.Run("lacking", func(t *testing.T) {
		// Nothing but a kernel can run it.
		s := newSandboxPath(t, t.TempDir())
		python := filepath.Join(environment(t, "jupyter"), "bin/python")
		s.install("irkernel", map[string]any{"argv": []string{python, "-m", "ipykernel_launcher", "-f", "{connection_file}"}, "language": "R"})
		s.check("kernel", step{result: "method"}, s.do("r", "get_ipython"))
		_, list := s.call("GET", "/code/languages", nil)
		for _, want := range []string{
			`{"language":"r","available":true,"program":"kernel:irkernel"}`,
			`{"language":"kernel:irkernel","available":true,"program":"` + python + `"}`,
		} {
			if !strings.Contains(string(list), want) {
				t.Errorf("the list of languages lacks %s: %s", want, list)
			}
		}
		status, body := s.call("POST", "/code", map[string]any{"code": "1", "context": map[string]string{"language": "ruby"}})
		s.refused("no kernel", status, body, 500, "RUNTIME_ERROR", "it has no program ruby")
	})
}

// TestServerThatFails: the image's own interpreters do then, and the user is
// told.
func TestServerThatFails(t *testing.T) {
	need(t, "python3")
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(refusing.Close)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	for address, want := range map[string]string{
		refusing.URL:     "refuses the token",
		nobody:           "connection refused",
		"localhost:8888": "is not the address of a Jupyter server",
	} {
		s := newSandboxEnv(t, searchPath, map[string]string{hostVar: address, kernelsVar: "on"})
		s.api.patience = 300 * time.Millisecond
		s.check(address, step{out: "1", err: want}, s.do("python", "print(1)"))
		s.check("once", step{out: "2", err: "-"}, s.do("python", "print(2)"))
		status, body := s.call("POST", "/code/context", map[string]string{"language": "nothing"})
		s.refused("unknown language", status, body, 500, "NOT_SUPPORTED", "is not supported")
	}
	s := newSandboxEnv(t, t.TempDir(), map[string]string{hostVar: refusing.URL})
	status, body := s.call("POST", "/code/context", map[string]string{"language": "python"})
	s.refused("a language that needs it", status, body, 500, "RUNTIME_ERROR", "refuses the token")
	off := newSandboxEnv(t, searchPath, map[string]string{hostVar: refusing.URL, kernelsVar: kernelsOff})
	off.check("off", step{out: "1", err: "-"}, off.do("python", "print(1)"))
}
