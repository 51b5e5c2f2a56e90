package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestRenew(t *testing.T) {
	r := newRig(t)
	s, forever := r.run(lasting(time.Hour)), r.run(spec())
	at := func(d time.Duration) time.Time { return r.clock.now().Add(d) }
	for _, d := range []time.Duration{0, -time.Second} {
		_, err := r.m.Renew(t.Context(), s.ID, at(d))
		wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidExpiration)
	}
	_, err := r.m.Renew(t.Context(), s.ID, time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC))
	wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidExpiration)
	_, err = r.m.Renew(t.Context(), forever.ID, at(time.Hour))
	wantError(t, err, sandbox.KindConflict, sandbox.CodeInvalidExpiration)
	_, err = r.m.Renew(t.Context(), "nobody", at(time.Hour))
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)

	for _, d := range []time.Duration{24 * time.Hour, time.Minute} { // longer and shorter
		got, err := r.m.Renew(t.Context(), s.ID, at(d))
		if err != nil || !got.ExpiresAt.Equal(at(d)) || !r.stored(s.ID).ExpiresAt.Equal(at(d)) {
			t.Fatalf("%v: %+v, %v", d, got, err)
		}
	}
	r.eng.end(sandbox.Exit{ID: s.ID})
	r.await(s.ID, sandbox.Terminated)
	if _, err := r.m.Renew(t.Context(), s.ID, at(time.Hour)); err != nil {
		t.Fatalf("renewing an ended sandbox: %v", err)
	}
	r.clock.add(time.Hour)
	r.m.SweepNow()
	r.wantGone(s.ID)
	_, err = r.m.Get(s.ID)
	if !strings.Contains(err.Error(), "expired") {
		t.Fatalf("says %q", err)
	}
	r.get(forever.ID)
}

// TestRenewWhilePending: client-side pools renew right after the create.
func TestRenewWhilePending(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	s := r.create(lasting(24 * time.Hour))
	g.await(t)
	at := r.clock.now().Add(time.Minute)
	if _, err := r.m.Renew(t.Context(), s.ID, at); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	if got := r.await(s.ID, sandbox.Running); !got.ExpiresAt.Equal(at) {
		t.Fatalf("the renewal was lost: %v", got.ExpiresAt)
	}
}

func TestPendingSandboxExpires(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	s := r.create(lasting(time.Minute))
	g.await(t)
	r.clock.add(time.Minute)
	r.m.SweepNow()
	r.wantGone(s.ID)
}

// TestSweeperRunsByItself: with the real clock and nobody helping, an expiry is
// met, however the sweeper was sleeping when it was set.
func TestSweeperRunsByItself(t *testing.T) {
	r := newRig(t)
	s := r.run(lasting(time.Hour))
	r.clock.add(2 * time.Hour) // the wall clock is set forward
	_, err := r.m.Await(t.Context(), s.ID, func(*sandbox.Sandbox) bool { return false })
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)
	r.wantGone(s.ID)
}

// TestRenewalWinsOverSweep: whichever of a renewal and an expiry comes first,
// the sandbox of a renewal that succeeded stays.
func TestRenewalWinsOverSweep(t *testing.T) {
	r := newRig(t)
	for range 50 {
		s := r.run(lasting(time.Minute))
		r.clock.add(time.Minute - 1)
		var wg sync.WaitGroup
		wg.Go(func() { r.m.SweepNow() })
		wg.Go(func() { r.clock.add(1); r.m.SweepNow() })
		_, err := r.m.Renew(t.Context(), s.ID, r.clock.now().Add(time.Hour))
		wg.Wait()
		got, gerr := r.m.Get(s.ID)
		if err == nil && (gerr != nil || got.Status.State != sandbox.Running) {
			t.Fatalf("renewed, and then %+v, %v", got, gerr)
		}
		if err != nil && gerr == nil && got.Status.State == sandbox.Running {
			t.Fatalf("not renewed (%v), and still there", err)
		}
	}
}

