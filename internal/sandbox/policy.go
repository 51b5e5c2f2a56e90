package sandbox

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
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

// Denial is something that a sandbox's policy refused.
type Denial struct {
	ID string
	At time.Time
	// Protocol is "dns", "tls", "http", "http2", "tcp", "udp", "icmp", or the
	// number of another one above IP.
	Protocol string
	// Name is what was asked for, if it was a name; by the sandbox's word.
	Name string
	// To is where it was to go; not valid for a name that was not looked up.
	To netip.AddrPort
	// Rule is the index of the rule that decided, -1 for the default action or
	// when none has a say.
	Rule int
	// Target is that rule's.
	Target string
	Reason string
	// Process is the program that tried, as "curl[17]", where it is known; by
	// the sandbox's word.
	Process string
	// Audit is set when it was let through all the same.
	Audit bool
}

// subject is what denials are counted by.
func (d *Denial) subject() string {
	to := d.Name
	if to == "" {
		to = d.To.String()
	} else if d.To.IsValid() {
		to = fmt.Sprintf("%s:%d", d.Name, d.To.Port())
	}
	return d.Protocol + " " + to
}

// describe words a denial for its event.
func (d *Denial) describe() string {
	what := "Denied"
	if d.Audit {
		what = "Would be denied"
	}
	what += ": " + d.subject()
	if d.Name != "" && d.To.IsValid() {
		what += fmt.Sprintf(" (%s)", d.To.Addr())
	}
	if d.Process != "" {
		what += " by " + d.Process
	}
	by := "the default action"
	if d.Rule >= 0 {
		by = fmt.Sprintf("rule %d", d.Rule)
		if d.Target != "" {
			by += fmt.Sprintf(" (%s)", d.Target)
		}
	}
	what += ", by " + by
	if d.Reason != "" {
		what += ": " + d.Reason
	}
	return what + "."
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
	if m.held.Add(1) > maxHeld {
		m.held.Add(-1)
		return errHeld()
	}
	defer m.held.Add(-1)
	err := e.lock(wait)
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

const (
	// denialInterval is how often denials become events.
	denialInterval = time.Second
	// maxDenialSubjects bounds how many subjects of one sandbox are told apart
	// within that time.
	maxDenialSubjects = 32
	// maxDenialSandboxes bounds those whose denials are counted within it.
	maxDenialSandboxes = 4096
)

// tally is what one sandbox was denied since the last events.
type tally struct {
	last   map[string]Denial
	count  map[string]int
	others int
}

func (t *tally) add(d Denial) {
	subject := d.subject()
	if _, known := t.last[subject]; !known && len(t.last) >= maxDenialSubjects {
		t.others++
		return
	}
	if d.Process == "" {
		// It is not found each time, nor looked for.
		d.Process = t.last[subject].Process
	}
	t.last[subject] = d
	t.count[subject]++
}

// denialProtocols are those that are counted each for itself.
var denialProtocols = [...]string{"dns", "tls", "http", "http2", "tcp", "udp", "icmp"}

func (c *counters) denial(protocol string) {
	i := slices.Index(denialProtocols[:], protocol)
	if i < 0 {
		i = len(denialProtocols)
	}
	c.denials[i].Add(1)
}

func (c *counters) denied() map[string]int64 {
	all := make(map[string]int64, len(c.denials))
	for i, p := range denialProtocols {
		all[p] = c.denials[i].Load()
	}
	all["other"] = c.denials[len(denialProtocols)].Load()
	return all
}

// watchDenials turns denials into events, a few per second and sandbox at most:
// a sandbox can make any number of them.
func (m *Manager) watchDenials(denials <-chan Denial) {
	tick := time.NewTicker(denialInterval)
	defer tick.Stop()
	waiting := make(map[string]*tally)
	for {
		select {
		case d, ok := <-denials:
			if !ok {
				return
			}
			m.counts.denial(d.Protocol)
			t := waiting[d.ID]
			if t == nil && len(waiting) < maxDenialSandboxes {
				t = &tally{last: map[string]Denial{}, count: map[string]int{}}
				waiting[d.ID] = t
			}
			if t != nil {
				t.add(d)
			}
		case <-tick.C:
			for id, t := range waiting {
				m.noteDenials(id, t)
			}
			clear(waiting)
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) noteDenials(id string, t *tally) {
	e, err := m.lookup(id)
	if err != nil {
		return // deleted meanwhile
	}
	subjects := slices.SortedFunc(maps.Keys(t.last), func(a, b string) int { return t.last[a].At.Compare(t.last[b].At) })
	fresh, ok := e.addDenials(t, subjects)
	if !ok {
		return
	}
	for _, subject := range subjects {
		d := t.last[subject]
		// Once for each destination, not each time: a program that is denied
		// something tends to try for ever.
		if slices.Contains(fresh, subject) {
			m.log.Info("a network policy refused something", "sandbox", id, "what", subject, "rule", d.Rule, "audit", d.Audit)
		}
		if m.opts.OnDenial != nil {
			m.opts.OnDenial(d, t.count[subject])
		}
	}
}

// addDenials makes events of a tally and says which of them are not in the list
// yet. ok is false when the sandbox is gone.
func (e *entry) addDenials(t *tally, subjects []string) (fresh []string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, false
	}
	e.observe(func(s *Sandbox) {
		add := func(ev Event, count int) {
			var first bool
			ev.Kind = EventDenied
			if s.Events, first = s.Events.addMany(ev, count); first {
				fresh = append(fresh, ev.Subject)
			}
		}
		for _, subject := range subjects {
			d := t.last[subject]
			add(Event{At: e.m.between(s.CreatedAt, d.At), Subject: subject, Message: d.describe()}, t.count[subject])
		}
		if t.others > 0 {
			add(Event{At: e.m.now(), Subject: "others", Message: "Denied: more destinations than are listed one by one."}, t.others)
		}
	})
	e.writeSoon()
	return fresh, true
}
