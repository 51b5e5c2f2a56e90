package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/store"
)

// TestLifeOfManySandboxes throws random operations, faults at random steps,
// crashes at random steps and time at a server, and compares it with what it
// promised. Run it longer with -rapid.checks=2000.
func TestLifeOfManySandboxes(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	rapid.Check(t, func(rt *rapid.T) {
		emptyStore(rt, st)
		m := &model{rig: newRigOn(rt, st), rt: rt, promises: map[string]*promise{}, keys: map[string]string{}}
		m.opts.FailedRetention = 10 * time.Minute
		m.start()
		defer m.stop()
		rt.Repeat(map[string]func(*rapid.T){
			"create":  m.createOne,
			"delete":  m.deleteOne,
			"renew":   m.renewOne,
			"patch":   m.patchOne,
			"policy":  m.policyOne,
			"pause":   m.pauseOne,
			"resume":  m.resumeOne,
			"exit":    m.exitOne,
			"time":    m.passTime,
			"restart": func(*rapid.T) { m.restart() },
			"settle":  func(*rapid.T) { m.settle() },
			"":        func(*rapid.T) { m.checkAlways() },
		})
		m.settle()
	})
}

func emptyStore(t tester, st *store.Store) {
	all, err := st.All(t.Context())
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, s := range all {
		if err := st.Delete(t.Context(), s.ID); err != nil {
			t.Fatalf("%v", err)
		}
	}
}

// promise is what the server told about one sandbox. Where an operation's
// outcome is unknown (it failed or the server crashed in it), every outcome is
// possible.
type promise struct {
	expires  []time.Time // possible ones; empty for never
	metadata map[string][]string
	targets  []string // possible ones of the policy's only rule; "" for no policy
	mayGo    bool     // a delete was asked for, or a failed create's time is over
	gone     bool     // a delete succeeded
	mayEnd   bool     // its entrypoint ended, its create failed, or a crash lost it
	revision int64
}

type model struct {
	*rig
	rt       *rapid.T
	promises map[string]*promise
	keys     map[string]string // idempotency key → id
	maybe    int               // creates whose outcome is unknown
	n        int
}

// trouble arms one fault for the next operation: sometimes a step fails,
// sometimes the server dies there. The returned function disarms it and starts
// the server again when it died.
func (m *model) trouble(t *rapid.T) (over func()) {
	kind := rapid.SampledFrom([]string{"none", "none", "fail", "fail twice", "crash"}).Draw(t, "trouble")
	var left atomic.Int64
	left.Store(int64(rapid.IntRange(0, 9).Draw(t, "at")))
	p := m.p
	p.onStep(func(_ context.Context, _, _ string) error {
		if kind == "none" {
			return nil
		}
		switch n := left.Add(-1); {
		case kind == "crash" && n < 0:
			p.dead.Store(true)
			return errCrashed
		case n == -1, n == -2 && kind == "fail twice":
			return errors.New("injected")
		}
		return nil
	})
	return func() {
		if kind == "crash" && p.dead.Load() {
			m.restart()
			return
		}
		p.onStep(failing(nil))
	}
}

func (m *model) some(t *rapid.T) string {
	ids := slices.Sorted(maps.Keys(m.promises))
	if len(ids) == 0 {
		t.Skip("there is none")
	}
	return rapid.SampledFrom(ids).Draw(t, "id")
}

