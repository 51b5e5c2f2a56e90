package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// history words the events of a sandbox: "Kind" or "Kind×count".
func (r *rig) history(id string) string {
	r.t.Helper()
	events, err := r.m.Events(id)
	if err != nil {
		r.t.Fatalf("Events: %v", err)
	}
	return words(events)
}

func words(events sandbox.Events) string {
	var all []string
	for _, e := range events.All() {
		w := string(e.Kind)
		if e.Count > 1 {
			w += fmt.Sprintf("×%d", e.Count)
		}
		all = append(all, w)
	}
	return strings.Join(all, " ")
}

func (r *rig) wantHistory(id, want string) {
	r.t.Helper()
	if got := r.history(id); got != want {
		r.t.Errorf("events: %s\nwant:   %s", got, want)
	}
}

func (r *rig) lastEvent(id string) sandbox.Event {
	r.t.Helper()
	events, err := r.m.Events(id)
	if err != nil {
		r.t.Fatalf("Events: %v", err)
	}
	all := events.All()
	return all[len(all)-1]
}

func TestEventsOfALife(t *testing.T) {
	r := newRig(t)
	s := lasting(time.Hour)
	s.Volumes = []sandbox.VolumeMount{{Name: "v", Claim: "data", CreateIfMissing: true, MountPath: "/data"}}
	id := r.run(s).ID
	r.wantHistory(id, "Created VolumesCreated Started")
	for range 3 {
		r.clock.add(time.Second)
		if _, err := r.m.Renew(t.Context(), id, r.clock.now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	v := "x"
	if _, err := r.m.PatchMetadata(t.Context(), id, map[string]*string{"team": &v}); err != nil {
		t.Fatal(err)
	}
	if got := r.lastEvent(id).Message; !strings.Contains(got, `"team"`) {
		t.Errorf("metadata: %s", got)
	}
	if err := r.m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.p.onStep(failing(errors.New("broken"), "resume"))
	if err := r.m.Resume(t.Context(), id); err == nil {
		t.Fatal("resumed")
	}
	r.p.onStep(failing(nil))
	if err := r.m.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.eng.exits <- sandbox.Exit{ID: id, Code: -1, OutOfMemory: true}
	r.await(id, sandbox.Failed)
	r.wantHistory(id, "Created VolumesCreated Started Renewed×3 MetadataChanged Paused ResumeFailed Resumed Ended")
	if e := r.lastEvent(id); e.Reason != sandbox.ReasonOutOfMemory || !strings.Contains(e.Message, "memory") {
		t.Errorf("%+v", e)
	}
	r.quiesce()
	if got := words(r.stored(id).Events); got != r.history(id) {
		t.Errorf("stored: %s", got)
	}
	r.clock.add(2 * time.Hour)
	g := r.gate("stop")
	g.await(t) // the sweeper looks at the clock every second
	if e := r.lastEvent(id); e.Kind != sandbox.EventExpiring || e.Reason != sandbox.ReasonExpired {
		t.Errorf("%+v", e)
	}
	close(g.open)
	r.quiesce()
	if _, err := r.m.Events(id); err == nil {
		t.Error("events of a removed sandbox")
	}
}

func TestEventsOfFailedCreates(t *testing.T) {
	r := newRig(t, func(r *rig) { r.prepare(); r.eng.absent["far:1"] = true })
	far := &sandbox.Spec{Image: "far:1"}
	r.wantHistory(r.run(far).ID, "Created ImagePulling ImagePulled Started")
	r.p.onStep(failing(&sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeStartFailed, Reason: sandbox.ReasonPreStartFailed, Message: "The hook failed."}, "claim"))
	id := r.create(far).ID
	r.await(id, sandbox.Failed)
	r.wantHistory(id, "Created ImagePulling ImagePulled Failed")
	if e := r.lastEvent(id); e.Reason != sandbox.ReasonPreStartFailed || e.Message != "The hook failed." {
		t.Errorf("%+v", e)
	}
}

// The path of a create has one insert and one update, with or without events.
func TestEventsCostNoWrite(t *testing.T) {
	r := newRig(t)
	var writes atomic.Int32
	r.p.onStep(func(_ context.Context, step, _ string) error {
		if step == "insert" || step == "update" {
			writes.Add(1)
		}
		return nil
	})
	r.run(spec())
	r.quiesce()
	if n := writes.Load(); n != 2 {
		t.Errorf("%d writes", n)
	}
}

func TestEventsAcrossRestarts(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	lost := r.run(spec()).ID
	for range 3 {
		r.restart()
		r.quiesce()
	}
	r.wantHistory(id, "Created Started Restored×3")
	if got := words(r.stored(id).Events); got != "Created Started Restored×3" {
		t.Errorf("stored: %s", got)
	}
	if err := r.m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.crash()
	r.h.mu.Lock()
	delete(r.h.boxes, lost)
	r.h.mu.Unlock()
	r.start()
	r.wantHistory(id, "Created Started Restored×3 Paused Restored")
	if e := r.lastEvent(lost); e.Kind != sandbox.EventEnded || e.Reason != sandbox.ReasonExecdLost {
		t.Errorf("%+v", e)
	}
}

func withHook(name string) *sandbox.Spec {
	s := spec()
	s.Lifecycle = &sandbox.Lifecycle{Periodic: []sandbox.PeriodicHook{{Name: name, Schedule: "@hourly", Hook: sandbox.Hook{Command: []string{"x"}, Timeout: time.Second}}}}
	return s
}

func TestHookRunsBecomeEvents(t *testing.T) {
	r := newRig(t)
	id := r.run(withHook("save")).ID
	tell := func(run sandbox.HookRun) {
		t.Helper()
		run.ID, run.Name, run.EndedAt = id, "save", r.clock.now()
		select {
		case r.eng.hooks <- run:
		case <-time.After(patience):
			t.Fatal("nobody takes runs of hooks")
		}
	}
	tell(sandbox.HookRun{Seq: 1, Took: time.Second})
	tell(sandbox.HookRun{Seq: 2, Code: 3, Output: "no space\n"})
	tell(sandbox.HookRun{Seq: 3})
	tell(sandbox.HookRun{Seq: 3})           // told twice
	tell(sandbox.HookRun{Seq: 1, Code: 99}) // old
	r.eng.hooks <- sandbox.HookRun{ID: id, Seq: 9, Name: "never asked for"}
	r.eng.hooks <- sandbox.HookRun{ID: "gone", Seq: 1, Name: "save"}
	tell(sandbox.HookRun{Seq: 10, Code: -1, Signal: 9, TimedOut: true, Took: 2 * time.Second})
	tell(sandbox.HookRun{Seq: 11, Code: -1, Signal: 9})
	tell(sandbox.HookRun{Seq: 12, Code: -1, Problem: "not found"})
	tell(sandbox.HookRun{Seq: 13, Code: 3, Output: "no space\n"})
	tell(sandbox.HookRun{Seq: 13}) // so that the one before was handled
	r.wantHistory(id, "Created Started HookSucceeded×2 HookFailed×5")
	e := r.lastEvent(id)
	if e.Subject != "save" || !strings.Contains(e.Message, `"save" ended with exit code 3`) || !strings.HasSuffix(e.Message, "no space") {
		t.Errorf("%+v", e)
	}
	r.quiesce()
	if s := r.stored(id); s.HookSeq != 13 || words(s.Events) != r.history(id) {
		t.Errorf("stored: %d, %s", s.HookSeq, words(s.Events))
	}
}

func TestFollowEvents(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	seen := make(chan sandbox.Event, 100)
	over := make(chan error, 1)
	go func() {
		over <- r.m.FollowEvents(t.Context(), id, 1, func(batch []sandbox.Event) error {
			for _, e := range batch {
				seen <- e
			}
			return nil
		})
	}()
	want := func(kind sandbox.EventKind) {
		t.Helper()
		select {
		case e := <-seen:
			if e.Kind != kind {
				t.Fatalf("got %+v, want %s", e, kind)
			}
		case <-time.After(patience):
			t.Fatalf("no %s", kind)
		}
	}
	want(sandbox.EventStarted)
	if err := r.m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	want(sandbox.EventPaused)
	if err := r.m.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	want(sandbox.EventDeleting)
	if err := <-over; err != nil {
		t.Errorf("a removed sandbox: %v", err)
	}

	id = r.run(spec()).ID
	stop := errors.New("enough")
	if err := r.m.FollowEvents(t.Context(), id, 0, func([]sandbox.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.m.FollowEvents(ctx, id, 99, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := r.m.FollowEvents(t.Context(), "no", 0, nil); err == nil {
		t.Error("followed nothing")
	}
	r.eng.exits <- sandbox.Exit{ID: id}
	last := sandbox.Event{}
	if err := r.m.FollowEvents(t.Context(), id, 0, func(b []sandbox.Event) error { last = b[len(b)-1]; return nil }); err != nil || last.Kind != sandbox.EventEnded {
		t.Errorf("an ended sandbox: %v, %+v", err, last)
	}
}

func TestLifecycleIsChecked(t *testing.T) {
	r := newRig(t)
	for _, l := range []*sandbox.Lifecycle{
		{PreStart: &sandbox.Hook{Timeout: time.Second}},
		{PreStart: &sandbox.Hook{Command: []string{" "}, Timeout: time.Second}},
		{PreStart: &sandbox.Hook{Command: []string{"x"}}},
		{PreStart: &sandbox.Hook{Command: []string{"x"}, Timeout: 4 * time.Hour}},
		{Periodic: make([]sandbox.PeriodicHook, 33)},
		{Periodic: []sandbox.PeriodicHook{{Hook: sandbox.Hook{Command: []string{"x"}, Timeout: time.Hour}}}},
	} {
		s := spec()
		s.Lifecycle = l
		_, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: s})
		wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidParameter)
	}
}

// Hooks that run for hours before their entrypoints do not keep other sandboxes
// from being made.
func TestPreStartHoldsNobodyUp(t *testing.T) {
	r := newRig(t)
	g := newGate("claim")
	r.p.onStep(func(ctx context.Context, step, id string) error {
		if s, err := r.m.Get(id); err != nil || s.Spec.Lifecycle == nil {
			return nil
		}
		return g.hook(ctx, step, id)
	})
	slow := spec()
	slow.Lifecycle = &sandbox.Lifecycle{PreStart: &sandbox.Hook{Command: []string{"x"}, Timeout: time.Hour}}
	const many = 100
	for range many {
		r.create(slow)
	}
	for range many {
		g.await(t)
	}
	r.run(spec())
	close(g.open)
}
