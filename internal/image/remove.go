package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Remove takes a name from the image that has it, for all platforms, or, given
// a manifest's digest, all names of that image. The image itself is deleted
// with its last name, or when it is no longer held.
func (s *Store) Remove(ctx context.Context, reference string) error {
	r, err := s.refs.parse(reference)
	if err != nil {
		return err
	}
	keys := s.index.keys(r)
	if len(keys) == 0 {
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound, "Image %q is not in the image store.", r.name)
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	for _, key := range keys {
		if err := s.unrecord(ctx, key); err != nil {
			return fmt.Errorf("removing image %q: %w", key.name, err)
		}
	}
	if err := s.collect(ctx); err != nil {
		return fmt.Errorf("removing image %q: %w", r.name, err)
	}
	return nil
}

// PruneResult is what a Prune has removed.
type PruneResult struct {
	// Images are the names that are gone, sorted.
	Images []string
	// Bytes were freed on disk.
	Bytes int64
}

// Prune deletes what is left of failed pulls and, with all, every image that
// nobody holds. It is refused with KindUnavailable before HoldsRestored.
func (s *Store) Prune(ctx context.Context, all bool) (PruneResult, error) {
	var result PruneResult
	if !s.restored.Load() {
		return result, sandbox.Errorf(sandbox.KindUnavailable, sandbox.CodeImageInUse,
			"Images cannot be pruned yet: it is not known which of them running sandboxes use. Try again when the server has started.")
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return result, err
	}
	defer end()
	before, err := s.usage(ctx)
	if err != nil {
		return result, err
	}
	if all {
		for _, key := range s.index.unused() {
			if err := s.unrecord(ctx, key); err != nil {
				return result, fmt.Errorf("removing image %q: %w", key.name, err)
			}
			result.Images = append(result.Images, key.name)
		}
	}
	if err := s.dropLeases(ctx, func(string) bool { return true }); err != nil {
		return result, err
	}
	if err := s.collect(ctx); err != nil {
		return result, err
	}
	after, err := s.usage(ctx)
	result.Bytes = max(before-after, 0)
	return result, err
}

// usage is what blobs and layers occupy on disk, parts included.
func (s *Store) usage(ctx context.Context) (int64, error) {
	var total int64
	err := s.content.Walk(ctx, func(info content.Info) error {
		total += info.Size
		return nil
	})
	if err != nil {
		return 0, err
	}
	parts, err := s.content.ListStatuses(ctx)
	if err != nil {
		return 0, err
	}
	for _, part := range parts {
		total += part.Offset
	}
	var layers []string
	err = s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			layers = append(layers, info.Name)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, layer := range layers {
		usage, err := s.snapshots.Usage(ctx, layer)
		if err != nil {
			return 0, err
		}
		total += usage.Size
	}
	return total, nil
}
