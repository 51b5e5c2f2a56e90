package test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// isolated is one isolated session of a sandbox.
type isolated struct {
	s       *harness.Server
	sandbox string
	ID      string `json:"session_id"`
}

func isolatedPath(sandbox, rest string) string {
	return "/v1/sandboxes/" + sandbox + "/proxy/44772/v1/isolated/" + rest
}

// newIsolated makes a session from the JSON of its settings.
func newIsolated(t *testing.T, s *harness.Server, sandbox, settings string) *isolated {
	t.Helper()
	is := &isolated{s: s, sandbox: sandbox}
	r := s.Do(t, "POST", isolatedPath(sandbox, "session"), settings)
	if r.Status != http.StatusCreated {
		t.Fatalf("creating an isolated session: status %d: %s", r.Status, r.Body)
	}
	r.JSON(t, is)
	return is
}

func (is *isolated) do(t *testing.T, method, rest string, body any) *harness.Response {
	t.Helper()
	return is.s.Do(t, method, isolatedPath(is.sandbox, "session/"+is.ID+rest), body)
}

// run is a foreground run: what it printed, and the exit code as the stream has
// it, "0" for none.
func (is *isolated) run(t *testing.T, code string, more ...string) (out, exit string) {
	t.Helper()
	body := map[string]any{"code": code}
	for i := 0; i+1 < len(more); i += 2 {
		body["envs"] = map[string]string{more[i]: more[i+1]}
	}
	r := is.do(t, "POST", "/run", body)
	if r.Status != http.StatusOK {
		t.Fatalf("run: status %d: %s", r.Status, r.Body)
	}
	var lines []string
	exit = "0"
	for block := range strings.SplitSeq(string(r.Body), "\n\n") {
		var e struct {
			Type, Text string
			Error      struct{ Evalue string }
		}
		if json.Unmarshal([]byte(strings.TrimPrefix(strings.TrimSpace(block), "data: ")), &e) != nil {
			continue
		}
		switch e.Type {
		case "stdout", "stderr":
			lines = append(lines, strings.TrimSuffix(e.Text, "\n"))
		case "error":
			exit = e.Error.Evalue
		}
	}
	return strings.Join(lines, "\n"), exit
}

func (is *isolated) must(t *testing.T, code string) string {
	t.Helper()
	out, exit := is.run(t, code)
	if exit != "0" {
		t.Fatalf("%q ended with %s:\n%s", code, exit, out)
	}
	return out
}

const workspace = `{"workspace":{"path":"/workspace"}}`

