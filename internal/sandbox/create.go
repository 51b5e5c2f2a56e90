package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// tokenBytes is the size of a sandbox's secret before base64url: 256 bits can't
// be guessed.
const tokenBytes = 32

// reservedPrefix begins metadata keys that belong to the API (OpenSandbox lifecycle API).
const reservedPrefix = "opensandbox.io/"

// progressInterval is how often at most progress becomes visible.
const progressInterval = 100 * time.Millisecond

// Create checks the spec and that the image exists, records a Pending sandbox
// and returns it; making it goes on in the background, whatever becomes of the
// context. With an idempotency key that was used before it returns that key's
// sandbox as it is now, and replayed is true.
func (m *Manager) Create(ctx context.Context, opts CreateOptions) (s *Sandbox, replayed bool, err error) {
	if opts.Spec == nil {
		return nil, false, Errorf(KindInvalid, CodeInvalidParameter, "A create needs a spec.")
	}
	if err := m.checkSpec(opts.Spec); err != nil {
		return nil, false, err
	}
	if opts.IdempotencyKey != "" {
		return m.createOnce(ctx, opts)
	}
	s, err = m.createNew(ctx, opts.Spec, nil)
	return s, false, err
}

func (m *Manager) checkSpec(spec *Spec) error {
	if t := spec.Timeout; t != nil {
		if *t <= 0 {
			return Errorf(KindInvalid, CodeInvalidParameter, "timeout must be positive, not %s.", *t)
		}
		if m.opts.MaxTimeout > 0 && *t > m.opts.MaxTimeout {
			return Errorf(KindInvalid, CodeInvalidParameter, "timeout is %s; this server allows at most %s.", *t, m.opts.MaxTimeout)
		}
	}
	for k := range spec.Metadata {
		if strings.HasPrefix(k, reservedPrefix) {
			return Errorf(KindInvalid, CodeInvalidMetadataLabel, "metadata key %q: keys that begin with %q are reserved.", k, reservedPrefix)
		}
	}
	if len(spec.Metadata) > maxMetadata {
		return errTooMuchMetadata(len(spec.Metadata))
	}
	return checkLifecycle(spec.Lifecycle)
}

// createNew is the synchronous half of a create. Each step's undo runs when a
// later one fails.
func (m *Manager) createNew(ctx context.Context, asked *Spec, key *IdempotencyKey) (_ *Sandbox, err error) {
	m.gate.RLock()
	if m.closing.Load() {
		m.gate.RUnlock()
		return nil, errClosing()
	}
	m.wg.Add(1)
	m.creates.Add(1)
	m.gate.RUnlock()
	defer m.wg.Done()
	defer m.creates.Done()

	m.counts.creates.Add(1)
	var undo []func()
	defer func() {
		if err == nil {
			return
		}
		m.counts.createFailures.Add(1)
		for _, f := range slices.Backward(undo) {
			f()
		}
	}()

	spec := asked.Clone()
	r, err := m.reserve(ctx, &spec, &undo)
	if err != nil {
		return nil, err
	}
	record := m.newRecord(r, &spec)
	if key != nil {
		key.SandboxID = r.id
		key.CreatedAt = record.CreatedAt
	}
	sctx, cancel := m.storeContext()
	defer cancel()
	if err := m.store.Insert(sctx, record, key); err != nil {
		if errors.Is(err, ErrKeyTaken) {
			return nil, err
		}
		m.withdraw(record)
		return nil, errRecord(err)
	}
	m.startCreate(record, &spec, r.claims, r.local, false)
	return record.Clone(), nil
}

// reservation is what a create holds before it is recorded.
type reservation struct {
	id         string
	entrypoint []string
	claims     []string
	local      bool
}

// reserve takes everything that a create needs before it is recorded, and adds
// the undo of each step to undo, also when it fails.
func (m *Manager) reserve(ctx context.Context, spec *Spec, undo *[]func()) (*reservation, error) {
	if err := m.admit.enter(); err != nil {
		return nil, err
	}
	*undo = append(*undo, m.admit.leavePending, m.admit.leaveLive, m.admit.leaveRecord)

	r := &reservation{claims: claimsOf(spec), entrypoint: spec.Entrypoint}
	// Before Check, so that a volume which Check saw is not removed behind it.
	if err := m.volumes.acquire(ctx, r.claims); err != nil {
		return nil, err
	}
	*undo = append(*undo, func() { m.volumes.release(r.claims) })

	if err := m.engine.Check(ctx, spec); err != nil {
		return nil, err
	}
	image, err := m.engine.Resolve(ctx, spec)
	if err != nil {
		return nil, err
	}
	r.local = image.Local
	if len(r.entrypoint) == 0 && image.Local {
		if r.entrypoint = image.Entrypoint; len(r.entrypoint) == 0 {
			return nil, Errorf(KindInvalid, CodeInvalidEntrypoint, "The image %q has no entrypoint. Give one in the request.", spec.Image)
		}
	}
	if r.id, err = m.engine.Reserve(ctx, spec); err != nil {
		return nil, err
	}
	if _, taken := m.entries.Load(r.id); taken {
		// Nothing of it may be undone: the id is somebody's.
		return nil, fmt.Errorf("the engine reserved the id %q, which is in use", r.id)
	}
	*undo = append(*undo, func() { m.engine.Release(r.id) })
	return r, nil
}

