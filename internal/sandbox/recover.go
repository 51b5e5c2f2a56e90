package sandbox

import (
	"context"
	"fmt"
)

// recover brings the records and the host together after a start, both ways:
// the engine removes what no record names, and each record is settled by what
// was found of it. Only decisions are made here; work on the host goes on in
// the background, so that a start is short however much there is.
func (m *Manager) recover(ctx context.Context) error {
	records, err := m.store.All(ctx)
	if err != nil {
		return fmt.Errorf("loading the records of sandboxes: %w", err)
	}
	given := make([]*Sandbox, len(records))
	for i, r := range records {
		given[i] = r.Clone()
	}
	found, err := m.engine.Recover(ctx, given)
	if err != nil {
		return fmt.Errorf("adopting the sandboxes of an earlier run: %w", err)
	}
	for _, r := range records {
		m.settle(r, found[r.ID])
	}
	return nil
}

// settle decides about one recorded sandbox.
func (m *Manager) settle(r *Sandbox, found Found) {
	state := r.Status.State
	if r.EgressToken == "" {
		// Recorded by a version without policies. It is written with the next
		// change; until then each start makes another.
		r.EgressToken = newToken()
	}
	m.claimMade(r)
	claims := claimsOf(&r.Spec)
	m.admit.adopt(state == Pending, !state.Ended())
	// Nothing is being removed yet, so this does not wait.
	_ = m.volumes.tryAcquire(claims)

	alive := found == FoundRunning || found == FoundPaused
	at, ok := m.dueAt(r)
	due := ok && !m.now().Before(at)
	if state == Pending && !alive && !due {
		spec := r.Spec.Clone()
		r.BootID = m.bootID
		m.startCreate(r, &spec, claims, false, true)
		return
	}
	e := m.newEntry(r)
	e.pendingSlot, e.liveSlot, e.claims = state == Pending, !state.Ended(), claims
	m.entries.Store(e.id, e)
	m.index.add(e)
	switch {
	case state == Stopping, state.Ended():
		e.retry.Store(1) // the first sweep finishes it
	case due: // the first sweep removes it
	case !alive:
		m.lose(e)
	default:
		m.restored(e, found)
	}
}

// restored goes on with a sandbox that was found alive.
func (m *Manager) restored(e *entry, found Found) {
	e.mu.Lock()
	e.observe(func(s *Sandbox) {
		s.note(m.now(), EventRestored, "", "The server was restarted and goes on with the sandbox.")
	})
	// Not now: a start must be short, however many there are.
	e.writeSoon()
	e.mu.Unlock()
	switch state := e.load().Status.State; {
	case found == FoundPaused && state != Paused:
		m.adopt(e, Paused, ReasonPaused)
	case found == FoundRunning && state != Running:
		m.adopt(e, Running, ReasonRunning)
	}
}

// adopt records the state in which a sandbox was found.
func (m *Manager) adopt(e *entry, state State, reason string) {
	_ = e.force(func(s *Sandbox) error {
		m.setStatus(s, state, reason, "")
		if s.StartedAt == nil {
			at := s.Status.LastTransitionAt
			s.StartedAt = &at
		}
		return nil
	})
}

// lose records that a sandbox which had been running is not there any more.
func (m *Manager) lose(e *entry) {
	reason, message := ReasonExecdLost, "The sandbox died while the server was not running."
	if boot := e.load().BootID; boot != "" && m.bootID != "" && boot != m.bootID {
		reason, message = ReasonHostRebooted, "The host was restarted, and the sandbox with everything in it was lost."
	}
	m.log.Warn("a recorded sandbox was not found on the host", "sandbox", e.id, "reason", reason)
	_ = e.force(func(s *Sandbox) error {
		m.setStatus(s, Failed, reason, message)
		at := s.Status.LastTransitionAt
		s.EndedAt = &at
		return nil
	})
	e.retry.Store(1) // the first sweep frees what is left of it
}

// recreate finishes a create that a crash interrupted. Nothing of the sandbox
// runs; what is left of the first attempt is removed before the second, so that
// there are never two. life is held.
func (m *Manager) recreate(ctx context.Context, e *entry, spec *Spec) {
	created, err := m.makeAgain(ctx, e, spec)
	m.settleCreate(ctx, e, created, err, true)
}

func (m *Manager) makeAgain(ctx context.Context, e *entry, spec *Spec) (*Created, error) {
	image, err := m.clearAndResolve(ctx, e, spec)
	if err != nil {
		return nil, err
	}
	return m.make(ctx, e, spec, image.Local)
}

func (m *Manager) clearAndResolve(ctx context.Context, e *entry, spec *Spec) (*ResolvedImage, error) {
	select {
	case m.reaping <- struct{}{}: // there may be many at once
		defer func() { <-m.reaping }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if err := m.engine.Stop(sctx, e.id); err != nil {
		return nil, err
	}
	return m.engine.Resolve(sctx, spec)
}
