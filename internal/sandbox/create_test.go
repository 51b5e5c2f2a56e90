package sandbox_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestCreateAnswersBeforeItIsMade(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	s := r.create(lasting(time.Hour))
	if s.Status.State != sandbox.Pending || s.Status.Reason != sandbox.ReasonCreating {
		t.Fatalf("status %+v", s.Status)
	}
	if want := r.clock.now().Add(time.Hour); s.ExpiresAt == nil || !s.ExpiresAt.Equal(want) {
		t.Fatalf("expires at %v, want %v", s.ExpiresAt, want)
	}
	if b, err := base64.RawURLEncoding.DecodeString(s.Token); err != nil || len(b) != 32 {
		t.Fatalf("token %q", s.Token)
	}
	if len(s.Entrypoint) != 1 || s.Entrypoint[0] != "/init" {
		t.Fatalf("the image's entrypoint is known, got %q", s.Entrypoint)
	}
	g.await(t)
	if got := r.stored(s.ID); got == nil || got.Status.State != sandbox.Pending || got.Token != s.Token {
		t.Fatalf("recorded before made: %+v", got)
	}
	close(g.open)
	got, err := r.m.Wait(t.Context(), s.ID)
	if err != nil || got.Status.State != sandbox.Running || got.StartedAt == nil {
		t.Fatalf("got %+v, %v", got, err)
	}
	if pending, live, records := r.m.Admitted(); pending != 0 || live != 1 || records != 1 {
		t.Fatalf("counted %d, %d, %d", pending, live, records)
	}
}

func TestHandedOutRecordsAreCopies(t *testing.T) {
	r := newRig(t)
	sp := spec()
	sp.Metadata = map[string]string{"a": "1"}
	sp.Auth = &sandbox.RegistryAuth{Username: "u", Password: "p"}
	s := r.run(sp)
	sp.Metadata["a"] = "2"
	got := r.get(s.ID)
	got.Spec.Metadata["a"] = "3"
	*got.StartedAt = time.Time{}
	again := r.get(s.ID)
	if again.Spec.Metadata["a"] != "1" || again.StartedAt.IsZero() {
		t.Fatal("a caller changed the record")
	}
	if again.Spec.Auth != nil {
		t.Fatal("the registry password stays in memory")
	}
}

func TestCreateErrorsLeaveNothing(t *testing.T) {
	bad := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter, "bad")
	for _, step := range []string{"check", "resolve", "reserve", "insert", "insert-after"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.p.onStep(failing(bad, step))
			sp := spec()
			sp.Volumes = []sandbox.VolumeMount{{Claim: "v"}}
			_, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: sp})
			if strings.HasPrefix(step, "insert") {
				wantError(t, err, sandbox.KindUnavailable, sandbox.CodeInternal)
			} else {
				wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidParameter)
			}
			if items, total := r.m.List(sandbox.Filter{}); total != 0 || len(items) != 0 {
				t.Fatal("a failed create is listed")
			}
			if all, _ := r.store.All(t.Context()); len(all) != 0 {
				t.Fatal("a failed create is recorded")
			}
			if a, b, c := r.m.Admitted(); a != 0 || b != 0 || c != 0 {
				t.Fatalf("still counted: %d, %d, %d", a, b, c)
			}
			if r.m.VolumeUsers("v") != 0 {
				t.Fatal("the volume still counts as used")
			}
			if len(r.h.reserved) != 0 {
				t.Fatal("the reserved id was not given back")
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts.MaxTimeout = time.Hour })
	reserved := spec()
	reserved.Metadata = map[string]string{"opensandbox.io/x": "y"}
	for _, c := range []struct {
		name string
		opts sandbox.CreateOptions
		code string
	}{
		{"nothing", sandbox.CreateOptions{}, sandbox.CodeInvalidParameter},
		{"too long", sandbox.CreateOptions{Spec: lasting(time.Hour + 1)}, sandbox.CodeInvalidParameter},
		{"negative", sandbox.CreateOptions{Spec: lasting(-1)}, sandbox.CodeInvalidParameter},
		{"reserved metadata", sandbox.CreateOptions{Spec: reserved}, sandbox.CodeInvalidMetadataLabel},
		{"huge key", sandbox.CreateOptions{Spec: spec(), IdempotencyKey: strings.Repeat("k", 256)}, sandbox.CodeInvalidParameter},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := r.m.Create(t.Context(), c.opts)
			wantError(t, err, sandbox.KindInvalid, c.code)
		})
	}
}