// withdraw makes sure that a record whose write failed is not there: the write
// may have failed late, and a later start would make a sandbox that nobody was
// told of. When the store refuses that as well, the sweeper goes on trying.
func (m *Manager) withdraw(record *Sandbox) {
	ctx, cancel := m.storeContext()
	defer cancel()
	err := m.store.Delete(ctx, record.ID)
	if err == nil {
		return
	}
	m.log.Error("an unfinished record may be left; trying to remove it again", "sandbox", record.ID, "error", err)
	gone := record.Clone()
	m.setStatus(gone, Stopping, ReasonDeleting, "Its create failed and its record is being removed.")
	e := m.newEntry(gone)
	m.admit.adopt(false, false)
	m.entries.Store(e.id, e)
	m.index.add(e)
	e.retryLater()
}

func (m *Manager) newRecord(r *reservation, spec *Spec) *Sandbox {
	now := m.now()
	s := &Sandbox{
		ID:          r.id,
		Spec:        spec.Clone(),
		Entrypoint:  slices.Clone(r.entrypoint),
		CreatedAt:   now,
		Token:       newToken(),
		EgressToken: newToken(),
		BootID:      m.bootID,
		Revision:    1,
	}
	s.Spec.Auth = nil
	if spec.Timeout != nil {
		at := now.Add(*spec.Timeout)
		s.ExpiresAt = &at
	}
	s.Status = Status{State: Pending, Reason: ReasonCreating, Message: "The sandbox is being made.", LastTransitionAt: now}
	if !r.local {
		s.Status.Reason, s.Status.Message = ReasonPulling, fmt.Sprintf("The image %q is being pulled.", spec.Image)
	}
	s.note(now, EventCreated, "", fmt.Sprintf("The sandbox was asked for, from the image %q.", spec.Image))
	if !r.local {
		s.note(now, EventPulling, "", s.Status.Message)
	}
	return s
}

