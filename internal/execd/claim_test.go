package execd_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

func code(t *testing.T, body string) string {
	t.Helper()
	var e hostapi.Error
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Message == "" {
		t.Fatalf("no error body: %q", body)
	}
	return e.Code
}

func TestUnclaimed(t *testing.T) {
	b := newBox(t)
	r := b.request("GET", "/ping", "")
	r.Header.Del(hostapi.TokenHeader)
	resp, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if body := read(t, resp); resp.StatusCode != 200 || body != "" {
		t.Errorf("ping: %d %q", resp.StatusCode, body)
	}
	for _, path := range []string{"/command", "/metrics", "/nothing", "/proxy/80/", hostapi.ExitPath} {
		resp := b.do("POST", path, "{}")
		if body := read(t, resp); resp.StatusCode != 503 || code(t, body) != "NOT_CLAIMED" || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if status, _ := b.get("GET", hostapi.ClaimPath, ""); status != 405 {
		t.Errorf("GET claim: %d", status)
	}
}

// Refused claims leave execd unclaimed.
func TestClaim(t *testing.T) {
	b := newBox(t)
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(b.dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name  string
		claim hostapi.Claim
		code  string
	}{
		{"empty", hostapi.Claim{}, hostapi.CodeEntrypointNotFound},
		{"unknown program", hostapi.Claim{Entrypoint: []string{"no-such-program"}}, hostapi.CodeEntrypointNotFound},
		{"unknown path", hostapi.Claim{Entrypoint: []string{"/no/such"}}, hostapi.CodeEntrypointNotFound},
		{"below a file", hostapi.Claim{Entrypoint: []string{"/etc/passwd/x"}}, hostapi.CodeEntrypointNotFound},
		{"directory", hostapi.Claim{Entrypoint: []string{"/etc"}}, hostapi.CodeEntrypointNotExecutable},
		{"no execute bit", hostapi.Claim{Entrypoint: []string{file("plain", "#!/bin/sh\n", 0o644)}}, hostapi.CodeEntrypointNotExecutable},
		{"bad interpreter", hostapi.Claim{Entrypoint: []string{file("script", "#!/no/interp\n", 0o755)}}, hostapi.CodeEntrypointNotExecutable},
		{"no format", hostapi.Claim{Entrypoint: []string{file("text", "hello\n", 0o755)}}, hostapi.CodeEntrypointNotExecutable},
		{"NUL", hostapi.Claim{Entrypoint: []string{"true", "a\x00b"}}, hostapi.CodeEntrypointNotExecutable},
		{"user", hostapi.Claim{Entrypoint: []string{"true"}, User: "no-such-user"}, hostapi.CodeUserNotFound},
		{"group", hostapi.Claim{Entrypoint: []string{"true"}, User: "root:no-such-group"}, hostapi.CodeUserNotFound},
		{"relative cwd", hostapi.Claim{Entrypoint: []string{"true"}, Cwd: "tmp"}, hostapi.CodeCwd},
		{"cwd below a file", hostapi.Claim{Entrypoint: []string{"true"}, Cwd: "/etc/passwd/x"}, hostapi.CodeCwd},
		{"variable", hostapi.Claim{Entrypoint: []string{"true"}, Env: map[string]string{"A=B": ""}}, "INVALID_REQUEST_BODY"},
	} {
		status, body := b.tryClaim(tc.claim)
		if status < 400 || code(t, body) != tc.code {
			t.Errorf("%s: %d %s", tc.name, status, body)
		}
	}
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
	if status, body := b.tryClaim(hostapi.Claim{Entrypoint: []string{"true"}}); status != 409 || code(t, body) != hostapi.CodeAlreadyClaimed {
		t.Errorf("second claim: %d %s", status, body)
	}
}

// Clients of the code interpreter wait for a port, from inside the sandbox.
func TestInterpreterPort(t *testing.T) {
	const probe = `bash -c 'exec 3<>/dev/tcp/127.0.0.1/${JUPYTER_PORT:-44771}'`
	for name, tc := range map[string]struct {
		env  map[string]string
		open bool
	}{
		"any image":                  {nil, true},
		"one with Jupyter":           {map[string]string{"JUPYTER_HOST": "http://127.0.0.1:44771"}, false},
		"one with a port of Jupyter": {map[string]string{"JUPYTER_PORT": "44771"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}, Env: tc.env})
			if code := b.run(m{"command": probe}).code; (code == "0") != tc.open {
				t.Errorf("the probe ended with %s", code)
			}
		})
	}
}

