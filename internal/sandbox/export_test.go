package sandbox

import (
	"context"
	"fmt"
)

// SweepNow does now, and to its end, everything that the sweeper would ever do
// at the present time, retries that are not due yet included.
func (m *Manager) SweepNow() {
	now := m.now()
	for _, e := range m.index.all() {
		if e.retry.Load() != 0 {
			m.retry(e)
		}
		if s := e.load(); s.Status.State != Stopping {
			if at, ok := m.dueAt(s); ok && !now.Before(at) {
				m.expire(e)
			}
		}
	}
}

// Await waits until done answers true for the sandbox.
func (m *Manager) Await(ctx context.Context, id string, done func(*Sandbox) bool) (*Sandbox, error) {
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	return m.await(ctx, e, done)
}

// Unfinished reports whether something goes on or is left for the sweeper.
func (m *Manager) Unfinished() bool {
	for _, e := range m.index.all() {
		e.mu.Lock()
		dirty := e.dirty || e.deletion != nil
		e.mu.Unlock()
		if dirty || e.retry.Load() != 0 || e.reaped.Load() || len(e.life) > 0 {
			return true
		}
	}
	return false
}

// Describe says what is unfinished.
func (m *Manager) Describe() (all []string) {
	for _, e := range m.index.all() {
		e.mu.Lock()
		all = append(all, fmt.Sprintf("%s: %+v dirty %v, skewed %v, deletion %v, retry %d, attempts %d, reaped %v, life %d",
			e.id, e.load().Status, e.dirty, e.skewed, e.deletion != nil, e.retry.Load(), e.attempts.Load(), e.reaped.Load(), len(e.life)))
		e.mu.Unlock()
	}
	return all
}

// Admitted returns the counters of admission.
func (m *Manager) Admitted() (pending, live, records int) {
	m.admit.mu.Lock()
	defer m.admit.mu.Unlock()
	return m.admit.pending, m.admit.live, m.admit.records
}

// VolumeUsers returns how many sandboxes count as users of a volume.
func (m *Manager) VolumeUsers(name string) int {
	m.volumes.mu.Lock()
	defer m.volumes.mu.Unlock()
	return m.volumes.users[name]
}

// KeyLifetime is how long idempotency keys live.
const KeyLifetime = keyLifetime
