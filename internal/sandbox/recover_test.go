package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// TestRecovery crosses every recorded state with everything that the engine may
// find.
func TestRecovery(t *testing.T) {
	type want struct {
		state  sandbox.State
		reason string
	}
	const (
		nothing   = sandbox.FoundNothing
		running   = sandbox.FoundRunning
		paused    = sandbox.FoundPaused
		unclaimed = sandbox.FoundUnclaimed
	)
	ok := want{sandbox.Running, sandbox.ReasonRunning}
	frozen := want{sandbox.Paused, sandbox.ReasonPaused}
	lost := want{sandbox.Failed, sandbox.ReasonExecdLost}
	same := func(s sandbox.State) want { return want{s, "AS_BEFORE"} }
	gone := want{}
	for _, c := range []struct {
		recorded sandbox.State
		found    sandbox.Found
		want     want
	}{
		{sandbox.Pending, nothing, ok}, {sandbox.Pending, unclaimed, ok}, {sandbox.Pending, running, ok}, {sandbox.Pending, paused, frozen},
		{sandbox.Running, nothing, lost}, {sandbox.Running, unclaimed, lost}, {sandbox.Running, running, same(sandbox.Running)}, {sandbox.Running, paused, frozen},
		{sandbox.Pausing, nothing, lost}, {sandbox.Pausing, running, ok}, {sandbox.Pausing, paused, frozen},
		{sandbox.Paused, nothing, lost}, {sandbox.Paused, running, ok}, {sandbox.Paused, paused, same(sandbox.Paused)},
		{sandbox.Resuming, nothing, lost}, {sandbox.Resuming, running, ok}, {sandbox.Resuming, paused, frozen},
		{sandbox.Stopping, nothing, gone}, {sandbox.Stopping, running, gone}, {sandbox.Stopping, paused, gone}, {sandbox.Stopping, unclaimed, gone},
		{sandbox.Terminated, nothing, same(sandbox.Terminated)}, {sandbox.Failed, nothing, same(sandbox.Failed)},
	} {
		t.Run(string(c.recorded)+"/"+[]string{"nothing", "running", "paused", "unclaimed"}[c.found], func(t *testing.T) {
			const id = "sb-x"
			r := newRig(t, func(r *rig) {
				at := r.clock.now()
				s := &sandbox.Sandbox{ID: id, Spec: *spec(), CreatedAt: at, Token: "secret", BootID: "boot-1", Revision: 4,
					Status: sandbox.Status{State: c.recorded, Reason: "AS_BEFORE", LastTransitionAt: at}}
				if c.recorded != sandbox.Pending {
					s.StartedAt = &at
				}
				if err := r.store.Insert(t.Context(), s, nil); err != nil {
					t.Fatal(err)
				}
				r.h.revisions[id] = 4
				r.h.logs[id] = true
				if c.found != nothing {
					r.h.boxes[id] = &box{running: c.found != unclaimed, paused: c.found == paused}
				}
			})
			if c.want == gone {
				if _, err := r.m.Await(t.Context(), id, func(*sandbox.Sandbox) bool { return false }); !isNotFound(err) {
					t.Fatal(err)
				}
				r.wantGone(id)
				return
			}
			got := r.await(id, c.want.state)
			if got.Status.Reason != c.want.reason || got.Token != "secret" {
				t.Fatalf("got %+v", got)
			}
			r.quiesce()
			b, there := r.h.box(id)
			if alive := c.want.state == sandbox.Running || c.want.state == sandbox.Paused; there != alive || alive && (!b.running || b.paused != (c.want.state == sandbox.Paused)) {
				t.Fatalf("on the host: %+v, %v", b, there)
			}
			r.stop()
			if stored := r.stored(id); stored.Status.State != c.want.state {
				t.Fatalf("recorded as %+v", stored.Status)
			}
		})
	}
}

