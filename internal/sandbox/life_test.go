package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestDelete(t *testing.T) {
	t.Run("running", func(t *testing.T) {
		r := newRig(t)
		s := r.run(spec())
		if err := r.m.Delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.wantGone(s.ID)
		e := wantError(t, r.m.Delete(t.Context(), s.ID), sandbox.KindNotFound, sandbox.CodeNotFound)
		if !strings.Contains(e.Message, "it was deleted at 2030-05-06T07:08:09Z") {
			t.Fatalf("says %q", e.Message)
		}
		r.clock.add(11 * time.Minute)
		if _, err := r.m.Get(s.ID); strings.Contains(err.Error(), "was deleted at") {
			t.Fatal("remembered for too long")
		}
		if a, b, c := r.m.Admitted(); a != 0 || b != 0 || c != 0 {
			t.Fatalf("still counted: %d, %d, %d", a, b, c)
		}
	})
	// A create that hangs at any step is broken off.
	for _, step := range []string{"pull", "create", "claim", "created"} {
		t.Run("while creating at "+step, func(t *testing.T) {
			r := newRig(t, func(r *rig) { r.prepare(); r.eng.absent["python:3.11"] = step == "pull" })
			g := r.gate(step)
			s := r.create(spec())
			g.await(t)
			if err := r.m.Delete(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			r.wantGone(s.ID)
			if a, b, c := r.m.Admitted(); a != 0 || b != 0 || c != 0 {
				t.Fatalf("still counted: %d, %d, %d", a, b, c)
			}
		})
	}
	t.Run("while waiting for a turn", func(t *testing.T) {
		r := newRig(t)
		g := r.gate("claim")
		var ids []string
		for range 200 { // more than there are turns
			ids = append(ids, r.create(spec()).ID)
		}
		last := ids[len(ids)-1]
		if err := r.m.Delete(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		r.wantGone(last)
		close(g.open)
	})
	t.Run("at the same time", func(t *testing.T) {
		r := newRig(t)
		s := r.run(spec())
		g := r.gate("stop")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := r.m.Delete(t.Context(), s.ID); err != nil && !isNotFound(err) {
					t.Error(err)
				}
			})
		}
		g.await(t)
		if got := r.get(s.ID); got.Status.State != sandbox.Stopping {
			t.Fatalf("shown as %s", got.Status.State)
		}
		if got := r.stored(s.ID); got.Status.State != sandbox.Stopping {
			t.Fatalf("recorded as %s", got.Status.State)
		}
		close(g.open)
		wg.Wait()
		if n := r.eng.called("remove"); n != 1 {
			t.Fatalf("removed %d times", n)
		}
	})
	t.Run("client goes away", func(t *testing.T) {
		r := newRig(t)
		s := r.run(spec())
		g := r.gate("stop")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.m.Delete(ctx, s.ID) }()
		g.await(t)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		close(g.open)
		if err := r.m.Delete(t.Context(), s.ID); err != nil && !isNotFound(err) {
			t.Fatal(err)
		}
		r.wantGone(s.ID)
	})
	for _, step := range []string{"stop", "stopped", "removed", "delete", "delete-after"} {
		t.Run("failing at "+step, func(t *testing.T) {
			r := newRig(t)
			s := r.run(spec())
			r.p.onStep(failing(errors.New("no"), step))
			wantError(t, r.m.Delete(t.Context(), s.ID), sandbox.KindUnavailable, sandbox.CodeDeleteFailed)
			if got := r.get(s.ID); got.Status.State != sandbox.Stopping {
				t.Fatalf("shown as %s", got.Status.State)
			}
			wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotRunning)
			_, err := r.m.Renew(t.Context(), s.ID, r.clock.now().Add(time.Hour))
			wantError(t, err, sandbox.KindConflict, sandbox.CodeInvalidState)
			r.p.onStep(failing(nil))
			r.m.SweepNow()
			r.wantGone(s.ID)
		})
	}
	t.Run("unwritable intent", func(t *testing.T) {
		r := newRig(t)
		s := r.run(spec())
		r.p.onStep(failing(errors.New("no"), "update"))
		if err := r.m.Delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.wantGone(s.ID)
	})
}