func TestFailedCreate(t *testing.T) {
	coded := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageAuth, "The registry refused the login.")
	entry := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidEntrypoint, "No such program.")
	own := &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeStartFailed, Reason: "SPECIAL", Message: "x"}
	full := &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeImagePullFailed, Reason: sandbox.ReasonImagePullFailed, Message: "No disk space."}
	for _, c := range []struct {
		name   string
		err    error
		step   string
		reason string
		says   string
	}{
		{"internal", errors.New("secret detail"), "claim", sandbox.ReasonStartFailed, "internal error"},
		{"pull", coded, "create", sandbox.ReasonImagePullFailed, "refused the login"},
		{"pull, and the machine's fault", full, "create", sandbox.ReasonImagePullFailed, "No disk space"},
		{"entrypoint", entry, "claim", sandbox.ReasonEntrypointFailed, "No such program"},
		{"own reason", own, "created", "SPECIAL", ""},
		{"unwritable", errors.New("disk full"), "update", sandbox.ReasonStartFailed, "could not be recorded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.p.onStep(failing(c.err, c.step))
			s := r.create(spec())
			got := r.await(s.ID, sandbox.Failed)
			if got.Status.Reason != c.reason || !strings.Contains(got.Status.Message, c.says) || strings.Contains(got.Status.Message, "secret") {
				t.Fatalf("status %+v", got.Status)
			}
			if got.Status.Code == "" || got.EndedAt == nil || got.StartedAt != nil {
				t.Fatalf("got %+v", got)
			}
			r.p.onStep(failing(nil))
			r.quiesce()
			if stored := r.stored(s.ID); stored.Status.State != sandbox.Failed || stored.Status.Reason != c.reason {
				t.Fatalf("recorded as %+v", stored.Status)
			}
			if _, ok := r.h.box(s.ID); ok {
				t.Fatal("something is left on the host")
			}
			if a, b, _ := r.m.Admitted(); a != 0 || b != 0 {
				t.Fatalf("still counted: %d pending, %d live", a, b)
			}
			_, err := r.m.Dial(t.Context(), s.ID, 80)
			if e := wantError(t, err, sandbox.KindConflict, sandbox.CodeNotRunning); !strings.Contains(e.Message, c.reason) {
				t.Fatalf("Dial does not say why: %s", e.Message)
			}
			if _, err := r.m.Logs(t.Context(), s.ID, sandbox.LogOptions{}); err != nil {
				t.Fatalf("logs of a failed create: %v", err)
			}

			r.clock.add(9 * time.Minute)
			r.m.SweepNow()
			r.get(s.ID)
			r.clock.add(time.Minute)
			r.m.SweepNow()
			r.wantGone(s.ID)
		})
	}
}

func TestCreateTimeout(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts.CreateTimeout = time.Millisecond })
	r.gate("claim")
	s := r.await(r.create(spec()).ID, sandbox.Failed)
	if !strings.Contains(s.Status.Message, "longer than 1ms") {
		t.Fatalf("status %+v", s.Status)
	}
}

func TestPullProgress(t *testing.T) {
	r := newRig(t, func(r *rig) { r.prepare(); r.eng.absent["python:3.11"] = true })
	g := r.gate("pull")
	s := r.create(spec())
	if s.Status.Reason != sandbox.ReasonPulling || len(s.Entrypoint) != 0 {
		t.Fatalf("got %+v", s)
	}
	g.await(t)
	got := r.get(s.ID)
	if got.Status.Message != "half of it is here" || got.Revision != 1 {
		t.Fatalf("got %+v", got)
	}
	close(g.open)
	if got := r.await(s.ID, sandbox.Running); len(got.Entrypoint) != 1 {
		t.Fatalf("the entrypoint is known after the pull, got %+v", got)
	}
}