func (m *model) createOne(t *rapid.T) {
	if len(m.promises) > 12 {
		t.Skip("enough")
	}
	opts := sandbox.CreateOptions{Spec: spec()}
	if rapid.Bool().Draw(t, "expires") {
		opts.Spec = lasting(time.Duration(rapid.IntRange(60, 7200).Draw(t, "timeout")) * time.Second)
	}
	opts.Spec.Metadata = map[string]string{"first": "x"}
	if rapid.Bool().Draw(t, "volume") {
		opts.Spec.Volumes = []sandbox.VolumeMount{{Claim: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "claim"), DeleteWithSandbox: true}}
	}
	if rapid.IntRange(0, 3).Draw(t, "keyed") == 0 {
		opts.IdempotencyKey = rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key")
	}
	wait := rapid.Bool().Draw(t, "wait")
	over := m.trouble(t)
	s, replayed, err := m.m.Create(t.Context(), opts)
	if err == nil && wait && !m.p.dead.Load() {
		_, _ = m.m.Wait(t.Context(), s.ID) // any outcome
	}
	defer over()
	if err != nil {
		m.maybe++ // it may be recorded when the server died in it
		return
	}
	// A key goes with its sandbox, and lives for a day.
	if want, err := m.m.Get(m.keys[opts.IdempotencyKey]); err == nil && want.ID != s.ID &&
		want.Status.State != sandbox.Stopping && m.clock.now().Sub(want.CreatedAt) < sandbox.KeyLifetime {
		t.Fatalf("key %s made %s and then %s", opts.IdempotencyKey, want.ID, s.ID)
	}
	if !replayed && m.promises[s.ID] != nil {
		t.Fatalf("%s was created twice", s.ID)
	}
	if m.promises[s.ID] == nil {
		m.promises[s.ID] = &promise{metadata: map[string][]string{"first": {"x"}}, targets: []string{""}, mayEnd: true}
		if s.ExpiresAt != nil {
			m.promises[s.ID].expires = []time.Time{*s.ExpiresAt}
		}
	}
	if opts.IdempotencyKey != "" {
		m.keys[opts.IdempotencyKey] = s.ID
	}
}

func (m *model) deleteOne(t *rapid.T) {
	id := m.some(t)
	over := m.trouble(t)
	defer over()
	p := m.promises[id]
	err := m.m.Delete(t.Context(), id)
	p.mayGo = true
	if err == nil {
		p.gone = true
	} else if isNotFound(err) && !p.gone && !m.mayBeGone(p) {
		t.Fatalf("%s: %v", id, err)
	}
}

func (m *model) renewOne(t *rapid.T) {
	id := m.some(t)
	at := m.clock.now().Add(time.Duration(rapid.IntRange(-60, 7200).Draw(t, "by")) * time.Second)
	over := m.trouble(t)
	defer over()
	p := m.promises[id]
	_, err := m.m.Renew(t.Context(), id, at)
	switch {
	case err == nil && (len(p.expires) == 0 || !at.After(m.clock.now())):
		t.Fatalf("%s: a renewal that must fail succeeded", id)
	case err == nil && p.gone:
		t.Fatalf("%s: renewed after its delete", id)
	case err == nil:
		p.expires = []time.Time{at}
	case len(p.expires) > 0:
		p.expires = append(p.expires, at)
	}
}

func (m *model) patchOne(t *rapid.T) {
	id := m.some(t)
	m.n++
	value := fmt.Sprint(m.n)
	over := m.trouble(t)
	defer over()
	p := m.promises[id]
	if _, err := m.m.PatchMetadata(t.Context(), id, map[string]*string{"k": &value}); err == nil {
		p.metadata["k"] = []string{value}
	} else {
		p.metadata["k"] = append(p.metadata["k"], value)
		if len(p.metadata["k"]) == 1 {
			p.metadata["k"] = append(p.metadata["k"], "") // or not there
		}
	}
}

func (m *model) policyOne(t *rapid.T) {
	id := m.some(t)
	m.n++
	target := fmt.Sprintf("n%d.example", m.n)
	over := m.trouble(t)
	defer over()
	p := m.promises[id]
	_, err := m.m.SetPolicy(t.Context(), id, -1, func(*policy.Policy) (*policy.Policy, error) {
		return &policy.Policy{DefaultAction: policy.Deny, Egress: []policy.Rule{{Action: policy.Allow, Target: target}}}, nil
	})
	if err != nil {
		p.targets = append(p.targets, target)
		return
	}
	p.targets = []string{target}
	if b, there := m.h.box(id); there && only(b.policy) != target && !m.p.dead.Load() {
		t.Fatalf("%s: the policy is not in force", id)
	}
}

// only is the target of a policy's only rule, "" for no policy.
func only(p *policy.Policy) string {
	if p == nil {
		return ""
	}
	return p.Egress[0].Target
}