// The first SDK for the JVM wants events without field names.
func TestBareEvents(t *testing.T) {
	b := claimed(t)
	for agent, prefix := range map[string]string{
		"OpenSandbox-Kotlin-SDK/1.0.0": `{"type":`,
		"OpenSandbox-Kotlin-SDK/1.0.1": `data: {"type":`,
	} {
		r := b.request("POST", "/command", `{"command":"echo 'data: x'; echo; seq 3000"}`)
		r.Header.Set("User-Agent", agent)
		resp, err := b.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		events := strings.Split(strings.TrimSuffix(read(t, resp), "\n\n"), "\n\n")
		if len(events) < 3000 {
			t.Errorf("%s: %d events", agent, len(events))
		}
		for _, e := range events {
			data, ok := strings.CutPrefix(e, prefix)
			if !ok || !json.Valid([]byte(`{"type":`+data)) {
				t.Fatalf("%s: event %q", agent, e)
			}
		}
	}
}

func TestEntrypoint(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script string
		exit   hostapi.ExitStatus
		log    string
	}{
		{"exit code", "echo out; echo err >&2; exit 7", hostapi.ExitStatus{Code: 7}, "out\nerr\n"},
		{"signal", "printf x; kill -9 $$", hostapi.ExitStatus{Code: -1, Signal: 9}, "x"},
		// The end is reported although the output stays open.
		{"daemon left behind", "sleep 1000 & echo gone", hostapi.ExitStatus{}, "gone\n"},
		{"large output", "head -c 300000 /dev/zero | tr '\\0' y", hostapi.ExitStatus{}, strings.Repeat("y", 300000)},
		{"surroundings", "pwd; id -u; id -g; echo $HOME $PATH $OPENSANDBOX_ID; cat; ps -o sid= -p $$ | tr -d ' '", hostapi.ExitStatus{},
			"WORK\n1234\n0\n/ /bin:/usr/bin idid\n2\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBox(t)
			c := hostapi.Claim{Entrypoint: []string{"sh", "-c", tc.script}}
			if tc.name == "surroundings" {
				work := filepath.Join(b.dir, "made/for/it")
				os.Chmod(b.dir, 0o755)
				c.User, c.Cwd = "1234", work
				c.Env = map[string]string{"PATH": "/bin:/usr/bin", "OPENSANDBOX_ID": "idid"}
				tc.log = strings.Replace(tc.log, "WORK", work, 1)
			}
			b.claim(c)
			for range 2 {
				var got hostapi.ExitStatus
				_, body := b.get("GET", hostapi.ExitPath, "")
				if err := json.Unmarshal([]byte(body), &got); err != nil || !reflect.DeepEqual(got, tc.exit) {
					t.Errorf("exit: %s", body)
				}
			}
			if got := b.log(); got != tc.log && tc.name != "surroundings" {
				t.Errorf("log: %.200q", got)
			} else if tc.name == "surroundings" && !strings.HasPrefix(got, strings.TrimSuffix(tc.log, "2\n")) {
				t.Errorf("log: %q, want %q", got, tc.log)
			}
		})
	}
}

