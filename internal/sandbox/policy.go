package sandbox

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
)

// PolicyEnforcer is implemented by engines that can hold sandboxes to network
// policies. The policy of a spec is in force before Create starts any process of
// the user, and again before Recover returns.
type PolicyEnforcer interface {
	// SetPolicy replaces the policy of a sandbox that is made; nil takes it
	// away. When it returns nil the policy is in force and connections that it
	// forbids are cut; when it fails the old one still is.
	SetPolicy(ctx context.Context, id string, p *policy.Policy) error
	// Denials delivers what policies refused. Some are lost when there are too
	// many. The channel is never closed before Close.
	Denials() <-chan Denial
}

// CodePolicyVersion is the code of a change that expected another version.
const CodePolicyVersion = "SANDBOX::NETWORK_POLICY_CHANGED"

// EnforcesPolicies reports whether sandboxes can have network policies.
func (m *Manager) EnforcesPolicies() bool { return m.enforcer != nil }

// policyWait is how long a change of a policy waits for a sandbox that is being
// made or for another call that owns it.
const policyWait = 30 * time.Second

// SetPolicy changes a sandbox's network policy. edit gets the present one, nil
// for none, and returns the new one in normal form; changes of one sandbox are
// made one after another. version, when it is not negative, must be that of the
// present policy. The change is durable before it is in force; when it can't be
// put in force the old policy stays. An edit that changes nothing is no change.
// It waits, for a while, for a sandbox that is being made.
func (m *Manager) SetPolicy(ctx context.Context, id string, version int64, edit func(*policy.Policy) (*policy.Policy, error)) (*Sandbox, error) {
	if m.enforcer == nil {
		return nil, Errorf(KindNotImplemented, CodeNotSupported, "This server's engine cannot enforce network policies.")
	}
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	if err := m.ownForPolicy(ctx, e); err != nil {
		return nil, err
	}
	defer e.unlock()
	// The change outlives the request, but not a deletion.
	work, cancel := m.engineContext()
	defer cancel()
	old, changed := e.load(), false
	next, err := e.update(func(s *Sandbox) error {
		if err := refusePolicy(s); err != nil {
			return err
		}
		if version >= 0 && version != s.PolicyVersion {
			return Errorf(KindConflict, CodePolicyVersion, "The network policy of sandbox %q has version %d, not %d: somebody changed it. Read it again, then repeat the change.", s.ID, s.PolicyVersion, version)
		}
		p, err := edit(s.Spec.NetworkPolicy.Clone())
		if err != nil {
			return err
		}
		if changed = e.policySkewed || !reflect.DeepEqual(p, s.Spec.NetworkPolicy); !changed {
			return errUnchanged
		}
		s.Spec.NetworkPolicy = p
		s.PolicyVersion++
		s.note(m.now(), EventPolicyChanged, "", describePolicy(p))
		e.stopWork = cancel // mu is held here
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !changed {
		return next.Clone(), nil
	}
	err = m.enforcer.SetPolicy(work, id, next.Spec.NetworkPolicy)
	e.mu.Lock()
	e.stopWork = nil
	if err == nil {
		e.policySkewed = false
	}
	e.mu.Unlock()
	if err != nil {
		m.undoPolicy(e, old.Spec.NetworkPolicy)
		return nil, errPolicy(id, err)
	}
	return next.Clone(), nil
}

// ownForPolicy takes life, within a bound: a create holds it until it is over,
// and each waiting call holds a connection.
func (m *Manager) ownForPolicy(ctx context.Context, e *entry) error {
	if e.tryLock() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, policyWait)
	defer cancel()
	release, err := m.hold()
	if err != nil {
		return err
	}
	defer release()
	err = e.lock(wait)
	if err != nil && ctx.Err() == nil && wait.Err() != nil {
		s := e.load()
		return &Error{Kind: KindUnavailable, Code: CodeInvalidState, RetryAfter: 5 * time.Second,
			Message: fmt.Sprintf("Sandbox %q is %s and its network policy can't be changed at this moment, so nothing was changed. Try again when it is Running.", s.ID, s.Status.State)}
	}
	return err
}

func errPolicy(id string, cause error) error {
	if known := AsError(cause); known.Kind != KindInternal {
		return known
	}
	return fmt.Errorf("putting the network policy of sandbox %s in force: %w", id, cause)
}

// undoPolicy goes back to the policy from before a change that could not be put
// in force. When the server ends in the middle, the next start enforces what is
// recorded; when a deletion came first there is nothing to go back for. life is
// held.
func (m *Manager) undoPolicy(e *entry, old *policy.Policy) {
	err := e.force(func(s *Sandbox) error {
		if s.Status.State == Stopping {
			return errUnchanged
		}
		s.Spec.NetworkPolicy = old.Clone()
		s.PolicyVersion++
		s.note(m.now(), EventPolicyChanged, "", "The change could not be put in force; the policy from before it is.")
		return nil
	})
	if err != nil || m.ctx.Err() != nil {
		return
	}
	m.enforceRecorded(e)
}

// enforceRecorded makes the host agree with the record again: a call that
// failed, by running out of time for instance, may have done its work. While it
// fails the sweeper goes on trying. life is held.
func (m *Manager) enforceRecorded(e *entry) {
	ctx, cancel := m.engineContext()
	defer cancel()
	err := m.enforcer.SetPolicy(ctx, e.id, e.load().Spec.NetworkPolicy)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.policySkewed = err != nil
	if err == nil {
		return
	}
	m.log.Warn("a sandbox's network policy could not be put in force; trying again", "sandbox", e.id, "error", err)
	e.retryLater()
}

// unskewPolicy is enforceRecorded where it is needed. life is held.
func (m *Manager) unskewPolicy(e *entry) {
	e.mu.Lock()
	needed := e.policySkewed && e.load().Status.State != Stopping
	e.mu.Unlock()
	if needed {
		m.enforceRecorded(e)
	}
}

func describePolicy(p *policy.Policy) string {
	if p == nil {
		return "The network policy was taken away."
	}
	return fmt.Sprintf("The network policy is now: %s by default, %d rules.", p.DefaultAction, len(p.Egress))
}
