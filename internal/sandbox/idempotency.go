package sandbox

import (
	"context"
	"errors"
	"sync"
)

// maxKeyLength bounds an idempotency key, in bytes.
const maxKeyLength = 255

// flights are the creates with an idempotency key that are not recorded yet.
// Once recorded, the store knows the key.
type flights struct {
	mu sync.Mutex
	by map[string]*flight
}

type flight struct {
	bodyHash string
	done     chan struct{}
	err      error // set before done is closed
}

func (f *flights) init() { f.by = make(map[string]*flight) }

// join returns the flight of a key, and whether the caller has to fly it.
func (f *flights) join(name, bodyHash string) (fl *flight, leader bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.by[name]; ok {
		return fl, false
	}
	fl = &flight{bodyHash: bodyHash, done: make(chan struct{})}
	f.by[name] = fl
	return fl, true
}

func (f *flights) land(name string, fl *flight, err error) {
	f.mu.Lock()
	delete(f.by, name)
	f.mu.Unlock()
	fl.err = err
	close(fl.done)
}

// createOnce makes sure that one key makes one sandbox, however often and from
// however many connections it comes.
func (m *Manager) createOnce(ctx context.Context, opts CreateOptions) (*Sandbox, bool, error) {
	name := opts.IdempotencyKey
	if len(name) > maxKeyLength {
		return nil, false, Errorf(KindInvalid, CodeInvalidParameter, "Idempotency-Key is %d bytes long; at most %d are allowed.", len(name), maxKeyLength)
	}
	for {
		fl, leader := m.flights.join(name, opts.BodyHash)
		if leader {
			s, replayed, err := m.createKeyed(ctx, opts)
			m.flights.land(name, fl, err)
			return s, replayed, err
		}
		if fl.bodyHash != opts.BodyHash {
			return nil, false, errKeyReused(name)
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		// A leader whose client went away says nothing about this request;
		// after any other failure all who waited get it, as one would have.
		if fl.err != nil && !errors.Is(fl.err, context.Canceled) && !errors.Is(fl.err, context.DeadlineExceeded) {
			return nil, false, fl.err
		}
	}
}

func (m *Manager) createKeyed(ctx context.Context, opts CreateOptions) (*Sandbox, bool, error) {
	key, err := m.store.Key(ctx, opts.IdempotencyKey)
	if err != nil {
		return nil, false, errRecord(err)
	}
	if oldest := m.now().Add(-keyLifetime); key != nil && key.CreatedAt.Before(oldest) {
		if err := m.store.DropKeys(ctx, oldest); err != nil {
			return nil, false, errRecord(err)
		}
		key = nil
	}
	if key == nil {
		s, err := m.createNew(ctx, opts.Spec, &IdempotencyKey{Name: opts.IdempotencyKey, BodyHash: opts.BodyHash})
		return s, false, err
	}
	if key.BodyHash != opts.BodyHash {
		return nil, false, errKeyReused(opts.IdempotencyKey)
	}
	s, err := m.Get(key.SandboxID)
	return s, err == nil, err
}

func errKeyReused(name string) *Error {
	return Errorf(KindConflict, CodeIdempotencyConflict, "The Idempotency-Key %q was used with a different request. Use a new key for a new request.", name)
}
