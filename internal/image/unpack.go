package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// unpack unpacks an image's layers, bottom first, each when it is ready. A
// layer is a committed snapshot whose name is its chain id, so that images
// share it. It becomes one only when it is complete and on disk.
func (s *Store) unpack(ctx context.Context, f *found, ready []chan struct{}, m *meter) error {
	diffs := f.config.RootFS.DiffIDs
	chains := identity.ChainIDs(slices.Clone(diffs))
	limits := newLimits(s)
	parent := ""
	for i, desc := range f.manifest.Layers {
		select {
		case <-ready[i]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		chain := chains[i].String()
		if err := s.unpackLayer(ctx, desc, diffs[i], chain, parent, limits); err != nil {
			return fmt.Errorf("unpacking layer %s: %w", desc.Digest, err)
		}
		m.layerUnpacked()
		parent = chain
	}
	return nil
}

func (s *Store) unpackLayer(ctx context.Context, desc ocispec.Descriptor, diff digest.Digest, chain, parent string, l *limits) error {
	unlock, err := s.chainLock.lock(ctx, chain)
	if err != nil {
		return err
	}
	defer unlock()

	// The snapshotter says AlreadyExists if it has the layer that the label
	// names, and adds it to our lease in the same transaction.
	key := snapshots.UnpackKeyPrefix + " " + rand.Text()
	mounts, err := s.snapshots.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: chain,
	}))
	if errdefs.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return err
	}
	err = s.fill(ctx, desc, diff, mounts, l)
	if err == nil {
		err = s.snapshots.Commit(ctx, chain, key)
	}
	if err != nil {
		// Also when the pull is cancelled.
		cleanup := context.WithoutCancel(ctx)
		if removeErr := s.snapshots.Remove(cleanup, key); removeErr != nil && !errdefs.IsNotFound(removeErr) {
			err = errors.Join(err, removeErr)
		}
		s.wakeCollector()
	}
	return err
}

// fill unpacks a layer's blob into a prepared snapshot and checks that the
// content is what the image's config promises.
func (s *Store) fill(ctx context.Context, desc ocispec.Descriptor, diff digest.Digest, mounts []mount.Mount, l *limits) error {
	dir, parents, err := target(mounts)
	if err != nil {
		return err
	}
	blob, err := s.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	got, err := applyLayer(ctx, blob, dir, parents, diff.Algorithm(), l)
	if err != nil {
		return err
	}
	if got != diff {
		return corruptf(nil, "layer %s unpacks to other content than the image's config promises", desc.Digest)
	}
	return nil
}

// target reads from a snapshot's mounts where its own files go and where those
// of its parents are, nearest first. Nothing is ever mounted.
func target(mounts []mount.Mount) (dir string, parents []string, err error) {
	if len(mounts) != 1 {
		return "", nil, fmt.Errorf("snapshot has %d mounts, not one", len(mounts))
	}
	if mounts[0].Type == "bind" {
		return mounts[0].Source, nil, nil
	}
	for _, option := range mounts[0].Options {
		if v, ok := strings.CutPrefix(option, "upperdir="); ok {
			dir = v
		} else if v, ok := strings.CutPrefix(option, "lowerdir="); ok {
			parents = strings.Split(v, ":")
		}
	}
	if dir == "" {
		return "", nil, fmt.Errorf("snapshot of type %q has no directory of its own", mounts[0].Type)
	}
	return dir, parents, nil
}
