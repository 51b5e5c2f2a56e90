package sandbox

import "fmt"

// watchExits takes the ends of entrypoints from the engine. Each is handled in
// its own goroutine, because one sandbox's lock may be held for long; there is
// at most one per sandbox.
func (m *Manager) watchExits() {
	for {
		select {
		case exit, ok := <-m.engine.Exits():
			if !ok {
				return // only when the engine closed, and then nothing ends any more
			}
			m.spawn(func() { m.handleExit(exit) })
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) handleExit(exit Exit) {
	e, err := m.lookup(exit.ID)
	if err != nil {
		return // deleted: whoever did that knows
	}
	// Behind the create that may not have recorded its success yet.
	if err := e.lock(m.ctx); err != nil {
		return // closing: the next start finds out
	}
	defer e.unlock()
	switch e.load().Status.State {
	case Running, Paused:
	default:
		return
	}
	state, reason, message := exitStatus(exit)
	m.counts.exits.Add(1)
	m.log.Info("a sandbox ended", "sandbox", e.id, "reason", reason, "code", exit.Code, "signal", exit.Signal)
	m.end(e, func(s *Sandbox) { m.setStatus(s, state, reason, message) })
}

// end records that a sandbox ended and frees what it holds. The record comes
// first: after a crash in between, the reason is known and the rest is freed at
// the next start. life is held.
func (m *Manager) end(e *entry, change func(*Sandbox)) {
	err := e.force(func(s *Sandbox) error {
		if s.Status.State == Stopping {
			return errUnchanged
		}
		change(s)
		at := s.Status.LastTransitionAt
		s.EndedAt = &at
		return nil
	})
	if err != nil {
		return // being deleted, which frees everything
	}
	m.free(e)
}

// free releases what an ended sandbox holds on the host, its logs excepted; the
// sweeper tries again when that fails. life is held.
func (m *Manager) free(e *entry) {
	ctx, cancel := m.engineContext()
	defer cancel()
	if err := m.engine.Stop(ctx, e.id); err != nil {
		m.log.Warn("an ended sandbox could not be freed yet", "sandbox", e.id, "error", err)
		e.retryLater()
		return
	}
	m.releaseClaims(e)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.dirty {
		e.retryDone()
	}
}

func exitStatus(exit Exit) (state State, reason, message string) {
	switch {
	case exit.OutOfMemory:
		return Failed, ReasonOutOfMemory, "The sandbox used more memory than its limit and the kernel ended it. Give it a higher memory limit."
	case exit.ExecdLost:
		return Failed, ReasonExecdLost, "The sandbox's first process died, and everything in it with it."
	case exit.Signal != 0:
		return Failed, ReasonKilled, "The entrypoint was ended by " + signalName(exit.Signal) + "."
	case exit.Code == 0:
		return Terminated, ReasonExited, "The entrypoint ended with exit code 0."
	case exit.Code > 0:
		return Failed, ReasonExitedError, fmt.Sprintf("The entrypoint ended with exit code %d.", exit.Code)
	default:
		return Failed, ReasonExitedError, "The entrypoint ended; its exit code is unknown."
	}
}

// signalName is "signal 9 (SIGKILL)". The numbers are Linux's on every
// architecture that sandboxes run on (signal(7)), not those of the machine that
// this was compiled for.
func signalName(n int) string {
	if name, ok := signalNames[n]; ok {
		return fmt.Sprintf("signal %d (%s)", n, name)
	}
	return fmt.Sprintf("signal %d", n)
}

var signalNames = map[int]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
	9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
	24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}
