package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func allowing(targets ...string) *policy.Policy {
	p := &policy.Policy{DefaultAction: policy.Deny}
	for _, t := range targets {
		p.Egress = append(p.Egress, policy.Rule{Action: policy.Allow, Target: t})
	}
	return p
}

func to(p *policy.Policy) func(*policy.Policy) (*policy.Policy, error) {
	return func(*policy.Policy) (*policy.Policy, error) { return p, nil }
}

// inForce is the policy on the host, as its only target.
func (r *rig) inForce(id string) string {
	r.t.Helper()
	b, ok := r.h.box(id)
	if !ok {
		r.t.Fatalf("%s is not on the host", id)
	}
	return only(b.policy)
}

func TestPolicyIsInForceAndKept(t *testing.T) {
	r := newRig(t)
	s := spec()
	s.NetworkPolicy = allowing("a.example")
	made := r.run(s)
	id := made.ID
	if got := r.inForce(id); got != "a.example" || made.EgressToken == "" || made.EgressToken == made.Token {
		t.Fatalf("%q is in force, tokens %q and %q", got, made.EgressToken, made.Token)
	}
	changed, err := r.m.SetPolicy(t.Context(), id, 0, func(old *policy.Policy) (*policy.Policy, error) {
		if only(old) != "a.example" {
			t.Errorf("the old one is %v", old)
		}
		return allowing("b.example"), nil
	})
	if err != nil || changed.PolicyVersion != 1 || only(changed.Spec.NetworkPolicy) != "b.example" || r.inForce(id) != "b.example" {
		t.Fatalf("%+v, %v", changed, err)
	}
	_, err = r.m.SetPolicy(t.Context(), id, 0, to(nil))
	wantError(t, err, sandbox.KindConflict, sandbox.CodePolicyVersion)
	calls := r.eng.called("policy")
	if s, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("b.example"))); err != nil || s.PolicyVersion != 1 || r.eng.called("policy") != calls {
		t.Errorf("the same again: version %d, %v", s.PolicyVersion, err)
	}
	refused := errors.New("no")
	if _, err := r.m.SetPolicy(t.Context(), id, -1, func(*policy.Policy) (*policy.Policy, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	r.restart()
	if s := r.get(id); only(s.Spec.NetworkPolicy) != "b.example" || s.PolicyVersion != 1 || s.EgressToken != made.EgressToken || r.inForce(id) != "b.example" {
		t.Errorf("after a restart: %+v", s)
	}
	if err := r.m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.SetPolicy(t.Context(), id, 1, to(nil)); err != nil || r.inForce(id) != "" {
		t.Errorf("taking it away while paused: %v", err)
	}
	if err := r.m.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, err = r.m.SetPolicy(t.Context(), id, -1, to(nil))
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)
}

func TestPolicyOfEndedSandbox(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	r.eng.exits <- sandbox.Exit{ID: id}
	r.await(id, sandbox.Terminated)
	_, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("a.example")))
	wantError(t, err, sandbox.KindConflict, sandbox.CodeNotRunning)
}

// A policy that the engine can't put in force is not shown as one that is,
// whatever the engine did before it failed.
func TestPolicyThatFails(t *testing.T) {
	for _, step := range []string{"policy", "policy-after"} {
		r := newRig(t)
		s := spec()
		s.NetworkPolicy = allowing("a.example")
		id := r.run(s).ID
		left := 2 // the change, and the first attempt to undo it
		r.p.onStep(func(_ context.Context, at, _ string) error {
			if at == step && left > 0 {
				left--
				return errors.New("the kernel says no")
			}
			return nil
		})
		if _, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("b.example"))); err == nil {
			t.Fatal("no error")
		}
		r.quiesce()
		if got := r.inForce(id); got != "a.example" {
			t.Errorf("%s: %q is in force", step, got)
		}
		if s := r.stored(id); only(s.Spec.NetworkPolicy) != "a.example" || s.PolicyVersion != 2 {
			t.Errorf("%s: stored %+v", step, s)
		}
	}
}

func TestPolicyThatCannotBeRecorded(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	r.quiesce()
	calls := r.eng.called("policy")
	r.p.onStep(failing(errors.New("disk full"), "update"))
	_, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("b.example")))
	wantError(t, err, sandbox.KindUnavailable, sandbox.CodeInternal)
	if r.eng.called("policy") != calls {
		t.Error("it was put in force before it was durable")
	}
	r.p.onStep(failing(nil))
}

// Each change sees the one before it.
func TestPolicyChangesTakeTurns(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	const many = 20
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			_, err := r.m.SetPolicy(t.Context(), id, -1, func(old *policy.Policy) (*policy.Policy, error) {
				p := policy.Policy{DefaultAction: policy.Deny}
				if old != nil {
					p = *old
				}
				next := p.Merge([]policy.Rule{{Action: policy.Allow, Target: fmt.Sprintf("n%d.example", i)}})
				return &next, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := r.get(id); len(s.Spec.NetworkPolicy.Egress) != many || s.PolicyVersion != many {
		t.Errorf("%d rules, version %d", len(s.Spec.NetworkPolicy.Egress), s.PolicyVersion)
	}
}

// A change waits for the create, and a deletion does not wait for a change.
func TestPolicyAndItsNeighbours(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	id := r.create(spec()).ID
	g.await(t)
	result := make(chan error, 1)
	go func() {
		_, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("a.example")))
		result <- err
	}()
	close(g.open)
	if err := <-result; err != nil || r.inForce(id) != "a.example" {
		t.Fatalf("a change during the create: %v", err)
	}

	g = r.gate("policy")
	go func() {
		_, err := r.m.SetPolicy(t.Context(), id, -1, to(allowing("b.example")))
		result <- err
	}()
	g.await(t)
	if err := r.m.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil {
		t.Error("a change of a deleted sandbox succeeded")
	}
}

