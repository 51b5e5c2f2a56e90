package sandbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// writeDelay is how long a change that nobody waits for may stay in memory.
const writeDelay = time.Second

// entry is one sandbox in memory. Reads take no lock: snap always holds the
// latest record, which nobody changes once it is there.
type entry struct {
	id   string
	m    *Manager
	snap atomic.Pointer[Sandbox]

	// life serialises the engine's calls for this sandbox. Whoever puts a token
	// into it owns the sandbox until the token is taken out again. A channel,
	// because waiting for it must be able to end.
	life chan struct{}

	// mu serialises changes of the record and guards what follows. It is held
	// across a store call, never across an engine call.
	mu           sync.Mutex
	gone         bool          // removed; the record exists no more
	changed      chan struct{} // closed at the next change of state; nil when nobody waits
	noted        chan struct{} // closed at the next event; nil when nobody waits
	stopWork     context.CancelFunc
	deletion     *deletion // the one in progress
	pendingSlot  bool      // counted as pending
	liveSlot     bool      // counted as not ended
	claims       []string  // named volumes that it is counted as using
	dirty        bool      // memory is ahead of the store
	skewed       bool      // the host may be frozen where the record says Running, or the reverse
	policySkewed bool      // another policy than the record's may be in force

	// retry is when the sweeper tries an unfinished teardown or an unwritten
	// record again: nanoseconds since the Manager's start, 0 for never.
	retry    atomic.Int64
	attempts atomic.Int32
	reaped   atomic.Bool // the sweeper is at it
	accessed atomic.Int64
}

func (m *Manager) newEntry(s *Sandbox) *entry {
	e := &entry{id: s.ID, m: m, life: make(chan struct{}, 1)}
	e.snap.Store(s)
	return e
}

// load returns the latest record, to be read only.
func (e *entry) load() *Sandbox { return e.snap.Load() }

// lookup returns the entry of an id, or an error that says what became of it.
func (m *Manager) lookup(id string) (*entry, error) {
	if v, ok := m.entries.Load(id); ok {
		return v.(*entry), nil
	}
	return nil, m.graves.notFound(id)
}

// lock makes the caller the owner of the sandbox's life.
func (e *entry) lock(ctx context.Context) error {
	select {
	case e.life <- struct{}{}:
		return nil
	default:
	}
	select {
	case e.life <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.m.ctx.Done():
		return errClosing()
	}
}

func (e *entry) tryLock() bool {
	select {
	case e.life <- struct{}{}:
		return true
	default:
		return false
	}
}

func (e *entry) unlock() { <-e.life }

// update applies change to a copy of the record, writes it and publishes it.
// Nothing changes when change or the write fails. errUnchanged from change
// means that there is nothing to write.
func (e *entry) update(change func(*Sandbox) error) (*Sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, e.m.graves.notFound(e.id)
	}
	next := e.load().Clone()
	if err := change(next); err == errUnchanged {
		return e.load(), nil
	} else if err != nil {
		return nil, err
	}
	if err := e.write(next); err != nil {
		// It may have failed late: the store is to say what memory says.
		e.dirty = true
		e.retryLater()
		return nil, errRecord(err)
	}
	return next, nil
}

// force is update for changes that are facts, whatever the store says: when the
// write fails memory goes ahead and the sweeper writes it later. Should the
// process die before that, recovery finds out the same from the host.
func (e *entry) force(change func(*Sandbox) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return e.m.graves.notFound(e.id)
	}
	next := e.load().Clone()
	if err := change(next); err != nil {
		return err
	}
	e.forceLocked(next)
	return nil
}

func (e *entry) forceLocked(next *Sandbox) {
	if err := e.write(next); err != nil {
		e.m.log.Error("a sandbox's record could not be written; trying again", "sandbox", e.id, "error", err)
		next.Revision = e.load().Revision
		e.publish(next)
		e.dirty = true
		e.retryLater()
	}
}

// write makes next durable and publishes it. mu is held.
func (e *entry) write(next *Sandbox) error {
	next.Revision = e.load().Revision + 1
	ctx, cancel := e.m.storeContext()
	defer cancel()
	if err := e.m.store.Update(ctx, next); err != nil {
		return err
	}
	e.dirty = false
	e.publish(next)
	return nil
}

// flush writes what an earlier write could not.
func (e *entry) flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone || !e.dirty {
		return
	}
	if err := e.write(e.load().Clone()); err != nil {
		e.m.log.Error("a sandbox's record still could not be written", "sandbox", e.id, "error", err)
		e.retryLater()
		return
	}
	e.attempts.Store(0)
}