func TestRenewOnAccess(t *testing.T) {
	r := newRig(t)
	sp := lasting(time.Minute)
	sp.Extensions = map[string]string{"access.renew.extend.seconds": "300"}
	s, plain := r.run(sp), r.run(lasting(time.Minute))
	renew := func(id string) {
		if err := r.m.RenewOnAccess(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	renew(s.ID)
	want := r.clock.now().Add(300 * time.Second)
	if got := r.get(s.ID); !got.ExpiresAt.Equal(want) {
		t.Fatalf("expires at %v", got.ExpiresAt)
	}
	r.clock.add(time.Second)
	renew(s.ID) // too soon after the last
	if got := r.get(s.ID); !got.ExpiresAt.Equal(want) {
		t.Fatalf("renewed again, to %v", got.ExpiresAt)
	}
	before := plain.ExpiresAt
	renew(plain.ID)
	if got := r.get(plain.ID); !got.ExpiresAt.Equal(*before) {
		t.Fatal("a sandbox that did not ask for it was renewed")
	}
	long := lasting(time.Hour)
	long.Extensions = sp.Extensions
	l := r.run(long)
	renew(l.ID)
	if got := r.get(l.ID); !got.ExpiresAt.Equal(*l.ExpiresAt) {
		t.Fatal("an access shortened the life")
	}
}

func TestPatchMetadata(t *testing.T) {
	r := newRig(t)
	sp := spec()
	sp.Metadata = map[string]string{"keep": "1", "drop": "2"}
	s := r.run(sp)
	one := "one"
	got, err := r.m.PatchMetadata(t.Context(), s.ID, map[string]*string{"drop": nil, "absent": nil, "new": &one})
	if err != nil || len(got.Spec.Metadata) != 2 || got.Spec.Metadata["new"] != "one" || got.Spec.Metadata["keep"] != "1" {
		t.Fatalf("%v, %v", got.Spec.Metadata, err)
	}
	again, err := r.m.PatchMetadata(t.Context(), s.ID, nil)
	if err != nil || again.Revision != got.Revision {
		t.Fatalf("an empty patch: revision %d after %d, %v", again.Revision, got.Revision, err)
	}
	_, err = r.m.PatchMetadata(t.Context(), s.ID, map[string]*string{"opensandbox.io/x": nil})
	wantError(t, err, sandbox.KindInvalid, sandbox.CodeReservedMetadata)
	_, err = r.m.PatchMetadata(t.Context(), "nobody", nil)
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)
	many := map[string]*string{}
	for i := range 300 {
		many[fmt.Sprint(i)] = &one
	}
	_, err = r.m.PatchMetadata(t.Context(), s.ID, many)
	wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidMetadataLabel)

	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := r.m.PatchMetadata(t.Context(), s.ID, map[string]*string{fmt.Sprint("k", i): &one}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(r.stored(s.ID).Spec.Metadata); n != 52 {
		t.Fatalf("%d entries after 50 patches at the same time, want 52", n)
	}
}

func TestDialHoldsWhilePending(t *testing.T) {
	r := newRig(t)
	g := r.gate("claim")
	s := r.create(spec())
	done := make(chan error, 3)
	for range 3 {
		go func() {
			c, err := r.m.Dial(t.Context(), s.ID, sandbox.ExecdPort)
			if err == nil {
				c.Close()
			}
			done <- err
		}()
	}
	g.await(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.m.Dial(ctx, s.ID, 80); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	for r.m.Stats().Held < 3 {
		time.Sleep(time.Millisecond) // until they wait; no event says so
	}
	close(g.open)
	for range 3 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if r.m.Stats().Held != 0 {
		t.Fatal("still counted as held")
	}
	for _, port := range []int{0, -1, 65536} {
		_, err := r.m.Dial(t.Context(), s.ID, port)
		wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidPort)
	}
	_, err := r.m.Dial(t.Context(), "nobody", 80)
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)
}

func TestVolumes(t *testing.T) {
	mount := func(name string, del bool) *sandbox.Spec {
		s := spec()
		s.Volumes = []sandbox.VolumeMount{{Name: "v", Claim: name, CreateIfMissing: true, DeleteWithSandbox: del, MountPath: "/v"}}
		return s
	}
	names := func(r *rig) []string {
		all, err := r.m.Volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range all {
			names = append(names, v.Name)
		}
		slices.Sort(names)
		return names
	}
	r := newRig(t)
	a := r.run(mount("one", true))
	b := r.run(mount("one", true)) // did not make it
	c := r.run(mount("two", true))
	d := r.run(mount("three", false))
	e := wantError(t, r.m.RemoveVolume(t.Context(), "one"), sandbox.KindConflict, sandbox.CodeVolumeInUse)
	if !strings.Contains(e.Message, a.ID) || !strings.Contains(e.Message, b.ID) {
		t.Fatalf("says %q", e.Message)
	}
	r.restart()
	for _, s := range []*sandbox.Sandbox{c, d} {
		if err := r.m.Delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(r); !slices.Equal(got, []string{"one", "three"}) {
		t.Fatalf("left: %v", got)
	}
	if err := r.m.Delete(t.Context(), a.ID); err != nil { // made it, but b uses it
		t.Fatal(err)
	}
	if err := r.m.RemoveVolume(t.Context(), "one"); err == nil {
		t.Fatal("removed under its user")
	}
	r.eng.end(sandbox.Exit{ID: b.ID})
	r.await(b.ID, sandbox.Terminated)
	if err := r.m.Delete(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.m.RemoveVolume(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if got := names(r); !slices.Equal(got, []string{"three"}) {
		t.Fatalf("left: %v", got)
	}
	wantError(t, r.m.RemoveVolume(t.Context(), "one"), sandbox.KindNotFound, sandbox.CodeVolumeNotFound)

	// A create that needs a volume which is being removed waits for that.
	g := r.gate("removevolume")
	done := make(chan error, 1)
	go func() { done <- r.m.RemoveVolume(t.Context(), "three") }()
	g.await(t)
	made := make(chan *sandbox.Sandbox, 1)
	go func() { made <- r.create(mount("three", false)) }()
	wantError(t, r.m.RemoveVolume(t.Context(), "three"), sandbox.KindConflict, sandbox.CodeVolumeInUse)
	if r.m.VolumeUsers("three") != 0 {
		t.Fatal("used while it is removed")
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.await((<-made).ID, sandbox.Running)
}
