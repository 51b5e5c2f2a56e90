package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
)

// volumeUse counts which named volumes sandboxes use, so that a volume is not
// removed under one, nor used while it is being removed.
type volumeUse struct {
	mu       sync.Mutex
	users    map[string]int
	removing map[string]chan struct{} // closed when the removal is over
}

func (v *volumeUse) init() {
	v.users = make(map[string]int)
	v.removing = make(map[string]chan struct{})
}

// acquire counts one more user of each name; it waits for removals to end.
func (v *volumeUse) acquire(ctx context.Context, names []string) error {
	for {
		busy := v.tryAcquire(names)
		if busy == nil {
			return nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *volumeUse) tryAcquire(names []string) (busy chan struct{}) {
	if len(names) == 0 {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range names {
		if c, ok := v.removing[n]; ok {
			return c
		}
	}
	for _, n := range names {
		v.users[n]++
	}
	return nil
}

func (v *volumeUse) release(names []string) {
	if len(names) == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range names {
		if v.users[n]--; v.users[n] <= 0 {
			delete(v.users, n)
		}
	}
}

// beginRemove keeps new users off a volume until the returned function is
// called. It answers false when the volume is used or already being removed.
func (v *volumeUse) beginRemove(name string) (end func(), ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.users[name] > 0 {
		return nil, false
	}
	if _, busy := v.removing[name]; busy {
		return nil, false
	}
	c := make(chan struct{})
	v.removing[name] = c
	return func() {
		v.mu.Lock()
		delete(v.removing, name)
		v.mu.Unlock()
		close(c)
	}, true
}

// claimsOf returns the named volumes of a spec, each once.
func claimsOf(spec *Spec) []string {
	var names []string
	for _, v := range spec.Volumes {
		if v.Claim != "" && !slices.Contains(names, v.Claim) {
			names = append(names, v.Claim)
		}
	}
	return names
}

// releaseClaims stops counting a sandbox as a user of its volumes. Call it when
// the engine holds nothing of the sandbox any more.
func (m *Manager) releaseClaims(e *entry) {
	e.mu.Lock()
	claims := e.claims
	e.claims = nil
	e.mu.Unlock()
	m.volumes.release(claims)
}

// removeOwnVolumes removes the volumes that the sandbox's create made and that
// were to go with it, unless another sandbox uses them by now. life is held.
func (m *Manager) removeOwnVolumes(ctx context.Context, e *entry) error {
	m.releaseClaims(e)
	s := e.load()
	engine, ok := m.engine.(Volumes)
	if !ok || len(s.CreatedVolumes) == 0 {
		return nil
	}
	for _, v := range s.Spec.Volumes {
		if !v.DeleteWithSandbox || !slices.Contains(s.CreatedVolumes, v.Claim) {
			continue
		}
		end, ok := m.volumes.beginRemove(v.Claim)
		if !ok {
			continue
		}
		err := engine.RemoveVolume(ctx, v.Claim)
		end()
		if err != nil && !isNotFound(err) {
			return err
		}
		// So that another attempt does not take a volume of the same name that
		// somebody made meanwhile.
		e.mu.Lock()
		e.observe(func(s *Sandbox) {
			s.CreatedVolumes = slices.DeleteFunc(slices.Clone(s.CreatedVolumes), func(n string) bool { return n == v.Claim })
		})
		e.mu.Unlock()
	}
	return nil
}

// VolumeMaker is implemented by engines that know, also after a crash, for which
// sandbox a named volume was made.
type VolumeMaker interface {
	// MadeVolume returns the id of that sandbox; empty when there is no such
	// volume or it is not known.
	MadeVolume(name string) string
}

// claimMade adds to a record the volumes that its create made and that go with
// it, should a crash have come before they were recorded.
func (m *Manager) claimMade(s *Sandbox) {
	engine, ok := m.engine.(VolumeMaker)
	if !ok {
		return
	}
	for _, v := range s.Spec.Volumes {
		if v.DeleteWithSandbox && v.Claim != "" && engine.MadeVolume(v.Claim) == s.ID {
			s.addCreated([]string{v.Claim})
		}
	}
}

// addCreated adds volumes to those that the sandbox's create, or one before it
// that a crash interrupted, made.
func (s *Sandbox) addCreated(names []string) {
	all := slices.Clone(s.CreatedVolumes)
	for _, n := range names {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	s.CreatedVolumes = all
}

// Volumes lists the named volumes.
func (m *Manager) Volumes(ctx context.Context) ([]VolumeInfo, error) {
	engine, ok := m.engine.(Volumes)
	if !ok {
		return nil, errNoVolumes()
	}
	return engine.ListVolumes(ctx)
}

// RemoveVolume removes a named volume and its content. A volume that a sandbox
// uses stays; the error names the sandboxes.
func (m *Manager) RemoveVolume(ctx context.Context, name string) error {
	engine, ok := m.engine.(Volumes)
	if !ok {
		return errNoVolumes()
	}
	end, ok := m.volumes.beginRemove(name)
	if !ok {
		return m.errVolumeInUse(name)
	}
	defer end()
	return engine.RemoveVolume(ctx, name)
}

func (m *Manager) errVolumeInUse(name string) *Error {
	const most = 5
	var ids []string
	for _, e := range m.index.all() {
		e.mu.Lock()
		if slices.Contains(e.claims, name) {
			ids = append(ids, e.id)
		}
		e.mu.Unlock()
	}
	slices.Sort(ids)
	who := "a sandbox that is being created, or it is being removed already"
	if len(ids) > most {
		who = strings.Join(ids[:most], ", ") + " and others"
	} else if len(ids) > 0 {
		who = strings.Join(ids, ", ")
	}
	return Errorf(KindConflict, CodeVolumeInUse, "The volume %q is in use by %s. Delete what uses it first.", name, who)
}

func errNoVolumes() *Error {
	return Errorf(KindNotImplemented, CodeNotSupported, "This server's engine keeps no named volumes.")
}

func isNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindNotFound
}