// publish makes next what everybody sees. mu is held.
func (e *entry) publish(next *Sandbox) {
	old := e.load()
	e.snap.Store(next)
	if next.ExpiresAt != nil && (old.ExpiresAt == nil || next.ExpiresAt.Before(*old.ExpiresAt)) {
		e.m.wakeFor(*next.ExpiresAt)
	}
	if old.Events.Last() != next.Events.Last() {
		e.wakeNoted()
	}
	if old.Status.State == next.Status.State {
		return
	}
	if next.Status.State != Pending && e.pendingSlot {
		e.pendingSlot = false
		e.m.admit.leavePending()
	}
	if next.Status.State.Ended() && e.liveSlot {
		e.liveSlot = false
		e.m.admit.leaveLive()
	}
	e.wakeWaiters()
}

func (e *entry) wakeWaiters() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

func (e *entry) wakeNoted() {
	if e.noted != nil {
		close(e.noted)
		e.noted = nil
	}
}

// observe changes what readers see without a durable write: the message of a
// pull's progress, a state that a durable write is about to confirm. mu is held.
func (e *entry) observe(change func(*Sandbox)) {
	next := *e.load() // shallow: published records are never changed
	change(&next)
	e.publish(&next)
}

// watch returns the record and a channel that is closed at its next change of
// state. gone is true, and the channel nil, when the sandbox was removed.
func (e *entry) watch() (s *Sandbox, changed <-chan struct{}, gone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, nil, true
	}
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.load(), e.changed, false
}

// await returns the record as soon as done answers true for it.
func (m *Manager) await(ctx context.Context, e *entry, done func(*Sandbox) bool) (*Sandbox, error) {
	if s := e.load(); done(s) {
		return s, nil
	}
	release, err := m.hold()
	if err != nil {
		return nil, err
	}
	defer release()
	for {
		s, changed, gone := e.watch()
		if gone {
			return nil, m.graves.notFound(e.id)
		}
		if done(s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-m.ctx.Done():
			return nil, errClosing()
		}
	}
}

// hold counts a call that waits, until release is called: each holds a goroutine
// and usually a connection, so there may be maxHeld of them.
func (m *Manager) hold() (release func(), err error) {
	if m.held.Add(1) > maxHeld {
		m.held.Add(-1)
		return nil, &Error{Kind: KindBusy, Code: CodeCapacity, RetryAfter: time.Second,
			Message: "Too many requests are waiting for sandboxes. Try again in a second."}
	}
	return func() { m.held.Add(-1) }, nil
}

// retryLater asks the sweeper to come back to this entry, less often each time.
func (e *entry) retryLater() {
	n := min(e.attempts.Add(1)-1, 5)
	delay := min(time.Second<<n, 30*time.Second)
	e.retry.Store(int64(time.Since(e.m.started) + delay))
}

// writeSoon lets the sweeper write the record, which memory is ahead of, where
// no other write is about to. mu is held.
func (e *entry) writeSoon() {
	e.dirty = true
	e.retry.CompareAndSwap(0, int64(time.Since(e.m.started)+writeDelay))
}

func (e *entry) retryDone() {
	e.retry.Store(0)
	e.attempts.Store(0)
}

// setStatus is the one place where a status changes, and where that becomes an
// event.
func (m *Manager) setStatus(s *Sandbox, state State, reason, message string) {
	old := s.Status
	s.Status = Status{State: state, Reason: reason, Message: message, LastTransitionAt: m.now()}
	if kind, text := explainStatus(s, old); kind != "" {
		s.note(s.Status.LastTransitionAt, kind, reason, text)
	}
}

// explainStatus returns the event of a change of status, with no kind when it is
// not worth one.
func explainStatus(s *Sandbox, old Status) (kind EventKind, text string) {
	now := s.Status
	switch now.State {
	case Running:
		switch old.State {
		case Pending:
			return EventStarted, fmt.Sprintf("The sandbox runs, %s after it was asked for.", span(now.LastTransitionAt.Sub(s.CreatedAt)))
		case Pausing:
			return EventPauseFailed, now.Message
		default:
			return EventResumed, "The sandbox goes on."
		}
	case Paused:
		if old.State == Resuming && now.Message != "" {
			return EventResumeFailed, now.Message
		}
		return EventPaused, "Every process of the sandbox stands still."
	case Stopping:
		if now.Reason == ReasonExpired {
			return EventExpiring, now.Message
		}
		return EventDeleting, now.Message
	case Terminated:
		return EventEnded, now.Message
	case Failed:
		if old.State == Pending {
			return EventFailed, now.Message
		}
		return EventEnded, now.Message
	}
	return "", ""
}

// span words how long something took: three digits are enough.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
