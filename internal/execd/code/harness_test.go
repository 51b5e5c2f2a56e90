package code

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// table is the one process table of the test program.
var table = process.NewTable()

func TestMain(m *testing.M) {
	ctx, stop := context.WithCancel(context.Background())
	// Version managers put scripts in front of the programs; find what they
	// lead to before the table takes all children.
	searchPath = realPath()
	var done sync.WaitGroup
	done.Go(func() { table.Run(ctx) })
	code := m.Run()
	stop()
	done.Wait()
	os.Exit(code)
}

// searchPath is the PATH of the tests' sandbox.
var searchPath string

func realPath() string {
	path := os.Getenv("PATH")
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		return path
	}
	return filepath.Dir(strings.TrimSpace(string(out))) + ":" + path
}

// sandbox is an API on a server.
type sandbox struct {
	t   testing.TB
	api *API
	url string
	dir string
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	return newSandboxPath(t, searchPath)
}

func newSandboxPath(t testing.TB, path string) *sandbox {
	t.Helper()
	return newSandboxEnv(t, path, nil)
}

// newSandboxEnv has further variables.
func newSandboxEnv(t testing.TB, path string, more map[string]string) *sandbox {
	t.Helper()
	dir := t.TempDir()
	// The compiler's cache would be empty, and filled, in every test.
	cache, _ := os.UserCacheDir()
	env := map[string]string{"PATH": path, "HOME": dir, "GOCACHE": filepath.Join(cache, "go-build"), guest.EnvFileVar: filepath.Join(dir, ".env"), "LANG": "C.UTF-8"}
	maps.Copy(env, more)
	id := account.Identity{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Home: dir}
	g := guest.New(env, id, dir)
	api := New(Options{
		Guest:    func() *guest.Guest { return g },
		Table:    table,
		Commands: command.NewManager(func() *guest.Guest { return g }, table),
	})
	// A busy machine is no reason to fail; tests of what is late set their own.
	api.grace, api.waits.leave = time.Minute, time.Minute
	mux := http.NewServeMux()
	api.Routes(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		api.Close()
		srv.Close()
	})
	return &sandbox{t: t, api: api, url: srv.URL, dir: dir}
}

// need skips a test whose program this machine does not have.
func need(t *testing.T, name string) {
	t.Helper()
	if _, err := process.Look(name, searchPath, "/"); err != nil {
		t.Skipf("needs %s: %v", name, err)
	}
}

// evt is an event as a client sees it.
type evt struct {
	Type    string                     `json:"type"`
	Text    string                     `json:"text"`
	EOL     *string                    `json:"eol"`
	Count   int64                      `json:"execution_count"`
	Results map[string]json.RawMessage `json:"results"`
	Error   struct {
		Name      string   `json:"ename"`
		Value     string   `json:"evalue"`
		Traceback []string `json:"traceback"`
	} `json:"error"`
}

// output is what a run came to.
type output struct {
	events         []evt
	id             string
	stdout, stderr string
	results        []map[string]json.RawMessage
	count          int64
	// errName is empty for a run that completed.
	errName, errValue, traceback string
}

func (o *output) add(e evt) {
	o.events = append(o.events, e)
	text := e.Text
	if text == "\n" {
		text = ""
	}
	if e.EOL == nil {
		text += "\n"
	} else {
		text += *e.EOL
	}
	switch e.Type {
	case "init":
		o.id = e.Text
	case "stdout":
		o.stdout += text
	case "stderr":
		o.stderr += text
	case "result":
		o.results = append(o.results, e.Results)
	case "execution_count":
		o.count = e.Count
	case "error":
		o.errName, o.errValue = e.Error.Name, e.Error.Value
		o.traceback = strings.Join(e.Error.Traceback, "\n")
	}
}

// types lists the kinds of events without pings.
func (o *output) types() string {
	var l []string
	for _, e := range o.events {
		if e.Type != "ping" {
			l = append(l, e.Type)
		}
	}
	return strings.Join(l, " ")
}

// text is the plain text of the i-th result.
func (o *output) text(i int) string { return o.mime(i, "text") }

func (o *output) mime(i int, kind string) string {
	if i >= len(o.results) {
		return fmt.Sprintf("(no result %d)", i)
	}
	var s string
	if err := json.Unmarshal(o.results[i][kind], &s); err != nil {
		return string(o.results[i][kind])
	}
	return s
}

// start begins a run and returns its answer.
func (s *sandbox) start(ctx context.Context, lang, id, code string) *http.Response {
	s.t.Helper()
	body, _ := json.Marshal(map[string]any{"code": code, "context": map[string]string{"id": id, "language": lang}})
	req, err := http.NewRequestWithContext(ctx, "POST", s.url+"/code", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp
}

// stream reads events until the end or until stop says so.
func (s *sandbox) stream(resp *http.Response, stop func(*output) bool) *output {
	s.t.Helper()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		s.t.Fatalf("status %d: %s", resp.StatusCode, b)
	}
	o := &output{}
	lines := bufio.NewReaderSize(resp.Body, 1<<20)
	for {
		line, err := lines.ReadString('\n')
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			var e evt
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				s.t.Fatalf("event %q: %v", data, err)
			}
			o.add(e)
			if stop != nil && stop(o) {
				return o
			}
		}
		if err != nil {
			return o
		}
	}
}

// in runs code in a context.
func (s *sandbox) in(id, code string) *output {
	s.t.Helper()
	resp := s.start(s.t.Context(), "", id, code)
	defer resp.Body.Close()
	return s.stream(resp, nil)
}

// do runs code in the default context of a language.
func (s *sandbox) do(lang, code string) *output {
	s.t.Helper()
	resp := s.start(s.t.Context(), lang, "", code)
	defer resp.Body.Close()
	return s.stream(resp, nil)
}

// make creates a context.
func (s *sandbox) make(lang string) string {
	s.t.Helper()
	status, body := s.call("POST", "/code/context", map[string]string{"language": lang})
	var c description
	if err := json.Unmarshal(body, &c); err != nil || status != http.StatusOK {
		s.t.Fatalf("context of %s: %d %s", lang, status, body)
	}
	return c.ID
}

func (s *sandbox) call(method, path string, v any) (int, []byte) {
	s.t.Helper()
	var body io.Reader
	if text, ok := v.(string); ok {
		body = strings.NewReader(text)
	} else if v != nil {
		b, _ := json.Marshal(v)
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, b
}
