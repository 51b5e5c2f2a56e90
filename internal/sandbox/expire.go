package sandbox

import "time"

const (
	// sweepInterval is how often the sweeper looks at the wall clock at least.
	// Timers run on the monotonic clock, so a wall clock that is set forward
	// takes effect within this time, and one that is set back makes nothing
	// late by more than it.
	sweepInterval = time.Second
	// sweepPause is the least time between two sweeps, however many expiries
	// are close to each other.
	sweepPause = 20 * time.Millisecond
	// dropKeysInterval is how often outlived idempotency keys are dropped.
	dropKeysInterval = time.Hour
)

// sweepLoop removes what expired, retries what could not be finished, and drops
// outlived idempotency keys. There is one for all sandboxes: it looks at every
// one each time, which for 10,000 takes a fraction of a millisecond and can't
// forget any.
func (m *Manager) sweepLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var keysDropped time.Time
	for {
		select {
		case <-timer.C:
		case <-m.kick:
		case <-m.ctx.Done():
			return
		}
		next := m.sweep()
		if now := time.Now(); keysDropped.IsZero() || now.Sub(keysDropped) >= dropKeysInterval {
			keysDropped = now
			m.spawn(m.dropKeys)
		}
		timer.Reset(max(next, sweepPause))
	}
}

// sweep looks at every sandbox once, starts what is due, and returns how long
// until something else is, at most sweepInterval.
func (m *Manager) sweep() time.Duration {
	now := m.now()
	running := int64(time.Since(m.started))
	next := sweepInterval
	for _, e := range m.index.all() {
		s := e.load()
		if retry := e.retry.Load(); retry != 0 {
			if retry <= running {
				m.reap(e, m.retry)
				continue
			}
			next = min(next, time.Duration(retry-running))
		}
		if s.Status.State == Stopping {
			continue
		}
		if at, ok := m.dueAt(s); ok {
			if !now.Before(at) {
				m.reap(e, m.expire)
			} else {
				next = min(next, at.Sub(now))
			}
		}
	}
	return next
}

// dueAt is when a sandbox has to go.
func (m *Manager) dueAt(s *Sandbox) (at time.Time, ok bool) {
	if s.ExpiresAt != nil {
		at, ok = *s.ExpiresAt, true
	}
	if s.Status.State == Failed && s.StartedAt == nil && s.EndedAt != nil {
		if end := s.EndedAt.Add(m.opts.FailedRetention); !ok || end.Before(at) {
			at, ok = end, true
		}
	}
	return at, ok
}

// reap runs work for an entry in the background, once at a time, and a bounded
// number of them at once.
func (m *Manager) reap(e *entry, work func(*entry)) {
	if !e.reaped.CompareAndSwap(false, true) {
		return
	}
	if !m.spawn(func() {
		defer e.reaped.Store(false)
		select {
		case m.reaping <- struct{}{}:
			defer func() { <-m.reaping }()
		case <-m.ctx.Done():
			return
		}
		work(e)
	}) {
		e.reaped.Store(false)
	}
}

// expire removes a sandbox whose time is over. A renewal that came between the
// sweep and here wins: due is asked again under the sandbox's lock.
func (m *Manager) expire(e *entry) {
	d, err := m.beginDelete(e, ReasonExpired, "The sandbox expired and is being removed.", func(s *Sandbox) bool {
		at, ok := m.dueAt(s)
		return ok && !m.now().Before(at)
	})
	if err != nil || d == nil {
		return
	}
	if err := m.awaitDelete(m.ctx, e, d); err == nil {
		m.log.Debug("a sandbox expired", "sandbox", e.id)
	}
}

// retry finishes what an earlier attempt could not.
func (m *Manager) retry(e *entry) {
	e.retry.Store(0)
	s := e.load()
	if s.Status.State == Stopping {
		if d, err := m.beginDelete(e, s.Status.Reason, s.Status.Message, nil); err == nil {
			_ = m.awaitDelete(m.ctx, e, d) // runDelete logs and comes back
		}
		return
	}
	e.flush()
	if s.Status.State == Pending {
		return // its create holds life, and nothing else is wrong with it
	}
	if err := e.lock(m.ctx); err != nil {
		return
	}
	defer e.unlock()
	if e.load().Status.State.Ended() {
		m.free(e)
		return
	}
	m.unskew(e)
	m.unskewPolicy(e)
}

func (m *Manager) dropKeys() {
	ctx, cancel := m.storeContext()
	defer cancel()
	if err := m.store.DropKeys(ctx, m.now().Add(-keyLifetime)); err != nil {
		m.log.Warn("outlived idempotency keys could not be dropped", "error", err)
	}
}

// wakeFor makes the sweeper look again when something is due before it would
// look anyway.
func (m *Manager) wakeFor(at time.Time) {
	if at.Sub(m.now()) >= sweepInterval {
		return
	}
	select {
	case m.kick <- struct{}{}:
	default: // it is about to look
	}
}

func (m *Manager) wakeForRecord(s *Sandbox) {
	if s.ExpiresAt != nil {
		m.wakeFor(*s.ExpiresAt)
	}
}
