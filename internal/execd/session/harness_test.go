package session

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

func TestMain(m *testing.M) {
	ctx, stop := context.WithCancel(context.Background())
	go table.Run(ctx)
	code := m.Run()
	stop()
	os.Exit(code)
}

// box is an API on a loopback server, with one kind of shell.
type box struct {
	t   testing.TB
	api *API
	url string
	dir string
}

// newBox serves sessions of bash, dash or busybox.
func newBox(t testing.TB, shell string) *box {
	t.Helper()
	dir := t.TempDir()
	if shell != "bash" {
		// PATH does not help: bash is preferred wherever it is.
		bin := t.TempDir()
		target := "/usr/bin/" + shell
		if _, err := os.Stat(target); err != nil {
			t.Skipf("no %s here: %v", shell, err)
		}
		if err := os.Symlink(target, bin+"/sh"); err != nil {
			t.Fatal(err)
		}
		old := findShell
		findShell = func(string, string) (string, error) { return bin + "/sh", nil }
		t.Cleanup(func() { findShell = old })
	}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	g := guest.New(map[string]string{guest.EnvFileVar: dir + "/.env", "LC_ALL": "C.UTF-8"},
		account.Identity{UID: uid, GID: gid, Home: dir}, dir)
	b := &box{t: t, dir: dir, api: New(Options{Guest: func() *guest.Guest { return g }, Table: table})}
	mux := http.NewServeMux()
	b.api.Routes(mux)
	srv := httptest.NewServer(mux)
	b.url = srv.URL
	t.Cleanup(srv.Close)
	t.Cleanup(b.api.Close)
	return b
}

func (b *box) do(method, path, body string) (int, string) {
	b.t.Helper()
	req, err := http.NewRequest(method, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(out)
}

func (b *box) create() string {
	b.t.Helper()
	status, body := b.do("POST", "/session", "")
	var made struct {
		ID string `json:"session_id"`
	}
	if err := json.Unmarshal([]byte(body), &made); status != 200 || err != nil || len(made.ID) != 36 {
		b.t.Fatalf("creating a session: %d %s", status, body)
	}
	return made.ID
}

// outcome is what a client learns from one run.
type outcome struct {
	out  string
	code string // evalue, "0" when complete
	why  string
}

type wire struct {
	Type, Text, Raw string
	EOL             *string
	Timestamp       int64
	Error           struct {
		EName, EValue string
		Traceback     []string
	}
}

// parse reads a stream of events and checks its shape.
func parse(r io.Reader) (o outcome, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	var out bytes.Buffer
	first := true
	for lines.Scan() {
		text := lines.Text()
		if text == "" {
			continue
		}
		var e wire
		if err := json.Unmarshal([]byte(strings.TrimPrefix(text, "data: ")), &e); err != nil {
			return o, fmt.Errorf("event %q: %w", text, err)
		}
		if first != (e.Type == "init") || e.Timestamp == 0 || o.code != "" {
			return o, fmt.Errorf("event out of order or without timestamp: %s", text)
		}
		first = false
		switch e.Type {
		case "stdout":
			line := []byte(e.Text)
			if e.Raw != "" {
				line, _ = base64.StdEncoding.DecodeString(e.Raw)
			} else if e.Text == "\n" {
				line = nil
			}
			out.Write(line)
			if e.EOL == nil {
				out.WriteByte('\n')
			} else {
				out.WriteString(*e.EOL)
			}
		case "execution_complete":
			o.code = "0"
		case "error":
			o.code, o.why = e.Error.EValue, strings.Join(e.Error.Traceback, " ")
		}
	}
	o.out = out.String()
	if o.code == "" {
		return o, fmt.Errorf("no terminal event after %q: %v", o.out, lines.Err())
	}
	return o, lines.Err()
}

func (b *box) post(id, body string) (outcome, error) {
	resp, err := http.Post(b.url+"/session/"+id+"/run", "application/json", strings.NewReader(body))
	if err != nil {
		return outcome{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		text, _ := io.ReadAll(resp.Body)
		return outcome{}, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return parse(resp.Body)
}

func request(command string, more map[string]any) string {
	m := map[string]any{"command": command}
	for k, v := range more {
		m[k] = v
	}
	body, _ := json.Marshal(m)
	return string(body)
}

func (b *box) run(id, command string) outcome {
	b.t.Helper()
	o, err := b.post(id, request(command, nil))
	if err != nil {
		b.t.Fatalf("running %q: %v", command, err)
	}
	return o
}

// want runs a command and compares output and code.
func (b *box) want(id, command, out, code string) {
	b.t.Helper()
	o := b.run(id, command)
	if o.out != out || o.code != code {
		b.t.Errorf("%q printed %q with code %s (%s), not %q with code %s", command, o.out, o.code, o.why, out, code)
	}
}

// step is one run of a conversation.
type step struct{ command, out, code string }

func (b *box) talk(steps []step) {
	b.t.Helper()
	id := b.create()
	for _, s := range steps {
		b.want(id, s.command, s.out, s.code)
	}
}
