package enginetest

import (
	"io"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// testPauseAndResume freezes a sandbox that burns CPU: a frozen one uses none.
func (s *suite) testPauseAndResume() {
	b := s.create(s.shell("while :; do :; done"))
	s.mustExec(b, "echo before > /tmp/file")
	for range 2 {
		for range 2 { // idempotent
			if err := s.eng.Pause(s.ctx(), b.id); err != nil {
				s.t.Fatalf("Pause: %v", describe(err))
			}
		}
		first := s.cpu(b)
		time.Sleep(20 * time.Millisecond) // time in which a running one would use some
		if second := s.cpu(b); second != first {
			s.t.Errorf("a paused sandbox used %s of CPU", second-first)
		}
		for range 2 {
			if err := s.eng.Resume(s.ctx(), b.id); err != nil {
				s.t.Fatalf("Resume: %v", describe(err))
			}
		}
		if got := s.mustExec(b, "cat /tmp/file"); got != "before" {
			s.t.Errorf("the file holds %q", got)
		}
	}
	if err := s.eng.Pause(s.ctx(), b.id); err != nil {
		s.t.Fatal(err)
	}
	if err := s.eng.Stop(s.ctx(), b.id); err != nil {
		s.t.Errorf("stopping a paused sandbox: %v", err)
	}
	s.wantNothing(b.id)
}

func (s *suite) cpu(b *box) time.Duration {
	s.t.Helper()
	u, err := s.eng.Usage(s.ctx(), b.id)
	if err != nil {
		s.t.Fatalf("Usage: %v", err)
	}
	return u.CPU
}

func (s *suite) testUsage() {
	b := s.create(s.idle())
	s.mustExec(b, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	u, err := s.eng.Usage(s.ctx(), b.id)
	if err != nil {
		s.t.Fatal(err)
	}
	if u.CPU <= 0 || u.MemoryBytes <= 0 || u.PIDs < 2 { // execd and the entrypoint
		s.t.Errorf("got %+v", u)
	}
}

func (s *suite) testStopAndRemove() {
	// Whatever the sandbox's processes do about it.
	b := s.create(s.shell("trap '' TERM INT HUP; echo started; while :; do sleep 1; done"))
	s.mustExec(b, "(trap '' TERM HUP; sleep 100000) >/dev/null 2>&1 & echo")
	for range 2 {
		if err := s.eng.Stop(s.ctx(), b.id); err != nil {
			s.t.Fatalf("Stop: %v", describe(err))
		}
		s.wantNothing(b.id)
	}
	gone := []sandbox.Kind{sandbox.KindNotFound, sandbox.KindConflict}
	_, err := s.eng.Dial(s.ctx(), b.id, sandbox.ExecdPort)
	s.wantKind("Dial after Stop", err, gone...)
	s.wantKind("Pause after Stop", s.eng.Pause(s.ctx(), b.id), gone...)
	if got := s.log(b.id, sandbox.LogOptions{}); !strings.Contains(got, "started") {
		s.t.Errorf("the log after Stop is %q", got)
	}
	for range 2 {
		if err := s.eng.Remove(s.ctx(), b.id); err != nil {
			s.t.Fatalf("Remove: %v", describe(err))
		}
	}
	_, err = s.eng.Logs(s.ctx(), b.id, sandbox.LogOptions{})
	s.wantKind("Logs after Remove", err, gone...)

	running := s.create(s.idle())
	if err := s.eng.Remove(s.ctx(), running.id); err != nil {
		s.t.Fatalf("removing a running sandbox: %v", describe(err))
	}
	s.wantNothing(running.id)
}

func (s *suite) testExits() {
	var boxes []*box
	wants := []sandbox.Exit{{Code: 0}, {Code: 3}, {Code: 255}, {Code: -1, Signal: 9}, {Code: -1, Signal: 15}}
	for _, script := range []string{"exit 0", "exit 3", "exit 255", "kill -9 $$", "kill -15 $$"} {
		// Waits, so that the end comes after the create as well as before.
		boxes = append(boxes, s.create(s.shell("while [ ! -e /tmp/go ]; do sleep 0.02; done; "+script)))
	}
	for _, b := range boxes {
		s.mustExec(b, "touch /tmp/go")
	}
	boxes = append(boxes, s.create(s.shell("exit 4")))
	wants = append(wants, sandbox.Exit{Code: 4})
	for i, b := range boxes {
		want := wants[i]
		want.ID = b.id
		if got := s.awaitExit(b.id); got != want {
			s.t.Errorf("got %+v, want %+v", got, want)
		}
	}
	for _, b := range boxes {
		if err := s.eng.Stop(s.ctx(), b.id); err != nil {
			s.t.Errorf("stopping an ended sandbox: %v", err)
		}
		if all, _ := s.exitsOf(b.id); len(all) != 1 {
			s.t.Errorf("the end of %s was reported %d times", b.id, len(all))
		}
	}
}

func (s *suite) testOutOfMemory() {
	spec := s.shell("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
	spec.Limits.MemoryBytes = 64 << 20
	b := s.create(spec)
	if got := s.awaitExit(b.id); !got.OutOfMemory {
		s.t.Errorf("got %+v, log %q", got, s.log(b.id, sandbox.LogOptions{}))
	}
}

func (s *suite) testLogs() {
	before := time.Now()
	b := s.create(s.shell("echo one; echo two >&2; printf three"))
	s.awaitExit(b.id)
	all := s.log(b.id, sandbox.LogOptions{})
	for _, line := range []string{"one", "two", "three"} {
		if !strings.Contains(all, line) {
			s.t.Errorf("%q is not in the log %q", line, all)
		}
	}
	if got := s.log(b.id, sandbox.LogOptions{Tail: 1}); strings.Contains(got, "one") || strings.TrimSpace(got) == "" {
		s.t.Errorf("the last line is %q", got)
	}
	if got := s.log(b.id, sandbox.LogOptions{Since: time.Now().Add(time.Hour)}); got != "" {
		s.t.Errorf("the log of the future is %q", got)
	}
	if got := s.log(b.id, sandbox.LogOptions{Since: before.Add(-time.Hour)}); got != all {
		s.t.Errorf("the log since an hour ago is %q", got)
	}
	for line := range strings.Lines(s.log(b.id, sandbox.LogOptions{Timestamps: true})) {
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		// An hour around it is enough to tell a wrong zone or unit.
		if err != nil || at.Before(before.Add(-30*time.Minute)) || at.After(before.Add(30*time.Minute)) {
			s.t.Errorf("line %q: %v", line, err)
		}
	}
}

func (s *suite) testFollowedLog() {
	b := s.create(s.shell("echo first; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo last"))
	r, err := s.eng.Logs(s.ctx(), b.id, sandbox.LogOptions{Follow: true})
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	s.mustExec(b, "touch /tmp/go")
	got, err := io.ReadAll(r) // ends when the entrypoint has
	if err != nil || !strings.Contains(string(got), "first") || !strings.Contains(string(got), "last") {
		s.t.Errorf("followed %q, %v", got, err)
	}
}

func (s *suite) testDialPort() {
	b := s.create(s.idle())
	c, err := s.eng.Dial(s.ctx(), b.id, 65000)
	if err == nil {
		// Some engines find out only when the first byte travels.
		c.SetDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(c, make([]byte, 1))
		c.Close()
	}
	if err == nil {
		s.t.Error("something answers on a port that nobody listens on")
	}
}