func TestRecoveryAfterReboot(t *testing.T) {
	r := newRig(t)
	s := r.run(lasting(time.Hour))
	r.crash()
	delete(r.h.boxes, s.ID)
	r.opts.BootID = "boot-2"
	r.start()
	got := r.get(s.ID)
	if got.Status.State != sandbox.Failed || got.Status.Reason != sandbox.ReasonHostRebooted {
		t.Fatalf("got %+v", got.Status)
	}
	r.clock.add(30 * time.Minute) // longer than a failed create is kept
	r.m.SweepNow()
	r.get(s.ID)
	// One that is created now belongs to this boot.
	n := r.run(spec())
	r.crash()
	delete(r.h.boxes, n.ID)
	r.start()
	if got := r.get(n.ID); got.Status.Reason != sandbox.ReasonExecdLost {
		t.Fatalf("got %+v", got.Status)
	}
}

func TestRecoveryRemovesStrays(t *testing.T) {
	r := newRig(t)
	r.crash()
	r.h.boxes["stray"] = &box{running: true}
	r.start()
	if _, ok := r.h.box("stray"); ok {
		t.Fatal("a sandbox without a record lives")
	}
}

// A volume that is to go with its sandbox goes also when the server died between
// making it and recording that.
func TestInterruptedCreateKeepsItsVolumes(t *testing.T) {
	for _, step := range []string{"claim", "created"} { // made again, and adopted
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			g := r.gate(step)
			sp := spec()
			sp.Volumes = []sandbox.VolumeMount{
				{Name: "own", Claim: "own", CreateIfMissing: true, DeleteWithSandbox: true, MountPath: "/own"},
				{Name: "kept", Claim: "kept", CreateIfMissing: true, MountPath: "/kept"},
			}
			id := r.create(sp).ID
			g.await(t)
			r.crash()
			r.start()
			r.await(id, sandbox.Running)
			if err := r.m.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			left, err := r.m.Volumes(t.Context())
			if err != nil || len(left) != 1 || left[0].Name != "kept" {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
}

// TestInterruptedCreateFails: what can't be finished says so.
func TestInterruptedCreateFails(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	s := r.create(spec())
	g.await(t)
	r.crash()
	r.prepare()
	r.p.onStep(failing(sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageAuth, "The registry wants a login."), "resolve"))
	r.start()
	got := r.await(s.ID, sandbox.Failed)
	if got.Status.Reason != sandbox.ReasonInterrupted || !strings.Contains(got.Status.Message, "wants a login") || got.Status.Code != sandbox.CodeImageAuth {
		t.Fatalf("got %+v", got.Status)
	}
}

func TestExpiredWhileDown(t *testing.T) {
	r := newRig(t)
	running := r.run(lasting(time.Minute))
	g := r.gate("claim")
	pending := r.create(lasting(time.Minute))
	g.await(t)
	r.crash()
	r.clock.add(time.Minute)
	r.start()
	for _, s := range []*sandbox.Sandbox{running, pending} {
		if _, err := r.m.Await(t.Context(), s.ID, func(*sandbox.Sandbox) bool { return false }); !isNotFound(err) {
			t.Fatal(err)
		}
		r.wantGone(s.ID)
	}
	if n := r.eng.called("create"); n != 0 {
		t.Fatal("an expired create was started again")
	}
}

func TestExitWhileDown(t *testing.T) {
	r := newRig(t)
	s := r.run(spec())
	r.crash()
	r.h.boxes[s.ID].exit = &sandbox.Exit{ID: s.ID, Code: 7}
	r.start()
	if got := r.await(s.ID, sandbox.Failed); got.Status.Reason != sandbox.ReasonExitedError {
		t.Fatalf("got %+v", got.Status)
	}
}

// TestEveryCrashPoint kills the server at each step of each operation in turn
// and starts it again: the operation has taken effect or not, and nothing is
// left over.
func TestEveryCrashPoint(t *testing.T) {
	ops := map[string]func(r *rig, id string) error{
		"create": func(r *rig, _ string) error {
			s, _, err := r.m.Create(r.t.Context(), sandbox.CreateOptions{Spec: lasting(time.Hour), IdempotencyKey: "k"})
			if err == nil {
				_, err = r.m.Await(r.t.Context(), s.ID, func(s *sandbox.Sandbox) bool { return s.Status.State == sandbox.Running || r.p.dead.Load() })
			}
			return err
		},
		"delete": func(r *rig, id string) error { return r.m.Delete(r.t.Context(), id) },
		"pause":  func(r *rig, id string) error { return r.m.Pause(r.t.Context(), id) },
	}
	for name, op := range ops {
		t.Run(name, func(t *testing.T) {
			for point := 0; ; point++ {
				if !crashAt(t, op, point) {
					if point < 4 {
						t.Fatalf("only %d steps", point)
					}
					return
				}
			}
		})
	}
}

// crashAt crashes at the given step; false when the operation has fewer.
func crashAt(t *testing.T, op func(*rig, string) error, point int) (crashed bool) {
	r := newRig(t)
	other := r.run(spec())
	steps, p := 0, r.p
	at := ""
	p.onStep(func(_ context.Context, step, _ string) error {
		r.h.mu.Lock()
		defer r.h.mu.Unlock()
		if steps++; steps > point {
			if !p.dead.Swap(true) {
				at = step
			}
			return errCrashed
		}
		return nil
	})
	opErr := op(r, other.ID)
	crashed = p.dead.Load()
	r.restart()
	for _, s := range r.list() {
		if s.Status.State == sandbox.Pending {
			r.await(s.ID, sandbox.Running)
		}
	}
	r.quiesce()
	for _, s := range r.list() {
		b, ok := r.h.box(s.ID)
		switch s.Status.State {
		case sandbox.Running, sandbox.Paused:
			if !ok || !b.running || b.paused != (s.Status.State == sandbox.Paused) {
				t.Errorf("crash at %s: %s is %s, on the host %+v", at, s.ID, s.Status.State, b)
			}
		default:
			if !errors.Is(opErr, errCrashed) || s.Status.State != sandbox.Failed || ok {
				t.Errorf("crash at %s: %+v", at, s.Status)
			}
		}
	}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	for id := range r.h.boxes {
		if !slices.ContainsFunc(r.list(), func(s *sandbox.Sandbox) bool { return s.ID == id }) {
			t.Errorf("crash at %s: %s is left over", at, id)
		}
	}
	return crashed
}

func (r *rig) list() []*sandbox.Sandbox {
	items, _ := r.m.List(sandbox.Filter{PageSize: 1000})
	return items
}

func TestClose(t *testing.T) {
	t.Run("finishes creates", func(t *testing.T) {
		r := newRig(t)
		g := r.gate("claim")
		s := r.create(spec())
		g.await(t)
		closed := make(chan error, 1)
		go func() { closed <- r.m.Close(t.Context()) }()
		for {
			_, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec()})
			if err != nil {
				wantError(t, err, sandbox.KindUnavailable, sandbox.CodeInternal)
				break
			}
		}
		close(g.open)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if got := r.stored(s.ID); got.Status.State != sandbox.Running {
			t.Fatalf("recorded as %+v", got.Status)
		}
	})
	t.Run("leaves them to the next start", func(t *testing.T) {
		r := newRig(t)
		g := r.gate("claim")
		s := r.create(spec())
		g.await(t)
		waiting, m := make(chan error, 1), r.m
		go func() {
			_, err := m.Wait(t.Context(), s.ID)
			waiting <- err
		}()
		r.stop()
		if err := <-waiting; err != nil {
			wantError(t, err, sandbox.KindUnavailable, sandbox.CodeInternal)
		}
		if got := r.stored(s.ID); got.Status.State != sandbox.Pending {
			t.Fatalf("recorded as %+v", got.Status)
		}
		if _, ok := r.h.box(s.ID); ok {
			t.Fatal("something is left on the host")
		}
		r.start()
		r.await(s.ID, sandbox.Running)
	})
}

func TestNewManagerFails(t *testing.T) {
	if _, err := sandbox.NewManager(t.Context(), sandbox.Options{}); err == nil {
		t.Fatal("without an engine")
	}
	for _, step := range []string{"all", "recover"} {
		r := newRig(t)
		r.stop()
		r.prepare()
		r.p.onStep(failing(errors.New("no"), step))
		_, err := sandbox.NewManager(t.Context(), sandbox.Options{Engine: r.eng, Store: &fakeStore{process: r.p, h: r.h, inner: r.store}})
		if err == nil || !strings.Contains(err.Error(), "no") {
			t.Fatalf("%s: %v", step, err)
		}
	}
}