func (m *model) pauseOne(t *rapid.T) {
	id := m.some(t)
	over := m.trouble(t)
	defer over()
	if err := m.m.Pause(t.Context(), id); err == nil {
		if b, _ := m.h.box(id); !b.paused && !m.p.dead.Load() && b.running {
			t.Fatalf("%s was paused and runs", id)
		}
	}
}

func (m *model) resumeOne(t *rapid.T) {
	id := m.some(t)
	over := m.trouble(t)
	defer over()
	_ = m.m.Resume(t.Context(), id)
}

func (m *model) exitOne(t *rapid.T) {
	id := m.some(t)
	over := m.trouble(t)
	defer over()
	if m.eng.end(sandbox.Exit{ID: id, Code: rapid.IntRange(0, 2).Draw(t, "code")}) {
		m.promises[id].mayEnd = true
		_, _ = m.m.Await(t.Context(), id, func(s *sandbox.Sandbox) bool {
			return s.Status.State.Ended() || s.Status.State == sandbox.Stopping
		})
	}
}

func (m *model) passTime(t *rapid.T) {
	m.clock.add(time.Duration(rapid.IntRange(-120, 1800).Draw(t, "seconds")) * time.Second)
	over := m.trouble(t)
	defer over()
	m.m.SweepNow()
	m.noteTime()
}

// noteTime remembers which sandboxes may have been removed by now: the clock
// may be set back afterwards.
func (m *model) noteTime() {
	for _, p := range m.promises {
		p.mayGo = p.mayGo || m.due(p, func(at []time.Time) time.Time { return slices.MinFunc(at, time.Time.Compare) })
	}
}

func (m *model) due(p *promise, which func([]time.Time) time.Time) bool {
	return len(p.expires) > 0 && !m.clock.now().Before(which(p.expires))
}

func (m *model) mayBeGone(p *promise) bool { m.noteTime(); return p.gone || p.mayGo || p.mayEnd }

// checkAlways is what must hold at any moment.
func (m *model) checkAlways() {
	for _, v := range m.h.violations() {
		m.rt.Fatalf("contract violated: %s", v)
	}
	m.noteTime()
	for id, p := range m.promises {
		s, err := m.m.Get(id)
		switch {
		case err == nil && p.gone:
			m.rt.Fatalf("%s is back after its delete: %+v", id, s.Status)
		case err != nil && !m.mayBeGone(p):
			m.rt.Fatalf("%s is lost: %v", id, err)
		case err != nil:
			continue
		}
		if s.Revision < p.revision {
			m.rt.Fatalf("%s has revision %d after %d", id, s.Revision, p.revision)
		}
		p.revision = s.Revision
		m.checkFacts(id, p, s)
	}
}

func (m *model) checkFacts(id string, p *promise, s *sandbox.Sandbox) {
	if (s.ExpiresAt == nil) != (len(p.expires) == 0) {
		m.rt.Fatalf("%s expires at %v, promised %v", id, s.ExpiresAt, p.expires)
	}
	if s.ExpiresAt != nil && !slices.ContainsFunc(p.expires, s.ExpiresAt.Equal) {
		m.rt.Fatalf("%s expires at %v, promised %v", id, s.ExpiresAt, p.expires)
	}
	if got := only(s.Spec.NetworkPolicy); !slices.Contains(p.targets, got) {
		m.rt.Fatalf("%s has the policy %q, promised %q", id, got, p.targets)
	}
	for k, possible := range p.metadata {
		if !slices.Contains(possible, s.Spec.Metadata[k]) {
			m.rt.Fatalf("%s has metadata %v, promised %v", id, s.Spec.Metadata, p.metadata)
		}
	}
}