func isNotFound(err error) bool {
	var e *sandbox.Error
	return errors.As(err, &e) && e.Kind == sandbox.KindNotFound
}

func TestPauseAndResume(t *testing.T) {
	r := newRig(t)
	s := r.run(lasting(time.Hour))
	wantError(t, r.m.Resume(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotPaused)
	for range 3 {
		if err := r.m.Pause(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if got := r.stored(s.ID); got.Status.State != sandbox.Paused {
			t.Fatalf("recorded as %s", got.Status.State)
		}
		wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotRunning)
		_, err := r.m.Dial(t.Context(), s.ID, 80)
		if e := wantError(t, err, sandbox.KindConflict, sandbox.CodeNotRunning); !strings.Contains(e.Message, "Resume it") {
			t.Fatalf("says %q", e.Message)
		}
		if err := r.m.Resume(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if got := r.stored(s.ID); got.Status.State != sandbox.Running {
			t.Fatalf("recorded as %s", got.Status.State)
		}
	}
	if err := r.m.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	r.clock.add(time.Hour)
	r.m.SweepNow() // paused sandboxes expire, too
	r.wantGone(s.ID)
	wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindNotFound, sandbox.CodeNotFound)
}

func TestPauseWhilePending(t *testing.T) {
	r := newRig(t)
	r.gate("claim")
	s := r.create(spec())
	wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotRunning)
	wantError(t, r.m.Resume(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotPaused)
}

func TestFailedPauseIsUndone(t *testing.T) {
	r := newRig(t)
	s := r.run(spec())
	for _, step := range []string{"pause", "paused"} {
		r.p.onStep(failing(errors.New("no"), step))
		wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindInternal, sandbox.CodePauseFailed)
		if b, _ := r.h.box(s.ID); b.paused {
			t.Fatalf("%s: still frozen", step)
		}
		if got := r.get(s.ID); got.Status.State != sandbox.Running || got.Status.Message == "" {
			t.Fatalf("%s: %+v", step, got.Status)
		}
	}
	r.p.onStep(failing(nil))
	if err := r.m.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	r.p.onStep(failing(errors.New("no"), "resume", "pause")) // the undo fails as well
	wantError(t, r.m.Resume(t.Context(), s.ID), sandbox.KindInternal, sandbox.CodeResumeFailed)
	r.p.onStep(failing(nil))
	if err := r.m.Resume(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// TestDeleteBreaksOffPause: a pause that hangs does not hold up a delete.
func TestDeleteBreaksOffPause(t *testing.T) {
	r := newRig(t)
	s := r.run(spec())
	g := r.gate("pause")
	done := make(chan error, 1)
	go func() { done <- r.m.Pause(t.Context(), s.ID) }()
	g.await(t)
	if got := r.stored(s.ID); got.Status.State != sandbox.Pausing {
		t.Fatalf("recorded as %s", got.Status.State)
	}
	if err := r.m.Delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Fatal("the pause succeeded")
	}
	r.wantGone(s.ID)
}

// TestStuckSandboxHoldsUpNobody: an engine call that never returns, whatever
// its context says, is a matter of that one sandbox.
func TestStuckSandboxHoldsUpNobody(t *testing.T) {
	r := newRig(t)
	stuck, other := r.run(spec()), r.run(lasting(time.Minute))
	g := newGate("pause")
	g.deaf = true
	r.p.onStep(g.hook)
	done := make(chan error, 2)
	go func() { done <- r.m.Pause(t.Context(), stuck.ID) }()
	g.await(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- r.m.Delete(ctx, stuck.ID) }()

	r.get(stuck.ID)
	if _, total := r.m.List(sandbox.Filter{States: []string{"Running"}}); total == 0 {
		t.Fatal("nothing listed")
	}
	if _, err := r.m.PatchMetadata(t.Context(), other.ID, map[string]*string{"a": nil}); err != nil {
		t.Fatal(err)
	}
	r.run(spec())
	r.clock.add(time.Minute)
	r.m.SweepNow()
	r.wantGone(other.ID)

	cancel()
	close(g.open)
	<-done
	<-done
}

func TestExits(t *testing.T) {
	for _, c := range []struct {
		exit   sandbox.Exit
		state  sandbox.State
		reason string
		says   string
	}{
		{sandbox.Exit{}, sandbox.Terminated, sandbox.ReasonExited, "exit code 0"},
		{sandbox.Exit{Code: 3}, sandbox.Failed, sandbox.ReasonExitedError, "exit code 3"},
		{sandbox.Exit{Code: -1, Signal: 9}, sandbox.Failed, sandbox.ReasonKilled, "signal 9 (SIGKILL)"},
		{sandbox.Exit{Code: -1, Signal: 64}, sandbox.Failed, sandbox.ReasonKilled, "signal 64."},
		{sandbox.Exit{Code: -1, Signal: 9, OutOfMemory: true}, sandbox.Failed, sandbox.ReasonOutOfMemory, "memory"},
		{sandbox.Exit{Code: -1, ExecdLost: true}, sandbox.Failed, sandbox.ReasonExecdLost, "first process"},
		{sandbox.Exit{Code: -1}, sandbox.Failed, sandbox.ReasonExitedError, "unknown"},
	} {
		t.Run(c.reason+fmt.Sprint(c.exit.Signal), func(t *testing.T) {
			r := newRig(t)
			s := r.run(lasting(time.Hour))
			c.exit.ID = s.ID
			r.eng.end(c.exit)
			got := r.await(s.ID, c.state)
			if got.Status.Reason != c.reason || !strings.Contains(got.Status.Message, c.says) || got.EndedAt == nil {
				t.Fatalf("got %+v", got)
			}
			wantError(t, r.m.Pause(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotRunning)
			wantError(t, r.m.Resume(t.Context(), s.ID), sandbox.KindConflict, sandbox.CodeNotPaused)
			_, err := r.m.Usage(t.Context(), s.ID)
			wantError(t, err, sandbox.KindConflict, sandbox.CodeNotRunning)
			r.clock.add(59 * time.Minute) // not FailedRetention: it did run
			r.quiesce()
			if _, ok := r.h.box(s.ID); ok {
				t.Fatal("it still holds resources")
			}
			rd, err := r.m.Logs(t.Context(), s.ID, sandbox.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(rd); string(b) != "log of "+s.ID {
				t.Fatalf("log %q", b)
			}
			r.clock.add(time.Minute)
			r.m.SweepNow()
			r.wantGone(s.ID)
		})
	}
}

// TestExitWhileCreating: an entrypoint that ends before its create is recorded
// is not lost.
func TestExitWhileCreating(t *testing.T) {
	r := newRig(t)
	g := r.gate("created")
	s := r.create(spec())
	g.await(t)
	r.eng.end(sandbox.Exit{ID: s.ID})
	close(g.open)
	r.await(s.ID, sandbox.Terminated)
}

func TestUnfreedSandboxIsRetried(t *testing.T) {
	r := newRig(t)
	s := r.run(spec())
	g := r.gate("stop")
	r.p.onStep(func(_ context.Context, step, id string) error {
		if step == "stop" {
			g.reached <- id
			return errors.New("busy")
		}
		return nil
	})
	r.eng.end(sandbox.Exit{ID: s.ID})
	g.await(t)
	r.await(s.ID, sandbox.Terminated)
	r.p.onStep(failing(nil))
	r.quiesce()
	if _, ok := r.h.box(s.ID); ok {
		t.Fatal("it still holds resources")
	}
}
