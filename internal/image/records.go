package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Records are containerd's images, the roots of its garbage collector. Their
// names here are one of
//
//	name <os>/<arch> <reference>	→ the manifest that the reference means
//	kept <digest>			→ a manifest in use that has no name
//
// with spaces, which no reference contains.
const (
	recordName = "name"
	recordKept = "kept"
)

const (
	// labelSource is what a name resolved to; see named.source.
	labelSource = "paddock/source"
	// labelLayerDir is where the overlay snapshotter tells a layer's directory
	// (containerd's plugins/snapshots/overlay, WithUpperdirLabel).
	labelLayerDir = "containerd.io/snapshot/overlay.upperdir"
)

func (k nameKey) record() string {
	return strings.Join([]string{recordName, formatPlatform(k.platform), k.name}, " ")
}

func keptRecord(digest string) string { return recordKept + " " + digest }

func parseRecord(name string) (key nameKey, kept, ok bool) {
	parts := strings.Split(name, " ")
	switch {
	case len(parts) == 2 && parts[0] == recordKept:
		return nameKey{}, true, true
	case len(parts) == 3 && parts[0] == recordName:
		os, arch, found := strings.Cut(parts[1], "/")
		return nameKey{name: parts[2], platform: sandbox.Platform{OS: os, Arch: arch}}, false, found
	}
	return nameKey{}, false, false
}

// load fills the index from the database. An image whose parts are missing is
// left out, so that it is pulled again.
func (s *Store) load(ctx context.Context) error {
	records, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	for _, record := range records {
		key, kept, ok := parseRecord(record.Name)
		if !ok {
			s.log.Warn("image store holds an unknown record", "record", record.Name)
			continue
		}
		img, err := s.read(ctx, key.name, record.Target)
		if err != nil {
			s.log.Error("image is damaged and will be pulled again when needed", "image", record.Name, "error", err)
			continue
		}
		if img.CreatedAt.IsZero() {
			img.CreatedAt = record.CreatedAt
		}
		if kept {
			s.index.addKept(img)
			continue
		}
		img.Platform = key.platform
		s.index.setName(key, &named{image: img, source: record.Labels[labelSource]})
	}
	return nil
}

// read makes an Image from what the store has of a manifest.
func (s *Store) read(ctx context.Context, name string, target ocispec.Descriptor) (*Image, error) {
	manifest, err := readManifest(ctx, s.content, target)
	if err != nil {
		return nil, err
	}
	config, err := readConfig(ctx, s.content, manifest)
	if err != nil {
		return nil, err
	}
	img := &Image{
		Name:     name,
		Digest:   target.Digest.String(),
		Platform: sandbox.Platform{OS: config.OS, Arch: config.Architecture},
		Config:   runConfig(config.Config),
		target:   target,
	}
	if config.Created != nil {
		img.CreatedAt = *config.Created
	}
	for _, chain := range identity.ChainIDs(slices.Clone(config.RootFS.DiffIDs)) {
		dir, size, err := s.layer(ctx, chain)
		if err != nil {
			return nil, err
		}
		img.LayerDirs = append(img.LayerDirs, dir)
		img.SizeBytes += size
	}
	slices.Reverse(img.LayerDirs)
	return img, nil
}

// layer returns the directory of an unpacked layer and what it occupies.
func (s *Store) layer(ctx context.Context, chain digest.Digest) (dir string, size int64, err error) {
	info, err := s.snapshots.Stat(ctx, chain.String())
	if err != nil {
		return "", 0, fmt.Errorf("layer %s: %w", chain, err)
	}
	usage, err := s.snapshots.Usage(ctx, chain.String())
	if err != nil {
		return "", 0, fmt.Errorf("layer %s: %w", chain, err)
	}
	dir = info.Labels[labelLayerDir]
	if _, err := os.Stat(dir); err != nil {
		return "", 0, fmt.Errorf("layer %s: %w", chain, err)
	}
	return dir, usage.Size, nil
}

func runConfig(c ocispec.ImageConfig) Config {
	return Config{
		Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Labels: c.Labels,
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)),
		Volumes:      slices.Sorted(maps.Keys(c.Volumes)),
		StopSignal:   c.StopSignal,
	}
}

// record gives a complete image its name, durably. What the name meant before
// is removed if nobody uses it.
func (s *Store) record(ctx context.Context, key nameKey, source digest.Digest, target ocispec.Descriptor) (*Image, error) {
	img, err := s.read(ctx, key.name, target)
	if err != nil {
		return nil, err
	}
	img.Platform = key.platform
	if img.CreatedAt.IsZero() {
		img.CreatedAt = time.Now()
	}

	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	record := images.Image{
		Name: key.record(), Target: target,
		Labels: map[string]string{labelSource: source.String()},
	}
	old, err := s.images.Get(ctx, record.Name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = s.images.Create(ctx, record)
	case err == nil:
		// The old manifest needs another record before it loses this one, in
		// case it is in use.
		if old.Target.Digest != target.Digest {
			if err := s.keep(ctx, old.Target); err != nil {
				return nil, err
			}
		}
		_, err = s.images.Update(ctx, record)
	}
	if err != nil {
		return nil, fmt.Errorf("recording image %q: %w", key.name, err)
	}
	s.index.setName(key, &named{image: img, source: source.String()})
	s.wakeCollector()
	return img, nil
}

// unrecord takes a name away, durably.
func (s *Store) unrecord(ctx context.Context, key nameKey) error {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	old, err := s.images.Get(ctx, key.record())
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	if err := s.keep(ctx, old.Target); err != nil {
		return err
	}
	if err := s.images.Delete(ctx, old.Name); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	s.index.dropName(key)
	return nil
}

// keep makes the record of a manifest without a name. Every image that loses a
// name passes through this state: whether it is really in use is decided by
// dropKept alone, in one place and under the index's lock.
func (s *Store) keep(ctx context.Context, target ocispec.Descriptor) error {
	_, err := s.images.Create(ctx, images.Image{Name: keptRecord(target.Digest.String()), Target: target})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("keeping image %s: %w", target.Digest, err)
	}
	return nil
}

// dropKept deletes the records without a name of images that nobody holds.
func (s *Store) dropKept(ctx context.Context) error {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	digests := s.index.releaseKept()
	var errs []error
	for _, digest := range digests {
		if err := s.images.Delete(ctx, keptRecord(digest)); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// maxDocument bounds manifests, indexes and configs. It is the limit that
// registries and containerd use for manifests.
const maxDocument = 4 << 20

func readDocument(ctx context.Context, p content.Provider, d ocispec.Descriptor, into any) error {
	if d.Size > maxDocument {
		return corruptf(nil, "its %s is larger than %d bytes", d.MediaType, maxDocument)
	}
	data, err := content.ReadBlob(ctx, p, d)
	if err != nil {
		return err
	}
	if len(data) > maxDocument {
		return corruptf(nil, "its %s is larger than %d bytes", d.MediaType, maxDocument)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return corruptf(err, "its %s is not valid JSON", d.MediaType)
	}
	return nil
}
