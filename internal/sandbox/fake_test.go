package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// errCrashed is what every call answers after its process died.
var errCrashed = errors.New("crashed")

// host is what outlives a crash of the server: processes, logs, volumes.
type host struct {
	mu        sync.Mutex
	boxes     map[string]*box
	logs      map[string]bool
	volumes   map[string]bool
	makers    map[string]string // of volumes
	wrong     []string          // violations of the contract, by either side
	reserved  map[string]bool
	nextID    int
	revisions map[string]int64 // highest that the store took, per sandbox
}

// box is one sandbox on the host.
type box struct {
	running, paused bool
	exit            *sandbox.Exit
	policy          *policy.Policy
}

func newHost() *host {
	return &host{boxes: map[string]*box{}, logs: map[string]bool{}, volumes: map[string]bool{}, makers: map[string]string{},
		reserved: map[string]bool{}, revisions: map[string]int64{}}
}

func (h *host) violation(format string, args ...any) {
	h.wrong = append(h.wrong, fmt.Sprintf(format, args...))
}

func (h *host) violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.wrong)
}

func (h *host) box(id string) (b box, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.boxes[id]
	if p == nil {
		return box{}, false
	}
	return *p, true
}

// process is one run of the server: its engine and its store stop having any
// effect when it crashes.
type process struct {
	dead atomic.Bool
	// hook, when set, is called at each step; an error makes the step fail,
	// blocking makes it hang.
	hook atomic.Pointer[func(ctx context.Context, step, id string) error]
}

func (p *process) onStep(f func(ctx context.Context, step, id string) error) { p.hook.Store(&f) }

func (p *process) step(ctx context.Context, step, id string) error {
	if p.dead.Load() {
		return errCrashed
	}
	if f := p.hook.Load(); f != nil {
		if err := (*f)(ctx, step, id); err != nil {
			return err
		}
	}
	if p.dead.Load() {
		return errCrashed
	}
	return ctx.Err()
}

// fakeEngine is an Engine whose sandboxes are entries in a host.
type fakeEngine struct {
	*process
	h     *host
	exits chan sandbox.Exit
	hooks chan sandbox.HookRun
	// denials are what it says that policies refused.
	denials chan sandbox.Denial

	mu    sync.Mutex
	calls map[string]string // id → call in progress
	count map[string]int    // call → how often
	// absent images need a pull.
	absent map[string]bool
}

var (
	_ sandbox.Engine       = (*fakeEngine)(nil)
	_ sandbox.Volumes      = (*fakeEngine)(nil)
	_ sandbox.HookReporter = (*fakeEngine)(nil)

	_ sandbox.PolicyEnforcer = (*fakeEngine)(nil)
)

func newEngine(h *host, p *process) *fakeEngine {
	return &fakeEngine{process: p, h: h, exits: make(chan sandbox.Exit, 1024), hooks: make(chan sandbox.HookRun), denials: make(chan sandbox.Denial), calls: map[string]string{}, count: map[string]int{}, absent: map[string]bool{}}
}

// enter checks that calls for one sandbox never overlap.
func (f *fakeEngine) enter(call, id string) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[call]++
	if other, busy := f.calls[id]; busy && !f.dead.Load() {
		f.h.mu.Lock()
		f.h.violation("%s(%s) while %s goes on", call, id, other)
		f.h.mu.Unlock()
	}
	f.calls[id] = call
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.calls, id)
	}
}

func (f *fakeEngine) called(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[call]
}

func (f *fakeEngine) Check(ctx context.Context, spec *sandbox.Spec) error {
	return f.step(ctx, "check", spec.Image)
}

func (f *fakeEngine) Resolve(ctx context.Context, spec *sandbox.Spec) (*sandbox.ResolvedImage, error) {
	if err := f.step(ctx, "resolve", spec.Image); err != nil {
		return nil, err
	}
	if f.absent[spec.Image] {
		return &sandbox.ResolvedImage{Digest: "sha256:1"}, nil
	}
	return &sandbox.ResolvedImage{Digest: "sha256:1", Local: true, Entrypoint: []string{"/init"}}, nil
}

func (f *fakeEngine) Reserve(ctx context.Context, spec *sandbox.Spec) (string, error) {
	if err := f.step(ctx, "reserve", ""); err != nil {
		return "", err
	}
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	f.h.nextID++
	id := fmt.Sprintf("sb-%04d", f.h.nextID)
	f.h.reserved[id] = true
	return id, nil
}

func (f *fakeEngine) Release(id string) {
	f.mu.Lock()
	f.count["release"]++
	f.mu.Unlock()
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	delete(f.h.reserved, id)
}

