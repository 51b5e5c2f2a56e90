package enginetest

import (
	"strings"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func (s *suite) testRecover() {
	running, paused := s.create(s.idle()), s.create(s.idle())
	ended, forgotten := s.create(s.shell("echo done")), s.create(s.idle())
	s.mustExec(running, "echo kept > /tmp/file; (while :; do sleep 1; done) >/dev/null 2>&1 & echo $! > /tmp/pid")
	if err := s.eng.Pause(s.ctx(), paused.id); err != nil {
		s.t.Fatal(err)
	}
	s.awaitExit(ended.id)
	if err := s.eng.Stop(s.ctx(), ended.id); err != nil {
		s.t.Fatal(err)
	}
	never := &box{id: "00000000-0000-4000-8000-00000000dead", token: "t", spec: s.idle()}

	s.close()
	found := s.open([]*sandbox.Sandbox{
		running.record(sandbox.Running), paused.record(sandbox.Paused),
		ended.record(sandbox.Terminated), never.record(sandbox.Pending),
	})
	for id, want := range map[string]sandbox.Found{
		running.id: sandbox.FoundRunning, paused.id: sandbox.FoundPaused,
		ended.id: sandbox.FoundNothing, never.id: sandbox.FoundNothing,
	} {
		if got, ok := found[id]; !ok || got != want {
			s.t.Errorf("found[%s] is %d (%v), want %d", id, got, ok, want)
		}
	}
	if len(found) != 4 {
		s.t.Errorf("found %d of 4", len(found))
	}
	s.wantNothing(forgotten.id)
	if _, err := s.eng.Dial(s.ctx(), forgotten.id, sandbox.ExecdPort); err == nil {
		s.t.Error("a sandbox that nobody recorded can be reached")
	}
	if got := s.mustExec(running, "cat /tmp/file; kill -0 $(cat /tmp/pid)"); got != "kept" {
		s.t.Errorf("the adopted sandbox's file holds %q", got)
	}
	if err := s.eng.Resume(s.ctx(), paused.id); err != nil {
		s.t.Fatalf("resuming an adopted sandbox: %v", describe(err))
	}
	s.mustExec(paused, "true")
	if got := s.log(ended.id, sandbox.LogOptions{}); !strings.Contains(got, "done") {
		s.t.Errorf("the log of an ended sandbox is %q", got)
	}
	if err := s.eng.Stop(s.ctx(), running.id); err != nil {
		s.t.Errorf("stopping an adopted sandbox: %v", describe(err))
	}
	s.mustExec(s.create(s.idle()), "true")
}

// testExitBetweenRuns: an end is reported by the next run, if none did before.
func (s *suite) testExitBetweenRuns() {
	b := s.create(s.shell("while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5"))
	// The command lets go of the entrypoint some time after the engine closed,
	// or before; both must do.
	s.mustExec(b, "(sleep 0.2; touch /tmp/go) >/dev/null 2>&1 &")
	s.close()
	if all, _ := s.exitsOf(b.id); len(all) > 0 {
		return // it ended first, and was reported
	}
	if found := s.open([]*sandbox.Sandbox{b.record(sandbox.Running)}); found[b.id] != sandbox.FoundRunning {
		s.t.Fatalf("found %d", found[b.id])
	}
	if got := s.awaitExit(b.id); got.Code != 5 {
		s.t.Errorf("got %+v", got)
	}
}

// testRecreateAfterRestart: a Manager finishes a create that a crash
// interrupted under the id that its client knows.
func (s *suite) testRecreateAfterRestart() {
	id, err := s.eng.Reserve(s.ctx(), s.idle())
	if err != nil {
		s.t.Fatal(err)
	}
	b := &box{id: id, token: "token-of-" + id, spec: s.idle()}
	s.close()
	found := s.open([]*sandbox.Sandbox{b.record(sandbox.Pending)})
	if f := found[id]; f != sandbox.FoundNothing && f != sandbox.FoundUnclaimed {
		s.t.Fatalf("found %d", f)
	}
	if err := s.eng.Stop(s.ctx(), id); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.eng.Remove(s.ctx(), id); err != nil {
			s.t.Errorf("Remove: %v", err)
		}
		s.wantNothing(id)
	})
	b.created, err = s.eng.Create(s.ctx(), sandbox.CreateRequest{ID: id, Spec: b.spec, Token: b.token})
	if err != nil {
		s.t.Fatalf("Create: %v", describe(err))
	}
	s.mustExec(b, "true")
}
