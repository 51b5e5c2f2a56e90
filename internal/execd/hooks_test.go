package execd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

func shellHook(script string) *hostapi.Hook {
	return &hostapi.Hook{Command: []string{"sh", "-c", script}, TimeoutSeconds: 30}
}

func TestPreStart(t *testing.T) {
	b := newBox(t)
	os.Chmod(b.dir, 0o777)
	made := filepath.Join(b.dir, "made")
	work := filepath.Join(b.dir, "work")
	b.claim(hostapi.Claim{
		User: "1234", Cwd: work, Env: map[string]string{"NAME": "box"},
		PreStart:   shellHook("id -u; pwd; echo $NAME >&2; echo ready >" + made),
		Entrypoint: []string{"sh", "-c", "cat " + made + "; exec sleep infinity"},
	})
	until(t, func() bool { return strings.HasSuffix(b.log(), "ready\n") })
	if got, want := b.log(), "1234\n"+work+"\nbox\nready\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

// until waits for something that no event tells.
func until(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

func TestPreStartFails(t *testing.T) {
	b := newBox(t)
	started := filepath.Join(b.dir, "started")
	stray := filepath.Join(b.dir, "stray")
	slow := shellHook("echo going; setsid sh -c 'echo $$ >" + stray + "; exec sleep 1000' & wait")
	slow.TimeoutSeconds = 1
	for _, tc := range []struct {
		name string
		hook *hostapi.Hook
		code string
		says []string
	}{
		{"exit code", shellHook("echo out; echo 'no \x1b[1mdisk' >&2; exit 3"), hostapi.CodePreStartFailed, []string{"exit status 3", "out\nno [1mdisk"}},
		{"signal", shellHook("kill -9 $$"), hostapi.CodePreStartFailed, []string{"signal: killed"}},
		{"not found", &hostapi.Hook{Command: []string{"no-such-program"}, TimeoutSeconds: 1}, hostapi.CodePreStartFailed, []string{"could not be started", "no-such-program"}},
		{"time-out", slow, hostapi.CodePreStartFailed, []string{"within 1s", "going"}},
		{"long output", shellHook("head -c 1000000 /dev/zero | tr '\\0' '\\377'; echo end; exit 1"), hostapi.CodePreStartFailed, []string{"end"}},
		{"empty", &hostapi.Hook{TimeoutSeconds: 1}, hostapi.CodeInvalidHook, []string{"no command"}},
		{"NUL", &hostapi.Hook{Command: []string{"a\x00"}, TimeoutSeconds: 1}, hostapi.CodeInvalidHook, []string{"NUL"}},
		{"no timeout", &hostapi.Hook{Command: []string{"true"}}, hostapi.CodeInvalidHook, []string{"timeout"}},
	} {
		status, body := b.tryClaim(hostapi.Claim{PreStart: tc.hook, Entrypoint: []string{"touch", started}})
		var e hostapi.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != 422 || e.Code != tc.code {
			t.Errorf("%s: %d %s", tc.name, status, body)
			continue
		}
		for _, want := range tc.says {
			if !strings.Contains(e.Message, want) {
				t.Errorf("%s: %q does not say %q", tc.name, e.Message, want)
			}
		}
		if len(body) > 4096 {
			t.Errorf("%s: an answer of %d bytes", tc.name, len(body))
		}
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("the entrypoint was started")
	}
	log := b.log()
	for _, want := range []string{"disk\n[the preStart hook failed: exit status 3]\n", "did not end within 1s and was killed]\n", "bytes of the hook's output were left out]\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if len(log) > 512<<10 {
		t.Errorf("the log has %d bytes", len(log))
	}
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
	pid := strings.TrimSpace(b.sh("cat " + stray))
	if got := b.sh("grep -c . /proc/" + pid + "/cmdline || true"); strings.TrimSpace(got) == "1" {
		t.Error("what the hook had started lives on")
	}
}

// runs fetches ended runs of hooks behind the given one.
func (b *box) runs(after int64) hostapi.ExitStatus {
	b.t.Helper()
	var st hostapi.ExitStatus
	status, body := b.get("GET", fmt.Sprintf("%s?hooks=%d", hostapi.ExitPath, after), "")
	if err := json.Unmarshal([]byte(body), &st); err != nil || status != 200 {
		b.t.Fatalf("%d %s", status, body)
	}
	return st
}

func TestPeriodicHooks(t *testing.T) {
	b := newBox(t)
	stop, busy := filepath.Join(b.dir, "stop"), filepath.Join(b.dir, "busy")
	every := func(name, script string, timeout int) hostapi.Hook {
		return hostapi.Hook{Name: name, Schedule: "@every 1s", Command: []string{"sh", "-c", script}, TimeoutSeconds: timeout}
	}
	b.claim(hostapi.Claim{
		Entrypoint: []string{"sh", "-c", "while [ ! -e " + stop + " ]; do sleep 0.05; done; exit 5"},
		Periodic: []hostapi.Hook{
			every("good", "echo tick", 30),
			every("bad", "echo trouble >&2; exit 4", 30),
			every("stuck", "trap 'rmdir "+busy+"; exit 1' TERM; mkdir "+busy+" || echo OVERLAP; sleep 1000 & wait", 2),
			{Name: "absent", Schedule: "@every 1s", Command: []string{"no-such-program"}, TimeoutSeconds: 1},
			{Name: "never", Schedule: "0 0 29 2 *", Command: []string{"true"}, TimeoutSeconds: 1},
		},
	})
	last := map[string]hostapi.HookRun{}
	seq := int64(0)
	for len(last) < 4 || last["good"].Seq < 9 {
		st := b.runs(seq)
		if !st.Running || len(st.Hooks) == 0 || len(st.Hooks) > 8 {
			t.Fatalf("%+v", st)
		}
		for _, r := range st.Hooks {
			if r.Seq <= seq {
				t.Fatalf("%d after %d", r.Seq, seq)
			}
			seq = r.Seq
			last[r.Name] = r
			if r.EndedAt.IsZero() || r.Millis < 0 {
				t.Errorf("%+v", r)
			}
		}
	}
	for name, ok := range map[string]func(hostapi.HookRun) bool{
		"good":   func(r hostapi.HookRun) bool { return r.Code == 0 && r.Output == "" },
		"bad":    func(r hostapi.HookRun) bool { return r.Code == 4 && r.Output == "trouble" },
		"stuck":  func(r hostapi.HookRun) bool { return r.TimedOut && r.Millis >= 2000 },
		"absent": func(r hostapi.HookRun) bool { return strings.Contains(r.Problem, "no-such-program") && r.Code == -1 },
	} {
		if !ok(last[name]) {
			t.Errorf("%s: %+v", name, last[name])
		}
	}
	if old := b.runs(0); len(old.Hooks) == 0 || old.Hooks[0].Seq < 1 {
		t.Errorf("asked again: %+v", old)
	}
	log := b.log()
	for _, want := range []string{"tick\n", "trouble\n", `[the periodic hook "bad" failed: exit status 4]`, `[the periodic hook "stuck" did not end within 2s and was killed]`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if strings.Contains(log, "OVERLAP") {
		t.Error("a hook ran twice at a time")
	}
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		st := b.runs(seq)
		if !st.Running {
			if st.Code != 5 {
				t.Errorf("%+v", st)
			}
			break
		}
		seq = st.Hooks[len(st.Hooks)-1].Seq
	}
	// Nothing is started any more.
	if _, body := b.get("GET", hostapi.ExitPath, ""); !strings.Contains(body, `"code":5`) {
		t.Errorf("exit: %s", body)
	}
}

func TestPeriodicHooksAreChecked(t *testing.T) {
	b := newBox(t)
	good := hostapi.Hook{Name: "a", Schedule: "@hourly", Command: []string{"true"}, TimeoutSeconds: 1}
	bad := good
	bad.Schedule = "TZ="
	for _, all := range [][]hostapi.Hook{{bad}, {{Name: "a", Schedule: "@hourly", TimeoutSeconds: 1}}, make([]hostapi.Hook, hostapi.MaxHooks+1)} {
		if status, body := b.tryClaim(hostapi.Claim{Entrypoint: []string{"true"}, Periodic: all}); status != 422 || code(t, body) != hostapi.CodeInvalidHook {
			t.Errorf("%d %s", status, body)
		}
	}
}