func (f *fakeEngine) Create(ctx context.Context, req sandbox.CreateRequest) (_ *sandbox.Created, err error) {
	defer f.enter("create", req.ID)()
	var made []string
	defer func() {
		if err == nil || f.dead.Load() {
			return // a dead process undoes nothing
		}
		f.h.mu.Lock()
		defer f.h.mu.Unlock()
		delete(f.h.boxes, req.ID)
		for _, v := range made {
			delete(f.h.volumes, v)
			delete(f.h.makers, v)
		}
	}()
	if f.absent[req.Spec.Image] {
		req.Progress("half of it is here")
		if err := f.step(ctx, "pull", req.ID); err != nil {
			return nil, err
		}
		req.Note(sandbox.EventPulled, "It was pulled.")
	}
	if err := f.step(ctx, "create", req.ID); err != nil {
		return nil, err
	}
	if made, err = f.makeShell(req); err != nil {
		return nil, err
	}
	if err := f.step(ctx, "claim", req.ID); err != nil {
		return nil, err
	}
	if err := f.start(req.ID); err != nil {
		return nil, err
	}
	if err := f.step(ctx, "created", req.ID); err != nil {
		return nil, err
	}
	argv := req.Spec.Entrypoint
	if len(argv) == 0 {
		argv = []string{"/init"}
	}
	return &sandbox.Created{Entrypoint: argv, CreatedVolumes: made}, nil
}

func (f *fakeEngine) HookRuns() <-chan sandbox.HookRun { return f.hooks }

func (f *fakeEngine) Denials() <-chan sandbox.Denial { return f.denials }

func (f *fakeEngine) SetPolicy(ctx context.Context, id string, p *policy.Policy) error {
	defer f.enter("policy", id)()
	if err := f.step(ctx, "policy", id); err != nil {
		return err
	}
	f.h.mu.Lock()
	b := f.h.boxes[id]
	if b == nil {
		f.h.mu.Unlock()
		return sandbox.ErrNotFound(id)
	}
	b.policy = p.Clone()
	f.h.mu.Unlock()
	return f.step(ctx, "policy-after", id) // done, but nobody is told
}

func (f *fakeEngine) makeShell(req sandbox.CreateRequest) (made []string, err error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	delete(f.h.reserved, req.ID)
	if f.h.boxes[req.ID] != nil {
		f.h.violation("create of %s, which is there", req.ID)
	}
	if req.Token == "" || req.Spec == nil {
		f.h.violation("create of %s without a token or a spec", req.ID)
	}
	f.h.boxes[req.ID] = &box{policy: req.Spec.NetworkPolicy.Clone()}
	f.h.logs[req.ID] = true
	for _, v := range req.Spec.Volumes {
		if !f.h.volumes[v.Claim] {
			f.h.volumes[v.Claim] = true
			f.h.makers[v.Claim] = req.ID
			made = append(made, v.Claim)
		}
	}
	return made, nil
}

func (f *fakeEngine) start(id string) error {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	b := f.h.boxes[id]
	if b == nil {
		return errors.New("the shell is gone")
	}
	if b.running {
		f.h.violation("two entrypoints in %s", id)
	}
	b.running = true
	return nil
}

func (f *fakeEngine) freeze(ctx context.Context, call, id string, paused bool) error {
	defer f.enter(call, id)()
	if err := f.step(ctx, call, id); err != nil {
		return err
	}
	f.h.mu.Lock()
	b := f.h.boxes[id]
	if b == nil || !b.running {
		f.h.mu.Unlock()
		return sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotRunning, "%s does not run", id)
	}
	b.paused = paused
	f.h.mu.Unlock()
	return f.step(ctx, call+"d", id)
}

func (f *fakeEngine) Pause(ctx context.Context, id string) error {
	return f.freeze(ctx, "pause", id, true)
}

func (f *fakeEngine) Resume(ctx context.Context, id string) error {
	return f.freeze(ctx, "resume", id, false)
}

func (f *fakeEngine) Stop(ctx context.Context, id string) error {
	defer f.enter("stop", id)()
	return f.stop(ctx, id)
}

func (f *fakeEngine) stop(ctx context.Context, id string) error {
	if err := f.step(ctx, "stop", id); err != nil {
		return err
	}
	f.h.mu.Lock()
	delete(f.h.boxes, id)
	delete(f.h.reserved, id)
	f.h.mu.Unlock()
	return f.step(ctx, "stopped", id)
}

func (f *fakeEngine) Remove(ctx context.Context, id string) error {
	defer f.enter("remove", id)()
	if err := f.stop(ctx, id); err != nil {
		return err
	}
	f.h.mu.Lock()
	delete(f.h.logs, id)
	f.h.mu.Unlock()
	return f.step(ctx, "removed", id)
}

func (f *fakeEngine) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	if err := f.step(ctx, "dial", id); err != nil {
		return nil, err
	}
	if b, ok := f.h.box(id); !ok || !b.running {
		return nil, sandbox.ErrNotFound(id)
	}
	near, far := net.Pipe()
	far.Close()
	return near, nil
}

func (f *fakeEngine) Logs(ctx context.Context, id string, opts sandbox.LogOptions) (io.ReadCloser, error) {
	if err := f.step(ctx, "logs", id); err != nil {
		return nil, err
	}
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if !f.h.logs[id] {
		return nil, sandbox.ErrNotFound(id)
	}
	return io.NopCloser(strings.NewReader("log of " + id)), nil
}