// TestPullsDoNotTakeTheTurnsOfOthers: any number of slow pulls leaves creates
// from local images alone.
func TestPullsDoNotTakeTheTurnsOfOthers(t *testing.T) {
	r := newRig(t, func(r *rig) { r.prepare(); r.eng.absent["slow"] = true })
	g := r.gate("pull")
	for range 100 {
		r.create(&sandbox.Spec{Image: "slow"})
	}
	for range 100 {
		g.await(t)
	}
	r.run(spec())
	close(g.open)
}

func TestBurst(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			s, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec()})
			if err != nil {
				t.Error(err)
				return
			}
			if s, err = r.m.Wait(t.Context(), s.ID); err != nil || s.Status.State != sandbox.Running {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	wg.Wait()
	if st := r.m.Stats(); st.ByState[sandbox.Running] != 200 || st.Creates != 200 || st.CreateFailures != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestAdmission(t *testing.T) {
	t.Run("pending", func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.opts.MaxPending = 3 })
		g := r.gate("claim")
		for range 3 {
			r.create(spec())
		}
		_, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec()})
		wantError(t, err, sandbox.KindBusy, sandbox.CodeCapacity)
		close(g.open)
		r.await(g.await(t), sandbox.Running)
		r.run(spec())
	})
	t.Run("live", func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.opts.MaxSandboxes = 2 })
		a, b := r.run(spec()), r.run(spec())
		_, _, err := r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec()})
		wantError(t, err, sandbox.KindBusy, sandbox.CodeCapacity)
		if err := r.m.Delete(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		r.run(spec())
		r.eng.end(sandbox.Exit{ID: b.ID})
		r.await(b.ID, sandbox.Terminated)
		r.run(spec()) // one that has ended does not count
		r.restart()
		_, _, err = r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec()})
		wantError(t, err, sandbox.KindBusy, sandbox.CodeCapacity)
	})
}

func TestIdempotency(t *testing.T) {
	ask := func(r *rig, key, hash string) (*sandbox.Sandbox, bool, error) {
		return r.m.Create(t.Context(), sandbox.CreateOptions{Spec: spec(), IdempotencyKey: key, BodyHash: hash})
	}
	t.Run("replay", func(t *testing.T) {
		r := newRig(t)
		a, replayed, err := ask(r, "k", "h")
		if err != nil || replayed {
			t.Fatal(replayed, err)
		}
		r.await(a.ID, sandbox.Running)
		b, replayed, err := ask(r, "k", "h")
		if err != nil || !replayed || b.ID != a.ID || b.Status.State != sandbox.Running {
			t.Fatalf("%+v, %v, %v", b, replayed, err)
		}
		_, _, err = ask(r, "k", "other")
		wantError(t, err, sandbox.KindConflict, sandbox.CodeIdempotencyConflict)
		r.restart()
		if b, replayed, err := ask(r, "k", "h"); err != nil || !replayed || b.ID != a.ID {
			t.Fatalf("after a restart: %+v, %v, %v", b, replayed, err)
		}
		r.clock.add(sandbox.KeyLifetime + time.Second)
		if b, replayed, err := ask(r, "k", "h"); err != nil || replayed || b.ID == a.ID {
			t.Fatalf("after its life: %+v, %v, %v", b, replayed, err)
		}
	})
	t.Run("in flight", func(t *testing.T) {
		r := newRig(t)
		g := r.gate("resolve")
		var wg sync.WaitGroup
		ids := make(chan string, 20)
		for range 20 {
			wg.Go(func() {
				s, _, err := ask(r, "k", "h")
				if err != nil {
					t.Error(err)
					return
				}
				ids <- s.ID
			})
		}
		g.await(t)
		_, _, err := ask(r, "k", "other")
		wantError(t, err, sandbox.KindConflict, sandbox.CodeIdempotencyConflict)
		close(g.open)
		wg.Wait()
		close(ids)
		for id := range ids {
			if id != "sb-0001" {
				t.Fatalf("another sandbox %s", id)
			}
		}
		if _, total := r.m.List(sandbox.Filter{}); total != 1 {
			t.Fatalf("%d sandboxes", total)
		}
	})
	t.Run("leader goes away", func(t *testing.T) {
		r := newRig(t)
		g := r.gate("resolve")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _, err := r.m.Create(ctx, sandbox.CreateOptions{Spec: spec(), IdempotencyKey: "k"})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		g.await(t)
		wg.Go(func() {
			if _, _, err := ask(r, "k", ""); err != nil {
				t.Error(err)
			}
		})
		cancel()
		g.await(t) // the second one flies it now
		close(g.open)
		wg.Wait()
	})
	t.Run("failed", func(t *testing.T) {
		r := newRig(t)
		r.p.onStep(failing(errors.New("no"), "resolve"))
		if _, _, err := ask(r, "k", "h"); err == nil {
			t.Fatal("no error")
		}
		r.p.onStep(failing(nil))
		if _, replayed, err := ask(r, "k", "h"); err != nil || replayed {
			t.Fatalf("a failed create took the key: %v, %v", replayed, err)
		}
	})
}

