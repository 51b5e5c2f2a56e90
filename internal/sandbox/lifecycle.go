package sandbox

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Lifecycle are the commands that a sandbox runs by itself, as its user and
// with its environment. What they print goes to the entrypoint's log.
type Lifecycle struct {
	// PreStart runs to its end before the entrypoint is started; when it fails
	// the sandbox does. It runs again if the server was restarted meanwhile,
	// in a sandbox made anew. Nil for none.
	PreStart *Hook `json:"preStart,omitempty"`
	// Periodic hooks run by their schedules until the entrypoint ends. One
	// that still runs when it is due again, or that was due while the sandbox
	// was paused, is left out.
	Periodic []PeriodicHook `json:"periodic,omitempty"`
}

// Hook is a command with a bound on its time, after which it is killed with all
// that it started.
type Hook struct {
	Command []string      `json:"command"`
	Timeout time.Duration `json:"timeout"`
}

// PeriodicHook is a hook with a schedule.
type PeriodicHook struct {
	Hook
	// Name is unique in a sandbox.
	Name string `json:"name"`
	// Schedule is one that package schedule can parse.
	Schedule string `json:"schedule"`
}

// Clone returns a deep copy; of nil, nil.
func (l *Lifecycle) Clone() *Lifecycle {
	if l == nil {
		return nil
	}
	c := &Lifecycle{Periodic: slices.Clone(l.Periodic)}
	if l.PreStart != nil {
		c.PreStart = &Hook{Command: slices.Clone(l.PreStart.Command), Timeout: l.PreStart.Timeout}
	}
	for i := range c.Periodic {
		c.Periodic[i].Command = slices.Clone(c.Periodic[i].Command)
	}
	return c
}

func (s *Spec) hasHook(name string) bool {
	return s.Lifecycle != nil && slices.ContainsFunc(s.Lifecycle.Periodic, func(h PeriodicHook) bool { return h.Name == name })
}

// hookGrace is how long ending a hook that ran out of time may take.
const hookGrace = 10 * time.Second

// PreStartTimeout is by how much the preStart hook may make the start of the
// sandbox longer; 0 without one.
func (s *Spec) PreStartTimeout() time.Duration {
	if s.Lifecycle == nil || s.Lifecycle.PreStart == nil {
		return 0
	}
	return s.Lifecycle.PreStart.Timeout + hookGrace
}

// HookReporter is implemented by engines that can tell how periodic hooks
// ended.
type HookReporter interface {
	// HookRuns delivers the runs of each sandbox in their order. After a
	// restart an engine begins behind the HookSeq of the recorded sandbox. The
	// channel is never closed before Close.
	HookRuns() <-chan HookRun
}

// HookRun is how one run of a periodic hook ended.
type HookRun struct {
	ID string
	// Seq counts the runs of all hooks of a sandbox from 1.
	Seq  int64
	Name string
	// EndedAt is by the sandbox's word.
	EndedAt time.Time
	Took    time.Duration
	// Code is the exit code; -1 when a signal ended it or it has none.
	Code     int
	Signal   int
	TimedOut bool
	// Problem says why it could not be started; empty when it was.
	Problem string
	// Output is the end of what a failed run printed.
	Output string
}

func (r *HookRun) failed() bool {
	return r.Code != 0 || r.Signal != 0 || r.TimedOut || r.Problem != ""
}

// describe words a run for its event.
func (r *HookRun) describe() string {
	name := fmt.Sprintf("The periodic hook %q", r.Name)
	took := r.Took.Round(time.Millisecond)
	var what string
	switch {
	case r.Problem != "":
		what = "could not be started: " + r.Problem + "."
	case r.TimedOut:
		what = fmt.Sprintf("ran out of time after %s and was killed.", took)
	case r.Signal != 0:
		what = "was ended by " + signalName(r.Signal) + "."
	case r.Code > 0:
		what = fmt.Sprintf("ended with exit code %d after %s.", r.Code, took)
	case r.Code < 0:
		what = "ended; its exit code is unknown."
	default:
		return fmt.Sprintf("%s ended well after %s.", name, took)
	}
	if out := strings.TrimSpace(r.Output); out != "" {
		what += " Its last output: " + out
	}
	return name + " " + what
}

// watchHooks turns runs of hooks into events. It waits for a sandbox only while
// that is writing its record.
func (m *Manager) watchHooks(runs <-chan HookRun) {
	for {
		select {
		case run, ok := <-runs:
			if !ok {
				return
			}
			m.noteHook(&run)
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) noteHook(run *HookRun) {
	e, err := m.lookup(run.ID)
	if err != nil {
		return // deleted meanwhile
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.load(); e.gone || run.Seq <= s.HookSeq || !s.Spec.hasHook(run.Name) {
		return // told before, or never asked for
	}
	kind := EventHookSucceeded
	if run.failed() {
		kind = EventHookFailed
	}
	fresh := false
	e.observe(func(s *Sandbox) {
		s.HookSeq = run.Seq
		s.Events, fresh = s.Events.add(Event{At: m.between(s.CreatedAt, run.EndedAt), Kind: kind, Subject: run.Name, Message: run.describe()})
	})
	if fresh {
		// That a hook ran once more is not worth a write of its own: it is
		// written with the next change.
		e.writeSoon()
	}
}

// between keeps a time that somebody else told within what is possible.
func (m *Manager) between(low, at time.Time) time.Time {
	at = at.Round(0).UTC()
	if now := m.now(); at.After(now) {
		return now
	}
	if at.Before(low) {
		return low
	}
	return at
}

// Bounds of hooks (OpenSandbox lifecycle API).
const (
	MaxPreStartTimeout = 3 * time.Hour
	MaxPeriodicTimeout = 5 * time.Minute
	// MaxPeriodicHooks is paddock's own.
	MaxPeriodicHooks = 32
)

// checkLifecycle checks what no engine could honour.
func checkLifecycle(l *Lifecycle) error {
	if l == nil {
		return nil
	}
	if l.PreStart != nil {
		if err := checkHook("lifecycle.preStart", l.PreStart, MaxPreStartTimeout); err != nil {
			return err
		}
	}
	if n := len(l.Periodic); n > MaxPeriodicHooks {
		return Errorf(KindInvalid, CodeInvalidParameter, "lifecycle.periodic has %d hooks; at most %d are allowed.", n, MaxPeriodicHooks)
	}
	for i := range l.Periodic {
		if err := checkHook(fmt.Sprintf("lifecycle.periodic[%d]", i), &l.Periodic[i].Hook, MaxPeriodicTimeout); err != nil {
			return err
		}
	}
	return nil
}

func checkHook(path string, h *Hook, most time.Duration) error {
	if len(h.Command) == 0 || strings.TrimSpace(h.Command[0]) == "" {
		return Errorf(KindInvalid, CodeInvalidParameter, "%s.command must name a program.", path)
	}
	if h.Timeout < time.Second || h.Timeout > most {
		return Errorf(KindInvalid, CodeInvalidParameter, "%s.timeoutSeconds must be from 1 to %d.", path, int(most.Seconds()))
	}
	return nil
}
