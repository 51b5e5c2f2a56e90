package local

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// patience bounds what must come; it only matters for tests that fail.
const patience = 30 * time.Second

func shellHook(script string, timeout time.Duration) *sandbox.Hook {
	return &sandbox.Hook{Command: []string{"sh", "-c", script}, Timeout: timeout}
}

func logText(t *testing.T, e *Engine, id string) string {
	t.Helper()
	r, err := e.Logs(t.Context(), id, sandbox.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// createNoted is create with the events that the engine reports.
func createNoted(t *testing.T, e *Engine, change func(*sandbox.Spec)) (id string, notes []string, err error) {
	t.Helper()
	spec := &sandbox.Spec{Image: testImage}
	change(spec)
	ctx := context.Background()
	if id, err = e.Reserve(ctx, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Remove(ctx, id) })
	_, err = e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "token-of-" + id, Note: func(kind sandbox.EventKind, message string) {
		notes = append(notes, string(kind))
	}})
	return id, notes, err
}

func TestPreStart(t *testing.T) {
	e := newEngine(t)
	id, notes, err := createNoted(t, e, func(s *sandbox.Spec) {
		s.Env = map[string]string{"NAME": "box"}
		s.Entrypoint = []string{"sh", "-c", "cat /made; exec sleep 1000000"}
		s.Lifecycle = &sandbox.Lifecycle{PreStart: shellHook("echo for $NAME; echo ready >/made", time.Minute)}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(notes, " "); got != "PreStartRunning PreStartSucceeded" {
		t.Errorf("events: %s", got)
	}
	if out, code := run(t, e, id, "cat /made"); out != "ready" || code != "0" {
		t.Errorf("%q, %s", out, code)
	}
	if log := logText(t, e, id); !strings.HasPrefix(log, "for box\n") {
		t.Errorf("log: %q", log)
	}
}

func TestPreStartFails(t *testing.T) {
	e := newEngine(t)
	for name, tc := range map[string]struct {
		hook *sandbox.Hook
		says string
	}{
		"exit code": {shellHook("echo no luck; exit 3", time.Minute), "exit status 3; its last output: no luck"},
		"time-out":  {shellHook("echo no luck; sleep 1000", time.Second), "within 1s and was killed"},
	} {
		id, notes, err := createNoted(t, e, func(s *sandbox.Spec) {
			s.Entrypoint = []string{"sh", "-c", "echo started"}
			s.Lifecycle = &sandbox.Lifecycle{PreStart: tc.hook}
		})
		var known *sandbox.Error
		if !errors.As(err, &known) || known.Reason != sandbox.ReasonPreStartFailed || known.Code != sandbox.CodeStartFailed || !strings.Contains(known.Message, tc.says) {
			t.Fatalf("%s: %v", name, err)
		}
		if got := strings.Join(notes, " "); got != "PreStartRunning" {
			t.Errorf("%s: events: %s", name, got)
		}
		if log := logText(t, e, id); !strings.Contains(log, "no luck\n") || strings.Contains(log, "started") {
			t.Errorf("%s: log: %q", name, log)
		}
		if err := e.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// A create that is broken off while the hook runs ends at once.
func TestPreStartIsBrokenOff(t *testing.T) {
	e := newEngine(t)
	ctx, cancel := context.WithCancel(context.Background())
	spec := &sandbox.Spec{Image: testImage, Entrypoint: []string{"true"},
		Lifecycle: &sandbox.Lifecycle{PreStart: shellHook("sleep 1000", time.Hour)}}
	id, err := e.Reserve(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "t", Note: func(kind sandbox.EventKind, _ string) { cancel() }})
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it was created")
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if err := e.Remove(context.Background(), id); err != nil {
		t.Error(err)
	}
}

func nextRun(t *testing.T, e *Engine) sandbox.HookRun {
	t.Helper()
	select {
	case r := <-e.HookRuns():
		return r
	case <-time.After(patience):
		t.Fatal("no hook ran")
		return sandbox.HookRun{}
	}
}

func TestPeriodicHooks(t *testing.T) {
	h := newHost(t)
	e, _ := h.open(t)
	id := mustCreate(t, e, func(s *sandbox.Spec) {
		s.Lifecycle = &sandbox.Lifecycle{Periodic: []sandbox.PeriodicHook{
			{Name: "count", Schedule: "@every 1s", Hook: *shellHook("echo . >>/runs; echo oops; exit 2", time.Minute)},
		}}
	})
	first := nextRun(t, e)
	if first.ID != id || first.Name != "count" || first.Seq != 1 || first.Code != 2 || first.Output != "oops" || first.EndedAt.IsZero() {
		t.Errorf("%+v", first)
	}
	if err := e.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := e.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	second := nextRun(t, e)
	if second.Seq <= first.Seq {
		t.Errorf("%+v after %+v", second, first)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	// A restarted engine goes on behind what was recorded.
	e, found := h.open(t, &sandbox.Sandbox{ID: id, Token: "token-of-" + id, HookSeq: second.Seq, Status: sandbox.Status{State: sandbox.Running}})
	defer e.Close()
	if found[id] != sandbox.FoundRunning {
		t.Fatalf("found %v", found[id])
	}
	if third := nextRun(t, e); third.Seq != second.Seq+1 || third.ID != id {
		t.Errorf("%+v after %+v", third, second)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	select {
	case x := <-e.Exits():
		t.Errorf("an exit was reported: %+v", x)
	default:
	}
}