// Sandboxes that a version without policies recorded get a token.
func TestPolicyOfOldRecords(t *testing.T) {
	r := newRig(t)
	id := r.run(spec()).ID
	r.quiesce()
	r.crash()
	old := r.stored(id)
	old.EgressToken = ""
	if err := r.store.Update(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	r.start()
	token := r.get(id).EgressToken
	r.quiesce()
	if token == "" || r.stored(id).EgressToken != token {
		t.Errorf("the token is %q, stored %q", token, r.stored(id).EgressToken)
	}
}

func TestDenialsBecomeEvents(t *testing.T) {
	told := make(chan int, 1000)
	r := newRig(t, func(r *rig) { r.opts.OnDenial = func(_ sandbox.Denial, count int) { told <- count } })
	id := r.run(spec()).ID
	tell := func(d sandbox.Denial) {
		t.Helper()
		d.ID, d.At = id, r.clock.now()
		select {
		case r.eng.denials <- d:
		case <-time.After(patience):
			t.Fatal("nobody takes denials")
		}
	}
	address := netip.MustParseAddrPort("192.0.2.1:443")
	for _, process := range []string{"", "curl[7]", "", "", ""} { // it is not looked for each time
		tell(sandbox.Denial{Protocol: "tls", Name: "bad.example", To: address, Rule: 2, Target: "*.example", Reason: "not now", Process: process})
	}
	tell(sandbox.Denial{Protocol: "dns", Name: "other.example", Rule: -1})
	r.eng.denials <- sandbox.Denial{ID: "gone", Protocol: "dns", Name: "x.example", Rule: -1}
	want := func(ok func([]sandbox.Event) bool) []sandbox.Event {
		t.Helper()
		stop := errors.New("enough")
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var got []sandbox.Event
		err := r.m.FollowEvents(ctx, id, 0, func([]sandbox.Event) error {
			events, err := r.m.Events(id)
			if err != nil {
				return err
			}
			got = nil
			for _, e := range events.All() {
				if e.Kind == sandbox.EventDenied {
					got = append(got, e)
				}
			}
			if ok(got) {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) {
			t.Fatalf("%v; events: %+v", err, got)
		}
		return got
	}
	got := want(func(all []sandbox.Event) bool { return len(all) == 2 })
	first, second := got[0], got[1]
	if strings.HasPrefix(first.Message, "Denied: dns") {
		first, second = second, first
	}
	if m := first.Message; first.Count != 5 || !strings.Contains(m, "bad.example:443 (192.0.2.1) by curl[7], by rule 2 (*.example): not now") {
		t.Errorf("%+v", first)
	}
	if m := second.Message; second.Count != 1 || !strings.Contains(m, "dns other.example, by the default action") {
		t.Errorf("%+v", second)
	}

	// Ever other destinations push out neither each other's place without end
	// nor what else happened.
	const many = 300
	for i := range many {
		tell(sandbox.Denial{Protocol: "tcp", To: netip.AddrPortFrom(address.Addr(), uint16(1000+i)), Rule: -1})
	}
	total := func(all []sandbox.Event) (n int) {
		for _, e := range all {
			if strings.HasPrefix(e.Subject, "tcp") || e.Subject == "others" {
				n += e.Count
			}
		}
		return n
	}
	got = want(func(all []sandbox.Event) bool { return len(all) > 0 && all[len(all)-1].Subject == "others" })
	if len(got) > 64 || total(got) > many {
		t.Errorf("%d events of %d denials", len(got), total(got))
	}
	if h := r.history(id); !strings.HasPrefix(h, "Created Started") {
		t.Errorf("events: %.60s…", h)
	}
	if n := r.m.Stats().Denials; n["tls"] != 5 || n["dns"] != 2 || n["tcp"] != many || n["other"] != 0 {
		t.Errorf("counted %v", n)
	}
	if a, b := <-told, <-told; a+b != 5+1 {
		t.Errorf("told of %d and %d", a, b)
	}
	r.quiesce()
	if got := words(r.stored(id).Events); got != r.history(id) {
		t.Errorf("stored: %s", got)
	}
}

// What others keep goes before the record, so that none is left behind.
func TestForget(t *testing.T) {
	left := 1
	var forgotten []string
	r := newRig(t, func(r *rig) {
		r.opts.Forget = func(id string) error {
			if r.stored(id) == nil {
				t.Error("the record is gone already")
			}
			if left--; left >= 0 {
				return errors.New("disk full")
			}
			forgotten = append(forgotten, id)
			return nil
		}
	})
	id := r.run(spec()).ID
	wantError(t, r.m.Delete(t.Context(), id), sandbox.KindUnavailable, sandbox.CodeDeleteFailed)
	if err := r.m.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.wantGone(id)
	if len(forgotten) != 1 || forgotten[0] != id {
		t.Errorf("forgotten: %q", forgotten)
	}
}
