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
	if failed == nil {
		e.mu.Lock()
		e.skewed = false
		e.mu.Unlock()
	}
	if failed != nil && m.ctx.Err() == nil {
		m.undoSwitch(e, t.undo)
	}
	return m.settleSwitch(e, t, failed)
}

// undoSwitch goes back after a failure half way; when that fails as well the
// sweeper goes on trying. life is held.
func (m *Manager) undoSwitch(e *entry, undo func(context.Context, string) error) {
	ctx, cancel := m.engineContext()
	defer cancel()
	err := undo(ctx, e.id)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.skewed = err != nil
	if err == nil {
		return
	}
	m.log.Warn("a failed pause or resume could not be undone; trying again", "sandbox", e.id, "error", err)
	e.retryLater()
}

// unskew makes the host agree with the record again. life is held.
func (m *Manager) unskew(e *entry) {
	e.mu.Lock()
	skewed, state := e.skewed, e.load().Status.State
	e.skewed = false
	e.mu.Unlock()
	switch {
	case skewed && state == Running:
		m.undoSwitch(e, m.engine.Resume)
	case skewed && state == Paused:
		m.undoSwitch(e, m.engine.Pause)
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
