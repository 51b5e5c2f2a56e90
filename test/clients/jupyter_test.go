package clients

import (
	"bytes"
	"encoding/base64"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// notebook is a sandbox with ipykernel, a Jupyter server, pandas and matplotlib
// in a virtual environment that comes first in its PATH.
type notebook struct {
	t  *testing.T
	s  *harness.Server
	id string
}

const venv = "/opt/venv"

func newNotebook(t *testing.T) *notebook {
	t.Helper()
	dir := environment(t, "jupyter")
	s := server(t)
	n := &notebook{t: t, s: s}
	n.id = s.Create(t, client.CreateRequest{
		Image: image, Entrypoint: []string{"sleep", "infinity"}, Timeout: 10 * time.Minute,
		Env:     map[string]string{"PATH": venv + "/bin:/usr/local/bin:/usr/bin:/bin"},
		Volumes: []client.Volume{{Name: "packages", Host: &client.HostVolume{Path: dir}, MountPath: "/opt/packages", ReadOnly: true}},
	}).ID
	// Compiled modules are for one minor version of Python.
	lib := strings.TrimSpace(s.Must(t, n.id, `python3 -c 'import sys; print("lib/python%d.%d/site-packages" % sys.version_info[:2])'`))
	if _, err := os.Stat(filepath.Join(dir, lib)); err != nil {
		t.Skipf("the Python of this machine is not that of the image: %v", err)
	}
	s.Must(t, n.id, "python3 -m venv --without-pip "+venv+" && ln -s /opt/packages/share "+venv+"/share && echo /opt/packages/"+lib+" >"+venv+"/"+lib+"/packages.pth")
	return n
}

// outcome is what code came to.
type outcome struct {
	stdout, stderr string
	results        []client.CodeResult
	err            *client.CodeError
	took           time.Duration
}

func (n *notebook) run(code client.Code) outcome {
	n.t.Helper()
	var o outcome
	var out, errs bytes.Buffer
	began := time.Now()
	res, err := n.s.Client.RunCode(n.t.Context(), n.id, code, client.CodeOutput{
		Stdout: &out, Stderr: &errs,
		OnResult: func(r client.CodeResult) error { o.results = append(o.results, r); return nil },
	})
	if err != nil {
		n.t.Fatalf("%s: %v", code.Source, err)
	}
	o.stdout, o.stderr, o.err, o.took = out.String(), errs.String(), res.Err, time.Since(began)
	return o
}

// want runs code and compares its output and the text of its last value.
func (n *notebook) want(code client.Code, stdout, value string) outcome {
	n.t.Helper()
	o := n.run(code)
	text := ""
	if len(o.results) > 0 {
		text, _ = o.results[len(o.results)-1].Text("text/plain")
	}
	if o.err != nil || o.stdout != stdout || !strings.Contains(text, value) || o.stderr != "" {
		n.t.Errorf("%s: %q, %q, %q, %v; want %q and %q", code.Source, o.stdout, o.stderr, text, o.err, stdout, value)
	}
	return o
}

func (n *notebook) python(source string) client.Code {
	return client.Code{Language: "python", Source: source}
}

func TestJupyter(t *testing.T) {
	n := newNotebook(t)
	t.Run("kernel", func(t *testing.T) {
		n.t = t
		first := n.want(n.python("print(1)"), "1\n", "")
		t.Logf("the first run in a kernel took %s", first.took)
		n.want(n.python("type(get_ipython()).__name__"), "", "ZMQInteractiveShell")
		n.rich()
		n.interrupted()
		n.want(client.Code{Language: "kernel:python3", Source: "import os; os.getuid()"}, "", "0")
	})
	t.Run("server", func(t *testing.T) {
		n.t = t
		// As the entrypoint of an image for code interpreters does it, on another
		// port: execd has theirs in an image that names no server.
		_, err := n.s.Client.Start(t.Context(), n.id, client.Command{
			Argv: []string{venv + "/bin/python", "-m", "jupyter_server", "--allow-root", "--no-browser", "--port=8899",
				"--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=secret", "--ServerApp.port_retries=0"},
		})
		if err != nil {
			t.Fatal(err)
		}
		n.s.Must(t, n.id, `printf 'JUPYTER_HOST=http://127.0.0.1:8899\nJUPYTER_PORT=8899\nJUPYTER_TOKEN=secret\n' >>"$EXECD_ENVS"`)
		c, err := n.s.Client.CreateCodeContext(t.Context(), n.id, "python", "/usr")
		if err != nil {
			t.Fatal(err)
		}
		n.want(client.Code{Context: c.ID, Source: "import os; os.getcwd()"}, "", "/usr")
		n.want(client.Code{Context: c.ID, Source: "open(f'/proc/{os.getppid()}/cmdline').read().split(chr(0))[2]"}, "", "jupyter_server")
		if err := n.s.Client.DeleteCodeContext(t.Context(), n.id, c.ID); err != nil {
			t.Error(err)
		}
	})
}

// rich shows a table and a figure.
func (n *notebook) rich() {
	n.t.Helper()
	o := n.want(n.python("import pandas\npandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']})"), "", "a  b")
	if len(o.results) != 1 {
		n.t.Fatalf("a table: %d results", len(o.results))
	}
	if html, _ := o.results[0].Text("text/html"); !strings.Contains(html, "<td>y</td>") {
		n.t.Errorf("the table as HTML: %q", html)
	}
	o = n.run(n.python("import matplotlib.pyplot as plt\n_ = plt.plot([1, 4, 9])"))
	if len(o.results) != 1 {
		n.t.Fatalf("a figure: %d results, %q %v", len(o.results), o.stderr, o.err)
	}
	text, _ := o.results[0].Text("image/png")
	picture, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err == nil {
		_, err = png.DecodeConfig(bytes.NewReader(picture))
	}
	if err != nil {
		n.t.Errorf("the figure: %v", err)
	}
}

// interrupted stops code and finds the state that was there.
func (n *notebook) interrupted() {
	n.t.Helper()
	begun := make(chan string, 1)
	go func() {
		if err := n.s.Client.InterruptCode(n.t.Context(), n.id, <-begun); err != nil {
			n.t.Errorf("interrupt: %v", err)
		}
	}()
	n.want(n.python("kept = 41"), "", "")
	res, err := n.s.Client.RunCode(n.t.Context(), n.id, n.python("import time\nprint('begun')\nwhile True: time.sleep(0.1)"), client.CodeOutput{
		OnStart: func(id string) { begun <- id },
	})
	if err != nil || res.Err == nil || res.Err.Name != "KeyboardInterrupt" {
		n.t.Errorf("interrupted code ended with %+v, %v", res, err)
	}
	n.want(n.python("kept + 1"), "", "42")
}
