package sandbox

import (
	"context"
	"fmt"
)

// Truster is implemented by engines that look into connections of sandboxes,
// for rules with conditions on requests and for credentials. The programs of a
// sandbox must trust an authority for that.
type Truster interface {
	// Trust has everything that a sandbox starts from now on trust the
	// authority. It is idempotent, and does next to nothing where that was done
	// before, at create for instance. It fails with an *Error when the sandbox
	// can't be told: it is paused, its processes don't answer, or it has no
	// place for the certificate. A call for a sandbox may not overlap another
	// one of this engine.
	Trust(ctx context.Context, id string) error
}

// CodeNotTrusted is the code of a change that needs the sandbox's trust in an
// authority, which it could not be given.
const CodeNotTrusted = "SANDBOX::AUTHORITY_NOT_TRUSTED"

// HeldPolicy is the policy of a sandbox while nobody can change it.
type HeldPolicy struct {
	// Sandbox is the record, to be read only.
	Sandbox *Sandbox
	// Trust is Truster.Trust for the sandbox.
	Trust func(context.Context) error
}

// HoldPolicy calls use while neither the policy of a sandbox nor its state can
// be changed, so that what is decided by the policy and then stored still holds
// when use returns. Calls for one sandbox take turns with SetPolicy. Its context
// ends with the request and with a deletion, which waits for use. It waits, for
// a while, for a sandbox that is being made, and refuses one that has ended.
func (m *Manager) HoldPolicy(ctx context.Context, id string, use func(context.Context, *HeldPolicy) error) error {
	e, err := m.lookup(id)
	if err != nil {
		return err
	}
	if err := m.ownForPolicy(ctx, e); err != nil {
		return err
	}
	defer e.unlock()
	bounded, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	s, err := e.startWork(cancel)
	if err != nil {
		return err
	}
	defer e.endWork()
	return use(bounded, &HeldPolicy{Sandbox: s, Trust: func(ctx context.Context) error { return m.trust(ctx, id) }})
}

func (m *Manager) trust(ctx context.Context, id string) error {
	t, ok := m.engine.(Truster)
	if !ok {
		return Errorf(KindNotImplemented, CodeNotSupported, "This server's engine cannot look into connections of sandboxes.")
	}
	return t.Trust(ctx, id)
}

// startWork lets a deletion end the work that is about to begin, of a sandbox
// that has not ended. life is held.
func (e *entry) startWork(cancel context.CancelFunc) (*Sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, e.m.graves.notFound(e.id)
	}
	s := e.load()
	if err := refusePolicy(s); err != nil {
		return nil, err
	}
	e.stopWork = cancel
	return s, nil
}

func (e *entry) endWork() {
	e.mu.Lock()
	e.stopWork = nil
	e.mu.Unlock()
}

// refusePolicy says why nothing can be changed any more of what a sandbox
// reaches.
func refusePolicy(s *Sandbox) error {
	switch {
	case s.Status.State == Stopping:
		return errStopping(s)
	case s.Status.State.Ended():
		return &Error{Kind: KindConflict, Code: CodeNotRunning,
			Message: fmt.Sprintf("Sandbox %q is %s (%s) and reaches nothing any more.", s.ID, s.Status.State, s.Status.Reason)}
	}
	return nil
}
