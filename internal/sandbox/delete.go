package sandbox

import (
	"context"
	"fmt"
	"time"
)

// deleteWait bounds how long one Delete waits: the engine's own bound twice,
// for an engine call that has to end first, and some for the store.
const deleteWait = 2*engineTimeout + 5*time.Second

// deletion is one attempt to remove a sandbox. Everybody who wants it removed
// waits for the same attempt.
type deletion struct {
	done chan struct{}
	err  error // set before done is closed
}

// Delete removes a sandbox and all that belongs to it, from every state: a
// create or a pull in flight is broken off. It returns when nothing is left.
// Calls at the same time share one removal and its outcome; later ones get
// ErrNotFound. When the removal fails the sandbox stays Stopping, the error
// says so, and it is tried again in the background and by the next Delete.
func (m *Manager) Delete(ctx context.Context, id string) error {
	e, err := m.lookup(id)
	if err != nil {
		return err
	}
	d, err := m.beginDelete(e, ReasonDeleting, "The sandbox is being deleted.", nil)
	if err != nil {
		return err
	}
	return m.awaitDelete(ctx, e, d)
}

func (m *Manager) awaitDelete(ctx context.Context, e *entry, d *deletion) error {
	timer := time.NewTimer(deleteWait)
	defer timer.Stop()
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errDelete(e.id, nil)
	}
}

func errDelete(id string, cause error) *Error {
	return &Error{Kind: KindUnavailable, Code: CodeDeleteFailed, RetryAfter: 5 * time.Second, Err: cause,
		Message: fmt.Sprintf("Sandbox %q could not be removed completely yet. It is Stopping and the server goes on trying; asking again is safe.", id)}
}

// beginDelete joins the removal in progress or starts one. due, when not nil,
// is asked under the sandbox's lock whether it should still be removed; when it
// answers false nothing happens and beginDelete returns nil, nil.
func (m *Manager) beginDelete(e *entry, reason, message string, due func(*Sandbox) bool) (*deletion, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, m.graves.notFound(e.id)
	}
	if e.deletion != nil {
		return e.deletion, nil
	}
	if due != nil && !due(e.load()) {
		return nil, nil
	}
	d := &deletion{done: make(chan struct{})}
	if !m.spawn(func() { m.runDelete(e, d) }) {
		return nil, errClosing()
	}
	e.deletion = d
	if e.load().Status.State != Stopping {
		e.observe(func(s *Sandbox) { m.setStatus(s, Stopping, reason, message) })
		e.dirty = true
	}
	if e.stopWork != nil {
		e.stopWork()
	}
	return d, nil
}

func (m *Manager) runDelete(e *entry, d *deletion) {
	d.err = m.remove(e)
	e.mu.Lock()
	e.deletion = nil
	if d.err != nil {
		e.retryLater()
	}
	e.mu.Unlock()
	if d.err != nil {
		m.log.Warn("a sandbox could not be removed yet", "sandbox", e.id, "error", d.err.Error(), "cause", AsError(d.err).Err)
	}
	close(d.done)
}

// remove takes a sandbox apart, in the order that lets a crash at any point be
// continued: the intent, the host, the volumes, what others keep, the record.
func (m *Manager) remove(e *entry) error {
	// When the intent can't be written the removal goes on all the same: a
	// crash half way is then found as a sandbox that lost its process.
	e.flush()

	ctx, cancel := context.WithTimeout(m.ctx, engineTimeout)
	defer cancel()
	if err := e.lock(ctx); err != nil {
		return errDelete(e.id, err)
	}
	defer e.unlock()
	// The bound starts anew: waiting for another call is not the engine's time.
	rctx, rcancel := m.engineContext()
	defer rcancel()
	if err := m.engine.Remove(rctx, e.id); err != nil {
		return errDelete(e.id, err)
	}
	if err := m.removeOwnVolumes(rctx, e); err != nil {
		return errDelete(e.id, err)
	}
	if m.opts.Forget != nil {
		if err := m.opts.Forget(e.id); err != nil {
			return errDelete(e.id, err)
		}
	}
	sctx, scancel := m.storeContext()
	defer scancel()
	if err := m.store.Delete(sctx, e.id); err != nil {
		return errDelete(e.id, err)
	}
	m.forget(e)
	return nil
}

// forget drops a sandbox whose record is gone from memory.
func (m *Manager) forget(e *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.load()
	m.graves.add(e.id, s.Status.Reason)
	m.index.remove(e)
	m.entries.Delete(e.id)
	e.gone = true
	e.retryDone()
	if e.pendingSlot {
		m.admit.leavePending()
	}
	if e.liveSlot {
		m.admit.leaveLive()
	}
	m.admit.leaveRecord()
	e.pendingSlot, e.liveSlot = false, false
	e.wakeWaiters()
	e.wakeNoted()
	if s.Status.Reason == ReasonExpired {
		m.counts.expired.Add(1)
	} else {
		m.counts.deletes.Add(1)
	}
}
