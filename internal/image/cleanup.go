package image

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"strings"
)

// cleanUp removes what a process that died has left behind: half-unpacked
// layers, leases of imports, and files that were written but never entered into
// the database. Leases of pulls stay until they expire, so that a pull resumes.
func (s *Store) cleanUp(ctx context.Context) error {
	if err := s.dropLeases(ctx, func(group string) bool { return !strings.HasPrefix(group, leasePull) }); err != nil {
		return err
	}
	var half []string
	err := s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			half = append(half, info.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range half {
		if err := s.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("removing half-unpacked layer: %w", err)
		}
	}
	if err := s.touch(ctx); err != nil {
		return err
	}
	_, err = s.db.GarbageCollect(ctx)
	return err
}

// dropLeases ends all leases whose group is wanted and that are not in use.
func (s *Store) dropLeases(ctx context.Context, wanted func(group string) bool) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		if _, active := s.active.Load(l.ID); active || !wanted(l.Labels[labelGroup]) {
			continue
		}
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// touch makes and removes a blob and a layer. The garbage collector compares
// the database with the directories only after a removal, and files that never
// made it into the database leave no trace of one. It also shows right at the
// start whether the store can be written.
func (s *Store) touch(ctx context.Context) error {
	data := []byte("paddock image store")
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, s.content, "touch", bytes.NewReader(data), d); err != nil {
		return err
	}
	if err := s.content.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := s.snapshots.Prepare(ctx, "touch", ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return s.snapshots.Remove(ctx, "touch")
}
