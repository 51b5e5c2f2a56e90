package image

import (
	"context"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Hold says that holder, a sandbox's id, uses img. What is held is neither
// removed nor collected, even if its name is removed. It costs a map access.
// Holding twice is holding once. A KindNotFound error means that img was
// removed since it was looked up.
//
// Holds live in memory only: after a restart each surviving holder says
// HoldDigest, and then HoldsRestored is called.
func (s *Store) Hold(holder string, img *Image) error {
	if s.index.hold(holder, img.Digest) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
		"Image %q was removed while it was about to be used. Try again to pull it.", img.Name)
}

// HoldDigest is Hold for an image of which only the manifest's digest is
// known, with or without a name.
func (s *Store) HoldDigest(holder, digest string) error {
	if s.index.hold(holder, digest) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
		"Image %s is not in the image store.", digest)
}

// Unhold ends everything that holder holds. An image that was removed in the
// meantime, and that nobody else holds, is deleted in the background.
func (s *Store) Unhold(holder string) {
	if s.index.unhold(holder) {
		s.wakeCollector()
	}
}

// InUse reports whether anybody holds the image with this manifest digest.
func (s *Store) InUse(digest string) bool { return s.index.inUse(digest) }

// ByDigest returns the image with this manifest digest, or nil. Only for one
// that is held is it certain to stay.
func (s *Store) ByDigest(digest string) *Image {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	if st := s.index.images[digest]; st != nil {
		return st.image
	}
	return nil
}

// HoldsRestored says that whoever survived the last run of this process holds
// its image again. Until then an image that loses its name keeps its layers,
// because a running sandbox may stand on them, and Prune is refused. Call it
// once, after Open.
func (s *Store) HoldsRestored() {
	s.restored.Store(true)
	s.wakeCollector()
}

func (s *Store) wakeCollector() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// collectInterval is how often leftovers of failed pulls are looked for when
// nothing else triggers it.
const collectInterval = time.Hour

// collector deletes in the background what became unused.
func (s *Store) collector() {
	defer s.work.Done()
	ticker := time.NewTicker(collectInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		case <-ticker.C:
		}
		if err := s.collect(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("collecting unused images failed", "error", err)
		}
	}
}

// collect drops the records of images that nobody holds any more and deletes
// everything that nothing refers to.
func (s *Store) collect(ctx context.Context) error {
	// A collection returns before its directories are deleted if another one
	// has taken that upon itself, so they take turns.
	s.collectMu.Lock()
	defer s.collectMu.Unlock()
	if s.restored.Load() {
		if err := s.dropKept(ctx); err != nil {
			return err
		}
	}
	_, err := s.db.GarbageCollect(ctx)
	return err
}
