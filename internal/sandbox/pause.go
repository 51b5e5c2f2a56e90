package sandbox

import (
	"context"
	"fmt"
)

// Pause freezes a running sandbox; its expiry goes on. It returns when every
// process stands still and that is recorded.
func (m *Manager) Pause(ctx context.Context, id string) error {
	return m.switchState(ctx, id, transition{
		from: Running, via: Pausing, to: Paused,
		viaReason: ReasonPausing, toReason: ReasonPaused, backReason: ReasonRunning,
		do: m.engine.Pause, undo: m.engine.Resume,
		verb: "pause", refusal: CodeNotRunning, failure: CodePauseFailed,
	})
}

// Resume thaws a paused sandbox. It returns when that is recorded.
func (m *Manager) Resume(ctx context.Context, id string) error {
	return m.switchState(ctx, id, transition{
		from: Paused, via: Resuming, to: Running,
		viaReason: ReasonResuming, toReason: ReasonRunning, backReason: ReasonPaused,
		do: m.engine.Resume, undo: m.engine.Pause,
		verb: "resume", refusal: CodeNotPaused, failure: CodeResumeFailed,
	})
}

type transition struct {
	from, via, to                   State
	viaReason, toReason, backReason string
	do, undo                        func(context.Context, string) error
	verb, refusal, failure          string
}

func (m *Manager) switchState(ctx context.Context, id string, t transition) error {
	e, err := m.lookup(id)
	if err != nil {
		return err
	}
	// Asked before waiting: a pending sandbox's life is not free until its pull
	// is over, and the answer would be the same.
	if s := e.load(); s.Status.State == Pending || s.Status.State == Stopping || s.Status.State.Ended() {
		return t.refuse(s)
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()

	// The work outlives the request, but not a deletion.
	work, cancel := m.engineContext()
	defer cancel()
	_, err = e.update(func(s *Sandbox) error {
		if s.Status.State != t.from {
			return t.refuse(s)
		}
		m.setStatus(s, t.via, t.viaReason, "")
		e.stopWork = cancel // mu is held here
		return nil
	})
	if err != nil {
		return err
	}
	failed := t.do(work, id)
	if failed != nil && m.ctx.Err() == nil {
		m.undoSwitch(id, t)
	}
	return m.settleSwitch(e, t, failed)
}

// undoSwitch goes back after a failure half way. Its own failure is only
// logged: both states that may follow accept another try and a delete.
func (m *Manager) undoSwitch(id string, t transition) {
	ctx, cancel := m.engineContext()
	defer cancel()
	if err := t.undo(ctx, id); err != nil {
		m.log.Warn("a failed "+t.verb+" could not be undone", "sandbox", id, "error", err)
	}
}

func (m *Manager) settleSwitch(e *entry, t transition, failed error) error {
	var refused error
	err := e.force(func(s *Sandbox) error {
		e.stopWork = nil
		if s.Status.State != t.via { // a deletion came first
			refused = errStopping(s)
			return errUnchanged
		}
		if failed == nil {
			m.setStatus(s, t.to, t.toReason, "")
			return nil
		}
		m.setStatus(s, t.from, t.backReason, fmt.Sprintf("The last attempt to %s it failed.", t.verb))
		return nil
	})
	switch {
	case refused != nil:
		return refused
	case failed != nil:
		m.log.Error("a sandbox could not "+t.verb, "sandbox", e.id, "error", failed)
		if known := AsError(failed); known.Kind != KindInternal {
			return known
		}
		return &Error{Kind: KindInternal, Code: t.failure, Err: failed,
			Message: fmt.Sprintf("Sandbox %q could not be %sd and is %s as before. The server's log has the details.", e.id, t.verb, t.from)}
	}
	return err
}

func (t *transition) refuse(s *Sandbox) *Error {
	return Errorf(KindConflict, t.refusal, "Sandbox %q is %s; only a sandbox that is %s can be %sd.", s.ID, s.Status.State, t.from, t.verb)
}