func TestTokenAndRoutes(t *testing.T) {
	b := claimed(t)
	for _, given := range []string{"", "wrong", token + "x", token[:5]} {
		r := b.request("GET", "/ping", "")
		r.Header.Set(hostapi.TokenHeader, given)
		resp, err := b.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body := read(t, resp)
		if resp.StatusCode != 401 || code(t, body) != "UNAUTHORIZED" || !strings.Contains(body, hostapi.TokenHeader) {
			t.Errorf("token %q: %d %s", given, resp.StatusCode, body)
		}
	}
	for _, tc := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/nothing", 404, "NOT_FOUND"},
		{"GET", "/", 404, "NOT_FOUND"},
		{"GET", "//ping", 404, "NOT_FOUND"},
		{"GET", "/ping/", 404, "NOT_FOUND"},
		{"GET", "/command/a/b", 404, "NOT_FOUND"},
		{"PUT", "/command", 405, "METHOD_NOT_ALLOWED"},
		{"POST", "/metrics", 405, "METHOD_NOT_ALLOWED"},
		{"DELETE", "/session/nope", 404, "CONTEXT_NOT_FOUND"},
		{"GET", "/session", 405, "METHOD_NOT_ALLOWED"},
		{"POST", "/v1/isolated/session", 503, "NOT_SUPPORTED"},
		{"GET", "/v1/filesystem/x/2/files/info", 400, "INVALID_REQUEST_BODY"},
	} {
		resp := b.do(tc.method, tc.path, "")
		body := read(t, resp)
		if resp.StatusCode != tc.status || code(t, body) != tc.code {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, resp.StatusCode, body)
		}
		if tc.status == http.StatusMethodNotAllowed && resp.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tc.method, tc.path)
		}
	}
	if status, body := b.get("GET", "/v1/isolated/capabilities", ""); status != 200 || !strings.Contains(body, `"available":false`) {
		t.Errorf("capabilities: %d %s", status, body)
	}
	if status, body := b.get("POST", hostapi.SyncPath, ""); status != 200 || body != "" {
		t.Errorf("sync: %d %s", status, body)
	}
	// The same on TCP, but for the engine's routes.
	curl := "curl -s -o /dev/null -w %{http_code} -H " + hostapi.TokenHeader + ":" + token + " http://127.0.0.1:44772"
	for path, want := range map[string]string{"/ping": "200", hostapi.ExitPath: "404", hostapi.ClaimPath: "404", hostapi.DialPath: "404"} {
		if got := b.sh(curl + path); got != want {
			t.Errorf("%s on TCP: %s", path, got)
		}
	}
}

// Root in the sandbox can send PID 1 any signal.
func TestSignalsToPID1(t *testing.T) {
	b := claimed(t)
	b.sh("for s in $(seq 1 31); do kill -$s 1; done")
	if got := b.sh("echo alive"); got != "alive\n" {
		t.Errorf("got %q", got)
	}
}

func TestDescriptorsAreNotInherited(t *testing.T) {
	b := claimed(t)
	// 3 is the directory that ls reads.
	if got := b.sh("ls /proc/self/fd | tr '\\n' ' '"); got != "0 1 2 3 " {
		t.Errorf("descriptors of a command: %q", got)
	}
}

// Orphans are collected by the hundred while commands run.
func TestZombieStorm(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	done := make(chan *result)
	go func() {
		done <- b.run(m{"command": "for i in $(seq 400); do (setsid true &) & done; wait"})
	}()
	for range 20 {
		if got := b.sh("echo ok"); got != "ok\n" {
			t.Errorf("got %q", got)
		}
	}
	if r := <-done; r.code != "0" {
		t.Errorf("storm: exit %s", r.code)
	}
	// Each is collected at once, so a retry needs no pause but its own work.
	for range 100 {
		if b.sh("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l") == "0\n" {
			return
		}
	}
	t.Error("zombies are left")
}

// The claim is on the way of every create.
func BenchmarkClaim(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		box := newBox(b)
		box.do("GET", "/ping", "").Body.Close()
		b.StartTimer()
		begun := time.Now()
		box.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
		took = append(took, time.Since(begun))
		b.StopTimer()
		box.cmd.Process.Kill()
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
}