// settle lets the server finish everything, without trouble, and checks what
// must hold then.
func (m *model) settle() {
	m.rt.Helper()
	ctx, cancel := context.WithTimeout(m.rt.Context(), patience)
	defer cancel()
	for {
		if m.p.dead.Load() { // a step in the background got the last trouble
			m.restart()
		}
		for _, s := range m.list() {
			b, _ := m.h.box(s.ID)
			_, err := m.m.Await(ctx, s.ID, func(s *sandbox.Sandbox) bool {
				state := s.Status.State
				return state != sandbox.Pending && (b.exit == nil || state == sandbox.Stopping || state.Ended()) || m.p.dead.Load()
			})
			if err != nil && !isNotFound(err) {
				m.rt.Fatalf("%s stays %s: %v", s.ID, m.m.Describe(), err)
			}
		}
		m.m.SweepNow()
		if !m.m.Unfinished() {
			break
		}
		if ctx.Err() != nil {
			m.rt.Fatalf("it does not settle: %s", m.m.Describe())
		}
	}
	m.checkAlways()

	stored := map[string]*sandbox.Sandbox{}
	all, err := m.store.All(m.rt.Context())
	if err != nil {
		m.rt.Fatalf("%v", err)
	}
	for _, s := range all {
		stored[s.ID] = s
	}
	listed := m.list()
	users := map[string]int{}
	unpromised := 0
	for _, s := range listed {
		m.checkSettled(s, stored[s.ID])
		delete(stored, s.ID)
		if m.promises[s.ID] == nil {
			unpromised++
		}
		if !s.Status.State.Ended() {
			for _, v := range s.Spec.Volumes {
				users[v.Claim]++
			}
		}
	}
	if unpromised > m.maybe {
		m.rt.Fatalf("%d sandboxes that nobody was told of, after %d creates without an answer", unpromised, m.maybe)
	}
	for id := range stored {
		m.rt.Fatalf("%s is recorded and not listed", id)
	}
	if pending, _, records := m.m.Admitted(); pending != 0 || records != len(listed) {
		m.rt.Fatalf("counted %d pending and %d records of %d", pending, records, len(listed))
	}
	for _, claim := range []string{"a", "b"} {
		if got := m.m.VolumeUsers(claim); got != users[claim] {
			m.rt.Fatalf("volume %s counts %d users, has %d", claim, got, users[claim])
		}
	}
	m.checkHost(listed)
}

func (m *model) checkSettled(s, stored *sandbox.Sandbox) {
	if stored == nil || stored.Revision != s.Revision || stored.Status.State != s.Status.State || stored.Status.Reason != s.Status.Reason {
		m.rt.Fatalf("shown %+v, recorded %+v", s, stored)
	}
	if s.ExpiresAt != nil && !m.clock.now().Before(*s.ExpiresAt) {
		m.rt.Fatalf("%s is past its expiry: %+v", s.ID, s)
	}
	b, there := m.h.box(s.ID)
	if there && only(b.policy) != only(s.Spec.NetworkPolicy) {
		m.rt.Fatalf("%s shows the policy %q, and %q is in force", s.ID, only(s.Spec.NetworkPolicy), only(b.policy))
	}
	switch s.Status.State {
	case sandbox.Running:
		if !there || !b.running || b.paused {
			m.rt.Fatalf("%s is Running, on the host %+v, %v", s.ID, b, there)
		}
	case sandbox.Paused:
		if !there || !b.paused {
			m.rt.Fatalf("%s is Paused, on the host %+v, %v", s.ID, b, there)
		}
	case sandbox.Failed, sandbox.Terminated:
		if there {
			m.rt.Fatalf("%s has ended and still holds resources", s.ID)
		}
	default:
		m.rt.Fatalf("%s does not settle: %+v", s.ID, s.Status)
	}
}

// checkHost: nothing is on the host without a record.
func (m *model) checkHost(listed []*sandbox.Sandbox) {
	known := map[string]bool{}
	for _, s := range listed {
		known[s.ID] = true
	}
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	for id := range m.h.boxes {
		if !known[id] {
			m.rt.Fatalf("%s is left over on the host", id)
		}
	}
	for id := range m.h.logs {
		if !known[id] {
			m.rt.Fatalf("the logs of %s are left over on the host", id)
		}
	}
	for id := range m.h.reserved {
		m.rt.Fatalf("the id %s was never given back", id)
	}
}
