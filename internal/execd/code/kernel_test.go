package code

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// kernelSandbox is a sandbox whose python3 has ipykernel.
func kernelSandbox(t testing.TB) *sandbox {
	t.Helper()
	return newSandboxPath(t, filepath.Join(environment(t, "jupyter"), "bin")+":"+searchPath)
}

func TestKernelState(t *testing.T) {
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
func jupyterServer(t testing.TB, more ...string) map[string]string {
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
		Argv: append([]string{program, "--allow-root", "--no-browser", "--port=" + port, "--ServerApp.ip=127.0.0.1",
			"--ServerApp.port_retries=0", "--IdentityProvider.token=secret", "--ServerApp.root_dir=" + dir}, more...),
		Env:   []string{"HOME=" + dir, "PATH=" + filepath.Join(env, "bin") + ":" + searchPath, "LANG=C.UTF-8"},
		Dir:   dir,
		Files: []*os.File{null, log, log},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		proc.Stop()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the server's log:\n%s", b[max(0, len(b)-4096):])
		}
	})
	return map[string]string{"JUPYTER_HOST": "http://127.0.0.1:" + port, "JUPYTER_PORT": port, "JUPYTER_TOKEN": "secret"}
}

func TestKernelServer(t *testing.T) {
	for name, args := range map[string][]string{
		"v1":     nil,
		"legacy": {"--GatewayWebSocketConnection.kernel_ws_protocol=", "--ZMQChannelsWebsocketConnection.kernel_ws_protocol="},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandboxEnv(t, searchPath, jupyterServer(t, args...))
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
