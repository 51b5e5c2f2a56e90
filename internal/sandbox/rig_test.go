package sandbox_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/store"
)

// patience is how long a test waits for an event that must come.
const patience = 20 * time.Second

// tester is what rig needs of *testing.T and *rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Context() context.Context
}

// rig is a host, a store and a clock, on which servers start and crash.
type rig struct {
	t     tester
	h     *host
	store *store.Store
	clock *clock
	opts  sandbox.Options

	p   *process
	eng *fakeEngine
	m   *sandbox.Manager
}

func newRig(t *testing.T, adjust ...func(*rig)) *rig {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	r := newRigOn(t, st)
	for _, f := range adjust {
		f(r)
	}
	r.start()
	t.Cleanup(func() {
		r.stop()
		for _, v := range r.h.violations() {
			t.Errorf("contract violated: %s", v)
		}
	})
	return r
}

func newRigOn(t tester, st *store.Store) *rig {
	return &rig{t: t, h: newHost(), store: st, clock: newClock(), opts: sandbox.Options{BootID: "boot-1", Logger: slog.New(slog.DiscardHandler)}}
}

// prepare makes the process of the next start, so that its hook can be set
// first.
func (r *rig) prepare() {
	r.p = &process{}
	r.eng = newEngine(r.h, r.p)
}

func (r *rig) start() {
	r.t.Helper()
	if r.p == nil {
		r.prepare()
	}
	opts := r.opts
	opts.Engine, opts.Store, opts.Now = r.eng, &fakeStore{process: r.p, h: r.h, inner: r.store}, r.clock.now
	m, err := sandbox.NewManager(r.t.Context(), opts)
	if err != nil {
		r.t.Fatalf("NewManager: %v", err)
	}
	r.m = m
}

// stop closes the server as a shutdown would.
func (r *rig) stop() {
	if r.m == nil {
		return
	}
	// Out of time already: what a test holds up is broken off.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.m.Close(ctx); err != nil {
		r.t.Errorf("Close: %v", err)
	}
	r.m, r.p = nil, nil
}

// crash ends the server without any of its goodbyes.
func (r *rig) crash() {
	r.p.dead.Store(true)
	r.stop()
}

func (r *rig) restart() {
	r.t.Helper()
	r.crash()
	r.start()
}

func spec() *sandbox.Spec { return &sandbox.Spec{Image: "python:3.11"} }

func lasting(d time.Duration) *sandbox.Spec {
	s := spec()
	s.Timeout = &d
	return s
}

func (r *rig) create(s *sandbox.Spec) *sandbox.Sandbox {
	r.t.Helper()
	sb, replayed, err := r.m.Create(r.t.Context(), sandbox.CreateOptions{Spec: s})
	if err != nil || replayed {
		r.t.Fatalf("Create: replayed %v, %v", replayed, err)
	}
	return sb
}

// run creates a sandbox and waits until it is Running.
func (r *rig) run(s *sandbox.Spec) *sandbox.Sandbox {
	r.t.Helper()
	return r.await(r.create(s).ID, sandbox.Running)
}

// quiesce returns when nothing goes on and nothing is left to retry.
func (r *rig) quiesce() {
	r.t.Helper()
	for end := time.Now().Add(patience); ; {
		r.m.SweepNow()
		if !r.m.Unfinished() {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("it does not settle: %s", r.m.Describe())
		}
		time.Sleep(time.Millisecond) // no event tells that everything is over
	}
}

func (r *rig) await(id string, state sandbox.State) *sandbox.Sandbox {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	s, err := r.m.Await(ctx, id, func(s *sandbox.Sandbox) bool { return s.Status.State == state })
	if err != nil {
		now, _ := r.m.Get(id)
		r.t.Fatalf("waiting for %s to be %s: %v; it is %+v", id, state, err, now)
	}
	return s
}

func (r *rig) get(id string) *sandbox.Sandbox {
	r.t.Helper()
	s, err := r.m.Get(id)
	if err != nil {
		r.t.Fatalf("Get: %v", err)
	}
	return s
}

// stored returns the durable record, or nil.
func (r *rig) stored(id string) *sandbox.Sandbox {
	r.t.Helper()
	all, err := r.store.All(r.t.Context())
	if err != nil {
		r.t.Fatalf("All: %v", err)
	}
	for _, s := range all {
		if s.ID == id {
			return s
		}
	}
	return nil
}

func (r *rig) wantGone(id string) {
	r.t.Helper()
	if s, err := r.m.Get(id); err == nil {
		r.t.Fatalf("%s is still there: %+v", id, s.Status)
	}
	if s := r.stored(id); s != nil {
		r.t.Fatalf("%s is still recorded: %+v", id, s.Status)
	}
	if _, ok := r.h.box(id); ok {
		r.t.Fatalf("%s is still on the host", id)
	}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if r.h.logs[id] {
		r.t.Fatalf("the logs of %s are still on the host", id)
	}
}

// wantError checks kind and code of an error for a caller.
func wantError(t tester, err error, kind sandbox.Kind, code string) *sandbox.Error {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error with code %s", err, code)
		return nil
	}
	if e.Kind != kind || e.Code != code {
		t.Fatalf("got kind %d, code %s (%s); want kind %d, code %s", e.Kind, e.Code, e.Message, kind, code)
	}
	if (kind == sandbox.KindBusy || kind == sandbox.KindUnavailable) && e.RetryAfter <= 0 {
		t.Fatalf("%s does not say when to try again", e.Message)
	}
	return e
}

// gate is a hook that holds one step until it is opened.
type gate struct {
	step    string
	reached chan string // ids that arrived
	open    chan struct{}
	deaf    bool // holds even when the context ends
}

func newGate(step string) *gate {
	return &gate{step: step, reached: make(chan string, 4096), open: make(chan struct{})}
}

func (g *gate) hook(ctx context.Context, step, id string) error {
	if step != g.step {
		return nil
	}
	g.reached <- id
	if g.deaf {
		<-g.open
		return nil
	}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rig) gate(step string) *gate {
	g := newGate(step)
	r.p.onStep(g.hook)
	return g
}

func (g *gate) await(t tester) string {
	t.Helper()
	select {
	case id := <-g.reached:
		return id
	case <-time.After(patience):
		t.Fatalf("nobody arrived at step %q", g.step)
		return ""
	}
}

// failing makes the given steps fail.
func failing(err error, steps ...string) func(context.Context, string, string) error {
	return func(_ context.Context, step, _ string) error {
		for _, s := range steps {
			if s == step {
				return err
			}
		}
		return nil
	}
}