func newToken() string {
	b := make([]byte, tokenBytes)
	rand.Read(b) // never fails: the runtime ends the process instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// startCreate makes the recorded sandbox visible and goes on in the background.
// The caller has counted it in admission and volumes. In a recovery what an
// interrupted create may have left is taken away first.
func (m *Manager) startCreate(record *Sandbox, spec *Spec, claims []string, local, recovering bool) {
	ctx, cancel := context.WithCancel(m.ctx)
	e := m.newEntry(record)
	e.pendingSlot, e.liveSlot, e.claims, e.stopWork = true, true, claims, cancel
	e.life <- struct{}{} // owned by the create before anybody can see it
	m.entries.Store(e.id, e)
	m.index.add(e)
	m.wakeForRecord(record)

	// Not spawn: the record exists, so this must run even while closing; it
	// then leaves the record to the next start. createNew holds m.creates, so
	// Close is still waiting.
	m.wg.Add(1)
	m.creates.Add(1)
	go func() {
		defer m.wg.Done()
		defer m.creates.Done()
		defer e.unlock()
		defer cancel()
		if recovering {
			m.recreate(ctx, e, spec)
			return
		}
		created, err := m.make(ctx, e, spec, local)
		m.settleCreate(ctx, e, created, err, false)
	}()
}

// make calls the engine, within the bounds on time and number.
func (m *Manager) make(ctx context.Context, e *entry, spec *Spec, local bool) (*Created, error) {
	hook := spec.PreStartTimeout()
	limit := m.opts.CreateTimeout + hook
	// A hook may take hours; it must not keep others from being made.
	if local && hook == 0 {
		select {
		case m.creating <- struct{}{}:
			defer func() { <-m.creating }()
		case <-ctx.Done():
			m.engine.Release(e.id) // it was not given to Create
			return nil, ctx.Err()
		}
	}
	if !local {
		limit += pullTimeout
	}
	// From here, not from the request: time spent in the queue is not the
	// sandbox's fault.
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	created, err := m.engine.Create(tctx, CreateRequest{ID: e.id, Spec: spec, Token: e.load().Token, Progress: e.progress(), Note: e.notes()})
	if err != nil && ctx.Err() == nil && tctx.Err() != nil {
		return nil, &Error{Kind: KindUnavailable, Code: CodeStartFailed, Reason: ReasonStartFailed, Err: err,
			Message: fmt.Sprintf("Making the sandbox took longer than %s, which is the limit.", limit)}
	}
	if err == nil && created == nil {
		return nil, errors.New("the engine answered nothing to a create")
	}
	return created, err
}

// progress returns a function that shows an engine's progress in the status
// message. It is not made durable: after a crash the pull starts again.
func (e *entry) progress() func(string) {
	var last time.Time
	return func(message string) {
		now := time.Now()
		if now.Sub(last) < progressInterval {
			return
		}
		last = now
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.gone || e.load().Status.State != Pending {
			return
		}
		e.observe(func(s *Sandbox) { s.Status.Message = message })
	}
}

// notes returns a function that adds an event, which becomes durable with the
// end of the create.
func (e *entry) notes() func(EventKind, string) {
	return func(kind EventKind, message string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.gone {
			e.observe(func(s *Sandbox) { s.note(e.m.now(), kind, "", message) })
		}
	}
}

// settleCreate records how the making of a sandbox ended. life is held.
func (m *Manager) settleCreate(ctx context.Context, e *entry, created *Created, err error, recovering bool) {
	if err == nil {
		err = m.createDone(e, created)
	}
	if err == nil {
		return
	}
	if m.ctx.Err() != nil && ctx.Err() != nil {
		// The Manager closed. The record stays Pending, and the next start
		// finishes it.
		return
	}
	m.createFailed(e, err, recovering)
}

// createDone turns Pending into Running. Readers see it before the write: a
// crash in between finds the sandbox running and says the same again.
func (m *Manager) createDone(e *entry, created *Created) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopWork = nil
	if e.load().Status.State != Pending {
		// A deletion came first and goes on as soon as life is free. It has to
		// know the volumes.
		e.observe(func(s *Sandbox) { s.addCreated(created.CreatedVolumes) })
		return nil
	}
	next := e.load().Clone()
	if n := len(created.CreatedVolumes); n > 0 {
		next.note(m.now(), EventVolumesCreated, "", "Made the volumes "+listed(created.CreatedVolumes)+", which did not exist.")
	}
	m.setStatus(next, Running, ReasonRunning, "")
	at := next.Status.LastTransitionAt
	next.StartedAt = &at
	next.addCreated(created.CreatedVolumes)
	if len(created.Entrypoint) > 0 {
		next.Entrypoint = slices.Clone(created.Entrypoint)
	}
	e.publish(next)
	durable := next.Clone()
	if err := e.write(durable); err != nil {
		return &Error{Kind: KindUnavailable, Code: CodeStartFailed, Reason: ReasonStartFailed, Err: err,
			Message: "The sandbox ran, but that could not be recorded, so it was ended. The server's disk may be full."}
	}
	return nil
}

// createFailed leaves a Failed record with the reason. life is held.
func (m *Manager) createFailed(e *entry, err error, recovering bool) {
	e.mu.Lock()
	e.stopWork = nil
	deleting := e.load().Status.State == Stopping
	e.mu.Unlock()
	if deleting {
		return
	}
	m.counts.createFailures.Add(1)
	failure := AsError(err)
	if failure.Err != nil {
		m.log.Error("a sandbox could not be made", "sandbox", e.id, "image", e.load().Spec.Image, "error", err)
	}
	reason, message := failureStatus(failure)
	if recovering {
		message = "The server was restarted while this sandbox was being made, and making it again failed: " + message
		reason = ReasonInterrupted
	}
	m.end(e, func(s *Sandbox) {
		m.setStatus(s, Failed, reason, message)
		s.Status.Code = failure.Code
		s.StartedAt = nil // it never served: kept for FailedRetention only
	})
}

func failureStatus(err *Error) (reason, message string) {
	message = err.Message
	// What failed inside may name paths of the host. What the image store says
	// of a pull (damaged, no space left) is written for the caller.
	if err.Kind == KindInternal && err.Reason != ReasonImagePullFailed {
		message = "The sandbox could not be made because of an internal error. The server's log has the details."
	}
	if err.Reason != "" {
		return err.Reason, message
	}
	switch err.Code {
	case CodeImagePullFailed, CodeImageAuth, CodeImageNotFound, CodeImageInvalid:
		return ReasonImagePullFailed, message
	case CodeInvalidEntrypoint:
		return ReasonEntrypointFailed, message
	}
	return ReasonStartFailed, message
}