func (f *fakeEngine) Usage(ctx context.Context, id string) (*sandbox.Usage, error) {
	return &sandbox.Usage{PIDs: 2}, f.step(ctx, "usage", id)
}

func (f *fakeEngine) ListVolumes(ctx context.Context) ([]sandbox.VolumeInfo, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	var all []sandbox.VolumeInfo
	for n := range f.h.volumes {
		all = append(all, sandbox.VolumeInfo{Name: n})
	}
	return all, nil
}

func (f *fakeEngine) MadeVolume(name string) string {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.makers[name]
}

func (f *fakeEngine) RemoveVolume(ctx context.Context, name string) error {
	if err := f.step(ctx, "removevolume", name); err != nil {
		return err
	}
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if !f.h.volumes[name] {
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeVolumeNotFound, "no volume %q", name)
	}
	delete(f.h.volumes, name)
	delete(f.h.makers, name)
	return nil
}

func (f *fakeEngine) Recover(ctx context.Context, recorded []*sandbox.Sandbox) (map[string]sandbox.Found, error) {
	if err := f.step(ctx, "recover", ""); err != nil {
		return nil, err
	}
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	found := make(map[string]sandbox.Found)
	known := make(map[string]bool)
	for _, s := range recorded {
		known[s.ID] = true
		b := f.h.boxes[s.ID]
		if b != nil {
			b.policy = s.Spec.NetworkPolicy.Clone()
		}
		switch {
		case b == nil || s.Status.State.Ended():
			found[s.ID] = sandbox.FoundNothing
		case !b.running:
			found[s.ID] = sandbox.FoundUnclaimed
		case b.paused:
			found[s.ID] = sandbox.FoundPaused
		default:
			found[s.ID] = sandbox.FoundRunning
		}
		if b != nil && b.exit != nil && found[s.ID] != sandbox.FoundNothing {
			f.exits <- *b.exit
		}
	}
	for id := range f.h.boxes {
		if !known[id] {
			delete(f.h.boxes, id)
		}
	}
	for id := range f.h.logs {
		if !known[id] {
			delete(f.h.logs, id)
		}
	}
	clear(f.h.reserved)
	return found, nil
}

func (f *fakeEngine) Exits() <-chan sandbox.Exit { return f.exits }
func (f *fakeEngine) Close() error               { return nil }

// end lets the entrypoint of a running sandbox end. What is left of it stays
// until Stop, as with a real one.
func (f *fakeEngine) end(exit sandbox.Exit) bool {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	b := f.h.boxes[exit.ID]
	if b == nil || !b.running || b.exit != nil || b.paused {
		return false
	}
	b.exit = &exit
	f.exits <- exit
	return true
}

// fakeStore is a real store that can fail and crash.
type fakeStore struct {
	*process
	h     *host
	inner sandbox.Store
}

func (f *fakeStore) write(ctx context.Context, call, id string, do func() error) error {
	if err := f.step(ctx, call, id); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return f.step(ctx, call+"-after", id) // done, but nobody is told
}

func (f *fakeStore) Insert(ctx context.Context, s *sandbox.Sandbox, key *sandbox.IdempotencyKey) error {
	return f.write(ctx, "insert", s.ID, func() error {
		f.sawRevision(s)
		return f.inner.Insert(ctx, s, key)
	})
}

func (f *fakeStore) Update(ctx context.Context, s *sandbox.Sandbox) error {
	return f.write(ctx, "update", s.ID, func() error {
		f.sawRevision(s)
		err := f.inner.Update(ctx, s)
		if err != nil {
			f.h.mu.Lock()
			defer f.h.mu.Unlock()
			f.h.violation("%v", err)
		}
		return err
	})
}

// sawRevision checks that revisions rise by one. The same one may come again,
// when the writer was not told that it was written.
func (f *fakeStore) sawRevision(s *sandbox.Sandbox) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	last := f.h.revisions[s.ID]
	if s.Revision != last+1 && s.Revision != last {
		f.h.violation("%s was written with revision %d after %d", s.ID, s.Revision, last)
	}
	f.h.revisions[s.ID] = s.Revision
}

func (f *fakeStore) Delete(ctx context.Context, id string) error {
	return f.write(ctx, "delete", id, func() error { return f.inner.Delete(ctx, id) })
}

func (f *fakeStore) All(ctx context.Context) ([]*sandbox.Sandbox, error) {
	if err := f.step(ctx, "all", ""); err != nil {
		return nil, err
	}
	return f.inner.All(ctx)
}

func (f *fakeStore) Key(ctx context.Context, name string) (*sandbox.IdempotencyKey, error) {
	if err := f.step(ctx, "key", name); err != nil {
		return nil, err
	}
	return f.inner.Key(ctx, name)
}

func (f *fakeStore) DropKeys(ctx context.Context, before time.Time) error {
	return f.inner.DropKeys(ctx, before)
}

// clock is a wall clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 5, 6, 7, 8, 9, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}