func TestIsolatedSession(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever,
		Env: map[string]string{"PLAIN": "1", "MY_API_KEY": "s3cret", "AWS_REGION": "x"}})
	s.Must(t, sb.ID, "mkdir -p /workspace/dir && cd /workspace && echo old > kept && echo old > changed && echo old > dir/gone && echo tmp > /tmp/theirs")
	is := newIsolated(t, s, sb.ID, workspace)

	var caps struct {
		Available bool `json:"available"`
		Diff      bool `json:"diff_supported"`
		Commit    bool `json:"commit_supported"`
	}
	s.Do(t, "GET", isolatedPath(sb.ID, "capabilities"), nil).JSON(t, &caps)
	if !caps.Available || !caps.Diff || !caps.Commit {
		t.Errorf("capabilities: %+v", caps)
	}
	t.Run("state stays between runs", func(t *testing.T) {
		is.must(t, "cd dir; X=1; f() { echo function; }")
		if got := is.must(t, "pwd; echo $X; f"); got != "/workspace/dir\n1\nfunction" {
			t.Errorf("got %q", got)
		}
		is.must(t, "cd ..")
		if got, _ := is.run(t, "echo $LENT", "LENT", "it's"); got != "it's" {
			t.Errorf("a run's own variable is %q", got)
		}
		if got := is.must(t, "echo ${LENT-none}"); got != "none" {
			t.Errorf("after the run it is %q", got)
		}
		if _, exit := is.run(t, "(exit 3)"); exit != "3" {
			t.Errorf("exit code %s", exit)
		}
	})
	t.Run("overlay", func(t *testing.T) {
		is.must(t, "echo new > changed; echo new > added; rm dir/gone; mkdir made; ln -s /etc/passwd link")
		if got := s.Must(t, sb.ID, "cd /workspace; cat changed dir/gone; ls"); got != "old\nold\nchanged\ndir\nkept" {
			t.Errorf("the sandbox has %q", got)
		}
		var d struct {
			Changes []struct{ Path, Kind, Type string }
		}
		is.do(t, "GET", "/diff", nil).JSON(t, &d)
		var got []string
		for _, c := range d.Changes {
			got = append(got, c.Kind+" "+c.Type+" "+c.Path)
		}
		want := []string{"added file /workspace/added", "modified file /workspace/changed", "deleted  /workspace/dir/gone",
			"added symlink /workspace/link", "added directory /workspace/made"}
		if !slices.Equal(got, want) {
			t.Errorf("diff:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
	t.Run("commit", func(t *testing.T) {
		r := is.do(t, "POST", "/commit", map[string]any{"paths": []string{"/workspace/changed"}})
		if r.Status != 200 {
			t.Fatalf("status %d: %s", r.Status, r.Body)
		}
		if got := s.Must(t, sb.ID, "cd /workspace; cat changed; ls"); got != "new\nchanged\ndir\nkept" {
			t.Errorf("after a part: %q", got)
		}
		if r := is.do(t, "POST", "/commit", nil); r.Status != 200 {
			t.Fatalf("status %d: %s", r.Status, r.Body)
		}
		if got := s.Must(t, sb.ID, "cd /workspace; cat changed added; ls; ls dir; readlink link; stat -c %u:%a added"); got != "new\nnew\nadded\nchanged\ndir\nkept\nlink\nmade\n/etc/passwd\n0:644" {
			t.Errorf("after the whole: %q", got)
		}
	})
	t.Run("background", func(t *testing.T) {
		r := is.do(t, "POST", "/run", map[string]any{"code": "echo one; echo two; exit 4", "background": true})
		if r.Status != http.StatusAccepted {
			t.Fatalf("status %d: %s", r.Status, r.Body)
		}
		var run struct {
			ID string `json:"run_id"`
		}
		r.JSON(t, &run)
		var state struct {
			Running bool
			Code    *int `json:"exit_code"`
		}
		await(t, "the run to end", func() bool {
			is.do(t, "GET", "/runs/"+run.ID, nil).JSON(t, &state)
			return !state.Running
		})
		logs := is.do(t, "GET", "/runs/"+run.ID+"/logs?cursor=4", nil)
		if state.Code == nil || *state.Code != 4 || string(logs.Body) != "two\n" || logs.Header.Get("EXECD-ISOLATED-TAIL-CURSOR") != "8" {
			t.Errorf("%+v, logs %q, cursor %q", state, logs.Body, logs.Header.Get("EXECD-ISOLATED-TAIL-CURSOR"))
		}
	})
	t.Run("files", func(t *testing.T) {
		r := is.do(t, "GET", "/files/download?path=/workspace/kept", nil)
		if r.Status != 200 || string(r.Body) != "old\n" {
			t.Errorf("download: %d %q", r.Status, r.Body)
		}
		if r := is.do(t, "POST", "/directories", map[string]any{"/workspace/fromapi": map[string]any{"mode": 755}}); r.Status != 200 {
			t.Errorf("making a directory: %d %s", r.Status, r.Body)
		}
		is.must(t, "test -d /workspace/fromapi")
		if got := s.Must(t, sb.ID, "ls /workspace"); strings.Contains(got, "fromapi") {
			t.Errorf("the sandbox has it, too: %s", got)
		}
	})
	t.Run("environment", func(t *testing.T) {
		out := is.must(t, "env")
		if !strings.Contains(out, "PLAIN=1") || strings.Contains(out, "s3cret") || strings.Contains(out, "AWS_REGION") {
			t.Errorf("environment of a strict session:\n%s", out)
		}
	})
	if r := is.do(t, "DELETE", "", nil); r.Status != 200 {
		t.Fatalf("delete: %d %s", r.Status, r.Body)
	}
	if r := is.do(t, "GET", "", nil); r.Status != 404 {
		t.Errorf("after the delete: status %d", r.Status)
	}
	if left, _ := filepath.Glob(filepath.Join(instanceDir(t, s), "s", sb.ID, "i", "*")); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
}

func TestIsolatedSessionIsConfined(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	s.Must(t, sb.ID, "mkdir -p /workspace && echo theirs > /tmp/theirs && echo keep > /etc/marker")
	if _, err := s.Client.Start(t.Context(), sb.ID, client.Command{Shell: "sleep 987654"}); err != nil {
		t.Fatal(err)
	}
	is := newIsolated(t, s, sb.ID, workspace)
	for name, code := range map[string]string{
		"writing the root":             "echo x > /etc/marker",
		"writing beside":               "mkdir /workspace2",
		"the sandbox's /tmp":           "cat /tmp/theirs",
		"mount":                        "mount -t tmpfs x /mnt",
		"remount":                      "mount -o remount,rw /",
		"unshare":                      "unshare -m true",
		"user namespace":               "unshare -U true",
		"entering":                     "nsenter -t 1 -m true",
		"killing execd":                "kill -9 1; kill -0 1 && sleep 0 && test $(cat /proc/1/comm) != execd",
		"reading execd":                "cat /proc/1/mem",
		"execd's root":                 "ls /proc/1/root/",
		"execd's descriptors":          "readlink /proc/1/fd/3",
		"the upper directory":          "find / -xdev -name upper -path '*isolated*' 2>/dev/null | grep .",
		"devices":                      "mknod /workspace/dev b 7 0",
		"a read-only path by a link":   "ln -s /etc/marker l && echo x > l",
		"kernel settings":              "echo 1 > /proc/sys/net/ipv4/ip_forward",
		"processes of the sandbox":     "grep -l 98765[4] /proc/[0-9]*/cmdline",
		"the engine's socket":          "find / -xdev -type s 2>/dev/null | grep execd",
		"trace":                        "python3 -c 'import ctypes,sys; sys.exit(0 if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else 1)'",
		"bind of the pivoted-out root": "ls /new /old 2>/dev/null | grep .",
	} {
		t.Run(name, func(t *testing.T) {
			if out, exit := is.run(t, "( "+code+" ) 2>&1"); exit == "0" {
				t.Errorf("%s worked: %s", code, out)
			}
		})
	}
	if got := s.Must(t, sb.ID, "cat /etc/marker; ls /workspace"); got != "keep" {
		t.Errorf("the sandbox has %q", got)
	}
	if got := is.must(t, "grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status | tr -d '\\t'"); got != s.Must(t, sb.ID, "grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status | tr -d '\\t'") {
		t.Errorf("the session's rights are not the sandbox's: %s", got)
	}
}

func TestIsolatedCommitFollowsNoLink(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	s.Must(t, sb.ID, "mkdir -p /workspace/dir /outside && echo safe > /outside/file && echo safe > /workspace/dir/file")
	is := newIsolated(t, s, sb.ID, workspace)
	is.must(t, "echo evil > dir/file; mkdir -p a/b; echo evil > a/b/file; mkfifo pipe; truncate -s 1P sparse; chmod 4755 dir/file")
	// What is committed to is in the sandbox's hands.
	s.Must(t, sb.ID, "cd /workspace && rm -r dir && ln -s /outside dir && ln -s /outside a")
	r := is.do(t, "POST", "/commit", nil)
	if r.Status != 200 {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	if got := s.Must(t, sb.ID, "ls /outside; cat /outside/file"); got != "file\nsafe" {
		t.Errorf("outside is %q; the answer was %s", got, r.Body)
	}
	if got := s.Must(t, sb.ID, "cd /workspace; cat a/b/file; du -k sparse | cut -f1; test -e pipe || echo no pipe"); !strings.HasPrefix(got, "evil\n") || !strings.HasSuffix(got, "no pipe") {
		t.Errorf("the workspace has %q", got)
	}
}

func TestIsolatedRefusals(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	s.Must(t, sb.ID, "mkdir /real && ln -s /real /link && ln -s / /top")
	for body, says := range map[string]string{
		`{}`:                                                                      "workspace",
		`{"workspace":{"path":"relative"}}`:                                       "absolute",
		`{"workspace":{"path":"/a/../b"}}`:                                        "plain",
		`{"workspace":{"path":"/"}}`:                                              "root",
		`{"workspace":{"path":"/proc/self"}}`:                                     "/proc",
		`{"workspace":{"path":"/link"}}`:                                          "symbolic link",
		`{"workspace":{"path":"/top/proc","mode":"rw"}}`:                          "symbolic link",
		`{"workspace":{"path":"/w","mode":"x"}}`:                                  "mode",
		`{"workspace":{"path":"/w"},"overlays":[{"path":"/w"}]}`:                  "before",
		`{"overlays":[{"path":"/w","mode":"rw","persist":true}]}`:                 "persist",
		`{"workspace":{"path":"/w"},"uid_mode":"userns"}`:                         "setpriv",
		`{"workspace":{"path":"/w"},"uid":70000}`:                                 "65535",
		`{"workspace":{"path":"/w"},"idle_timeout_seconds":-1}`:                   "idle_timeout_seconds",
		`{"workspace":{"path":"/w"},"binds":[{"source":"/nothing","dest":"/b"}]}`: "/nothing",
		`{"workspace":{"path":"/w"},"env_passthrough":{"mode":"some"}}`:           "env_passthrough",
		`{"workspace":{"path":"/w"},"profile":"lax"}`:                             "profile",
	} {
		r := s.Do(t, "POST", isolatedPath(sb.ID, "session"), body)
		if _, message := r.Error(t); r.Status != 400 || !strings.Contains(message, says) {
			t.Errorf("%s: status %d, %s", body, r.Status, r.Body)
		}
	}
	if r := s.Do(t, "GET", isolatedPath(sb.ID, "session/0/diff"), nil); r.Status != 404 {
		t.Errorf("an unknown session: status %d", r.Status)
	}
	var list struct{ Sessions []any }
	s.Do(t, "GET", isolatedPath(sb.ID, "sessions"), nil).JSON(t, &list)
	if len(list.Sessions) > 0 {
		t.Errorf("refused sessions are listed: %v", list.Sessions)
	}
}

func TestIsolatedSurvivesKill(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			harness.RequireProgram(t, runtime)
			isolatedSurvivesKill(t, ownServer(t, map[string]string{"runtime.oci": runtime}))
		})
	}
}

func isolatedSurvivesKill(t *testing.T, s *harness.Server) {
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sleep", "1000000"}})
	s.Must(t, sb.ID, "mkdir /workspace")
	is := newIsolated(t, s, sb.ID, workspace)
	doomed := newIsolated(t, s, sb.ID, workspace)
	is.must(t, "echo 1 > file")
	doomed.must(t, "echo 2 > file")
	pid := sessionPID(t, s, doomed)
	restartWhile(t, s, func() {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if got := is.must(t, "cat file"); got != "1" {
		t.Errorf("after the restart: %q", got)
	}
	var state struct{ Status string }
	doomed.do(t, "GET", "", nil).JSON(t, &state)
	if state.Status != "dead" {
		t.Errorf("the session whose processes were killed is %q", state.Status)
	}
	if r := doomed.do(t, "POST", "/commit", nil); r.Status != 200 || s.Must(t, sb.ID, "cat /workspace/file") != "2" {
		t.Errorf("committing a dead session: %d %s", r.Status, r.Body)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if traces := s.AwaitNoTraces(sb.ID); len(traces) > 0 {
		t.Errorf("left on the host:\n%s", strings.Join(traces, "\n"))
	}
}

func restartWhile(t *testing.T, s *harness.Server, between func()) {
	t.Helper()
	s.Kill()
	between()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// sessionPID is that of the session's execd on the host.
func sessionPID(t *testing.T, s *harness.Server, is *isolated) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(instanceDir(t, s), "s", is.sandbox, "i", is.ID[:8], "session.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ PID int }
	if err := json.Unmarshal(b, &record); err != nil || record.PID <= 1 {
		t.Fatalf("session.json: %v %s", err, b)
	}
	return record.PID
}

// instanceDir is the server's part of the run directory.
func instanceDir(t *testing.T, s *harness.Server) string {
	t.Helper()
	dir, err := harness.RunDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, s.Instance())
}
