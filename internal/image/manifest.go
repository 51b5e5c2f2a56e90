package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// maxLayers is what overlayfs can stack (OVL_MAX_STACK in the kernel's
// fs/overlayfs/params.h).
const maxLayers = 500

// found is one image of one platform whose manifest and config are in the
// content store and make sense.
type found struct {
	// source is what the name resolved to: an index, or the manifest itself.
	source   digest.Digest
	target   ocispec.Descriptor
	manifest ocispec.Manifest
	config   ocispec.Image
}

// small brings a document (a manifest, an index or a config) into the content
// store.
type small func(context.Context, ocispec.Descriptor) error

// find goes from whatever a name resolved to, to the image for a platform.
func (s *Store) find(ctx context.Context, top ocispec.Descriptor, p sandbox.Platform, fetch small) (*found, error) {
	top, err := bare(top)
	if err != nil {
		return nil, err
	}
	f := &found{source: top.Digest, target: top}
	if images.IsIndexType(top.MediaType) {
		var index ocispec.Index
		if err := s.document(ctx, top, fetch, &index); err != nil {
			return nil, err
		}
		chosen, err := choose(index, p)
		if err != nil {
			return nil, err
		}
		if f.target, err = bare(chosen); err != nil {
			return nil, err
		}
	}
	if !images.IsManifestType(f.target.MediaType) {
		return nil, notAnImage(f.target.MediaType)
	}
	if err := s.document(ctx, f.target, fetch, &struct{}{}); err != nil {
		return nil, err
	}
	if f.manifest, err = readManifest(ctx, s.content, f.target); err != nil {
		return nil, err
	}
	if err := s.document(ctx, f.manifest.Config, fetch, &struct{}{}); err != nil {
		return nil, err
	}
	if f.config, err = readConfig(ctx, s.content, f.manifest); err != nil {
		return nil, err
	}
	if has := f.config.Platform; !matcher(p).match(has) {
		return nil, &wrongPlatformError{want: formatPlatform(p), has: platforms.Format(platforms.Normalize(has))}
	}
	return f, nil
}

func (s *Store) document(ctx context.Context, d ocispec.Descriptor, fetch small, into any) error {
	if d.Size <= 0 || d.Size > maxDocument {
		return corruptf(nil, "its %s claims to be %d bytes long; 1 to %d are allowed", d.MediaType, d.Size, maxDocument)
	}
	if err := fetch(ctx, d); err != nil {
		return err
	}
	return readDocument(ctx, s.content, d, into)
}

// bare strips a descriptor of everything that an image's author could use to
// steer a download: inline data, other addresses, names.
func bare(d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, corruptf(err, "it contains an invalid digest")
	}
	if d.Size < 0 {
		return ocispec.Descriptor{}, corruptf(nil, "it contains a negative size")
	}
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

func notAnImage(mediaType string) error {
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
		"The reference does not name a container image, but something of type %.100q. Check image.uri.", mediaType)
}

// readManifest reads a manifest from the content store. The descriptors in it
// are bare.
func readManifest(ctx context.Context, p content.Provider, d ocispec.Descriptor) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := readDocument(ctx, p, d, &m); err != nil {
		return m, err
	}
	var err error
	if !images.IsConfigType(m.Config.MediaType) {
		return m, notAnImage(m.Config.MediaType)
	}
	if m.Config, err = bare(m.Config); err != nil {
		return m, err
	}
	if n := len(m.Layers); n == 0 || n > maxLayers {
		return m, corruptf(nil, "it has %d layers; 1 to %d are allowed", n, maxLayers)
	}
	for i := range m.Layers {
		if mt := m.Layers[i].MediaType; !images.IsLayerType(mt) || images.IsNonDistributable(mt) {
			return m, notAnImage(mt)
		}
		if m.Layers[i], err = bare(m.Layers[i]); err != nil {
			return m, err
		}
	}
	return m, nil
}

func readConfig(ctx context.Context, p content.Provider, m ocispec.Manifest) (ocispec.Image, error) {
	var c ocispec.Image
	if err := readDocument(ctx, p, m.Config, &c); err != nil {
		return c, err
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return c, corruptf(nil, "its config lists %d layers and its manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, corruptf(err, "it contains an invalid digest")
		}
	}
	return c, nil
}

// connect tells the garbage collector that a manifest needs its config and
// layers, and a config its unpacked layers. Label names are containerd's
// (docs/garbage-collection.md).
func (s *Store) connect(ctx context.Context, f *found, top digest.Digest) error {
	parts := map[string]string{"containerd.io/gc.ref.content.config": f.manifest.Config.Digest.String()}
	for i, layer := range f.manifest.Layers {
		parts[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = layer.Digest.String()
	}
	if err := s.label(ctx, f.target.Digest, parts); err != nil {
		return err
	}
	return s.label(ctx, f.manifest.Config.Digest, map[string]string{
		"containerd.io/gc.ref.snapshot." + snapshotter: top.String(),
	})
}

func (s *Store) label(ctx context.Context, d digest.Digest, labels map[string]string) error {
	fields := make([]string, 0, len(labels))
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := s.content.Update(ctx, content.Info{Digest: d, Labels: labels}, fields...)
	return err
}
