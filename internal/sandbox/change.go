package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxMetadata bounds how many metadata entries a sandbox has. Each is bounded by
// the label rules, but patches could add them for ever.
const maxMetadata = 256

// accessRenewKey is the extension that asks for renewal on access, in seconds
// (OpenSandbox renew on access).
const accessRenewKey = "access.renew.extend.seconds"

// errUnchanged tells update that there is nothing to write.
var errUnchanged = errors.New("unchanged")

// PatchMetadata sets the keys that have a value and deletes those that have nil
// (a JSON merge patch). Patches at the same time all take effect.
func (m *Manager) PatchMetadata(ctx context.Context, id string, patch map[string]*string) (*Sandbox, error) {
	for k := range patch {
		if strings.HasPrefix(k, reservedPrefix) {
			return nil, Errorf(KindInvalid, CodeReservedMetadata, "metadata key %q: keys that begin with %q are reserved.", k, reservedPrefix)
		}
	}
	return m.change(ctx, id, func(s *Sandbox) error {
		old := maps.Clone(s.Spec.Metadata)
		if s.Spec.Metadata == nil {
			s.Spec.Metadata = make(map[string]string)
		}
		for k, v := range patch {
			if v == nil {
				delete(s.Spec.Metadata, k)
			} else {
				s.Spec.Metadata[k] = *v
			}
		}
		if maps.Equal(old, s.Spec.Metadata) {
			return errUnchanged
		}
		if len(s.Spec.Metadata) > maxMetadata {
			return errTooMuchMetadata(len(s.Spec.Metadata))
		}
		s.note(m.now(), EventMetadataChanged, "", "The metadata of "+listed(slices.Collect(maps.Keys(patch)))+" was changed.")
		return nil
	})
}

func errTooMuchMetadata(n int) *Error {
	return Errorf(KindInvalid, CodeInvalidMetadataLabel, "metadata would have %d entries; at most %d are allowed.", n, maxMetadata)
}

// Renew sets when a sandbox expires; earlier than before is allowed. It is
// refused for a sandbox without expiry, and for one whose removal has begun.
func (m *Manager) Renew(ctx context.Context, id string, at time.Time) (*Sandbox, error) {
	at = at.Round(0).UTC()
	if at.Year() > 9999 {
		return nil, Errorf(KindInvalid, CodeInvalidExpiration, "expiresAt is after the year 9999.")
	}
	return m.change(ctx, id, func(s *Sandbox) error {
		// Under the lock, so that the sweeper sees either this expiry or none
		// of this renewal.
		if now := m.now(); !at.After(now) {
			return Errorf(KindInvalid, CodeInvalidExpiration, "expiresAt %s is not in the future; the server's time is %s.",
				at.Format(time.RFC3339Nano), now.Format(time.RFC3339Nano))
		}
		if s.ExpiresAt == nil {
			return Errorf(KindConflict, CodeInvalidExpiration, "Sandbox %q was created without a timeout and never expires.", id)
		}
		if s.ExpiresAt.Equal(at) {
			return errUnchanged
		}
		s.ExpiresAt = &at
		s.note(m.now(), EventRenewed, "", "The sandbox now expires at "+at.Format(time.RFC3339)+".")
		return nil
	})
}

// RenewOnAccess prolongs a running sandbox that asked for it when it was
// created, by as much as it asked for; it never shortens. At most one call per
// AccessInterval does anything, so it may be called for each request.
func (m *Manager) RenewOnAccess(ctx context.Context, id string) error {
	e, err := m.lookup(id)
	if err != nil {
		return err
	}
	s := e.load()
	asked, ok := s.Spec.Extensions[accessRenewKey]
	if !ok || s.ExpiresAt == nil || s.Status.State != Running {
		return nil
	}
	seconds, err := strconv.ParseInt(asked, 10, 32)
	if err != nil || seconds <= 0 {
		return nil // refused at create; an old record can't be repaired here
	}
	// Since the start and off by one interval, so that 0 means never.
	now := int64(time.Since(m.started) + m.opts.AccessInterval)
	last := e.accessed.Load()
	if now-last < int64(m.opts.AccessInterval) || !e.accessed.CompareAndSwap(last, now) {
		return nil
	}
	_, err = m.change(ctx, id, func(s *Sandbox) error {
		at := m.now().Add(time.Duration(seconds) * time.Second)
		if s.Status.State != Running || s.ExpiresAt == nil || !at.After(*s.ExpiresAt) {
			return errUnchanged
		}
		s.ExpiresAt = &at
		s.note(m.now(), EventRenewed, "", "The sandbox was used and now expires at "+at.Format(time.RFC3339)+".")
		return nil
	})
	return err
}

// listed words names for a message: sorted, and not too many.
func listed(names []string) string {
	const most = 8
	names = slices.Sorted(slices.Values(names))
	more := ""
	if n := len(names) - most; n > 0 {
		names, more = names[:most], fmt.Sprintf(" and %d more", n)
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = strconv.Quote(n)
	}
	return strings.Join(quoted, ", ") + more
}

// change is update for callers: nothing of a sandbox whose removal has begun
// can be changed any more.
func (m *Manager) change(ctx context.Context, id string, apply func(*Sandbox) error) (*Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	s, err := e.update(func(s *Sandbox) error {
		if s.Status.State == Stopping {
			return errStopping(s)
		}
		return apply(s)
	})
	if err != nil {
		return nil, err
	}
	return s.Clone(), nil
}

func errStopping(s *Sandbox) *Error {
	why := "deleted"
	if s.Status.Reason == ReasonExpired {
		why = "removed because it expired"
	}
	return Errorf(KindConflict, CodeInvalidState, "Sandbox %q is being %s.", s.ID, why)
}