func TestListOrderAndPages(t *testing.T) {
	r := newRig(t)
	var ids []string
	for i := range 25 {
		sp := spec()
		sp.Metadata = map[string]string{"parity": fmt.Sprint(i % 2), "n": fmt.Sprint(i)}
		ids = append(ids, r.run(sp).ID)
		if i%5 == 4 {
			r.clock.add(time.Second)
		}
		if i == 12 {
			r.clock.add(-time.Hour) // a clock that is set back
		}
	}
	if err := r.m.Delete(t.Context(), ids[3]); err != nil {
		t.Fatal(err)
	}
	r.eng.end(sandbox.Exit{ID: ids[7], Code: 3})
	r.await(ids[7], sandbox.Failed)

	check := func(when string) {
		all, total := r.m.List(sandbox.Filter{PageSize: 100})
		if total != 24 || len(all) != 24 {
			t.Fatalf("%s: %d of %d", when, len(all), total)
		}
		for i := 1; i < len(all); i++ {
			a, b := all[i-1], all[i]
			if a.CreatedAt.Before(b.CreatedAt) || a.CreatedAt.Equal(b.CreatedAt) && a.ID >= b.ID {
				t.Fatalf("%s: %s before %s", when, a.ID, b.ID)
			}
		}
		var paged []string
		for page := 1; page <= 4; page++ {
			items, total := r.m.List(sandbox.Filter{Page: page, PageSize: 10})
			if total != 24 {
				t.Fatalf("%s: total %d", when, total)
			}
			for _, s := range items {
				paged = append(paged, s.ID)
			}
		}
		if len(paged) != 24 {
			t.Fatalf("%s: the pages hold %d", when, len(paged))
		}
		for i, id := range paged {
			if all[i].ID != id {
				t.Fatalf("%s: page item %d is %s", when, i, id)
			}
		}
		for _, c := range []struct {
			f     sandbox.Filter
			total int
		}{
			{sandbox.Filter{States: []string{"RUNNING"}}, 23},
			{sandbox.Filter{States: []string{"failed", "nonsense"}}, 1},
			{sandbox.Filter{States: []string{"nonsense"}}, 0},
			{sandbox.Filter{Metadata: map[string]string{"parity": "1"}}, 11},
			{sandbox.Filter{Metadata: map[string]string{"parity": "1", "n": "5"}}, 1},
			{sandbox.Filter{Metadata: map[string]string{"parity": "1", "n": "4"}}, 0},
			{sandbox.Filter{Metadata: map[string]string{"absent": ""}}, 0},
			{sandbox.Filter{States: []string{"running", "failed"}, PageSize: 1000, Page: 1 << 60}, 24},
		} {
			if _, total := r.m.List(c.f); total != c.total {
				t.Errorf("%s: %+v matches %d, want %d", when, c.f, total, c.total)
			}
		}
	}
	check("before")
	r.restart()
	check("after a restart")
}
