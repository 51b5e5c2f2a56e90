package ociwriter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationImageName holds an image's full reference in index.json. Docker
// and containerd write and read it beside the tag in
// org.opencontainers.image.ref.name.
const annotationImageName = "io.containerd.image.name"

// Compression is how a layer is stored.
type Compression int

const (
	Plain Compression = iota
	Gzip
	Zstd
)

// mediaType is the layer type of OCI image-spec 1.1, layer.md.
func (c Compression) mediaType() string {
	switch c {
	case Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// Layer is a stored layer: its blob, and the digest of its uncompressed tar.
type Layer struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
}

// Layout is an OCI image layout directory that is being written. It is not
// safe for concurrent use. The directory is valid only after Close.
type Layout struct {
	dir   string
	index ocispec.Index
}

// NewLayout starts a layout in dir, which is made when missing and must hold
// no layout yet.
func NewLayout(dir string) (*Layout, error) {
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageIndexFile)); err == nil {
		return nil, fmt.Errorf("%s already holds an image layout", dir)
	}
	if err := os.MkdirAll(blobDir(dir), 0o755); err != nil {
		return nil, err
	}
	return &Layout{dir: dir, index: ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
	}}, nil
}

func blobDir(dir string) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String())
}

// AddLayer stores the tar stream r as a layer.
func (l *Layout) AddLayer(r io.Reader, c Compression) (Layer, error) {
	tmp, err := os.CreateTemp(blobDir(l.dir), ".layer-*")
	if err != nil {
		return Layer{}, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()

	stored := &countingHash{h: sha256.New()}
	out := io.MultiWriter(tmp, stored)
	diff := sha256.New()
	if err := compress(out, io.TeeReader(r, diff), c); err != nil {
		return Layer{}, fmt.Errorf("storing layer: %w", err)
	}
	if err := tmp.Close(); err != nil {
		return Layer{}, err
	}
	d := digest.NewDigest(digest.SHA256, stored.h)
	if err := os.Chmod(tmp.Name(), 0o644); err != nil {
		return Layer{}, err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(blobDir(l.dir), d.Encoded())); err != nil {
		return Layer{}, err
	}
	return Layer{
		Descriptor: ocispec.Descriptor{MediaType: c.mediaType(), Digest: d, Size: stored.n},
		DiffID:     digest.NewDigest(digest.SHA256, diff),
	}, nil
}

func compress(w io.Writer, r io.Reader, c Compression) error {
	var zw io.WriteCloser
	switch c {
	case Gzip:
		zw = gzip.NewWriter(w)
	case Zstd:
		var err error
		if zw, err = zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault)); err != nil {
			return err
		}
	default:
		_, err := io.Copy(w, r)
		return err
	}
	if _, err := io.Copy(zw, r); err != nil {
		zw.Close()
		return err
	}
	return zw.Close()
}

// AddBlob stores data and returns its descriptor.
func (l *Layout) AddBlob(mediaType string, data []byte) (ocispec.Descriptor, error) {
	d := digest.FromBytes(data)
	err := os.WriteFile(filepath.Join(blobDir(l.dir), d.Encoded()), data, 0o644)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
}

func (l *Layout) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.AddBlob(mediaType, data)
}

// AddManifest stores an image of one platform. The layers are given bottom
// first; the config's RootFS is filled in from them, and its Created when nil.
func (l *Layout) AddManifest(config ocispec.Image, layers ...Layer) (ocispec.Descriptor, error) {
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{},
	}
	for _, layer := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID)
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
	}
	if config.Created == nil {
		now := time.Now().UTC()
		config.Created = &now
	}
	var err error
	if manifest.Config, err = l.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := l.addJSON(ocispec.MediaTypeImageManifest, manifest)
	platform := config.Platform
	desc.Platform = &platform
	return desc, err
}

// AddIndex stores a multi-platform index of the manifests.
func (l *Layout) AddIndex(manifests ...ocispec.Descriptor) (ocispec.Descriptor, error) {
	return l.addJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests,
	})
}

// Name enters a manifest or index into the layout's index.json under an image
// reference, which may be empty.
func (l *Layout) Name(desc ocispec.Descriptor, name string) {
	if name != "" {
		desc.Annotations = map[string]string{annotationImageName: name}
	}
	l.index.Manifests = append(l.index.Manifests, desc)
}

// Close writes index.json and the layout file.
func (l *Layout) Close() error {
	data, err := json.Marshal(l.index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), data, 0o644); err != nil {
		return err
	}
	data, err = json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), data, 0o644)
}

// Archive writes the layout in dir as an OCI archive, a tar of its files. The
// small files come first, so that a reader learns early what it holds.
func Archive(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	for _, name := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile} {
		if err := archiveFile(tw, dir, name); err != nil {
			return err
		}
	}
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir)
	err := filepath.WalkDir(blobs, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return archiveFile(tw, dir, name)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func archiveFile(tw *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: info.Size(), Typeflag: tar.TypeReg}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

// ArchiveBytes is Archive into memory, for small images.
func ArchiveBytes(dir string) ([]byte, error) {
	var buf bytes.Buffer
	err := Archive(&buf, dir)
	return buf.Bytes(), err
}

type countingHash struct {
	h hash.Hash
	n int64
}

func (c *countingHash) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.h.Write(p)
}
