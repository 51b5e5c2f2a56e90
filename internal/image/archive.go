package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Import loads the images of an OCI archive or of what docker save writes,
// compressed with gzip, zstd or not at all. name, if not empty, is what the
// image is called here; the archive must hold exactly one then. Of an image for
// several platforms the store's default is taken. It is all or nothing: after
// an error no image of the archive has been named. r is not closed, and must not
// block for ever: Close waits for the import.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) ([]*Image, error) {
	var as ref
	if name != "" {
		var err error
		if as, err = s.refs.parse(name); err != nil {
			return nil, err
		}
		if as.digest != "" {
			return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
				"An image cannot be imported as %q: its digest follows from its content. Give a name with a tag.", name)
		}
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, lease, err := s.lease(ctx, "import")
	if err != nil {
		return nil, importError(as, err)
	}
	defer s.endLease(lease)
	out, err := s.importLeased(ctx, lease, r, as)
	return out, importError(as, err)
}

// ImportPath is Import from a file or from an OCI image layout directory.
func (s *Store) ImportPath(ctx context.Context, path, name string) ([]*Image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid, "The image archive cannot be read: %w.", err)
	}
	if info.IsDir() {
		return s.importLayout(ctx, path, name)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid, "The image archive cannot be read: %w.", err)
	}
	defer f.Close()
	return s.Import(ctx, f, name)
}

func (s *Store) importLayout(ctx context.Context, dir, name string) ([]*Image, error) {
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile)); err != nil {
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"Directory %s is not an OCI image layout: it has no file %s.", dir, ocispec.ImageLayoutFile)
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(ociwriter.Archive(pw, dir))
	}()
	out, err := s.Import(ctx, pr, name)
	pr.Close() // ends the writer if the import stopped early
	<-done
	return out, err
}

// entry is one image of an archive with the name that it will have.
type entry struct {
	name   ref
	target ocispec.Descriptor
	found  *found
}

func (s *Store) importLeased(ctx context.Context, lease leases.Lease, r io.Reader, as ref) ([]*Image, error) {
	stream, closeStream, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer closeStream()
	budget := &budgetReader{r: &spaceReader{r: stream, check: s.checkSpace}, left: s.opts.MaxUnpackedBytes, max: s.opts.MaxUnpackedBytes}
	files := members(budget, s.opts.MaxUnpackedBytes)
	top, err := archive.ImportIndex(ctx, importStore{s.content, lease.ID + " "}, files)
	files.Close()
	if err != nil {
		return nil, notAnArchive(err)
	}
	var idx ocispec.Index
	if err := readDocument(ctx, s.content, top, &idx); err != nil {
		return nil, err
	}
	entries, err := archiveEntries(idx, as)
	if err != nil {
		return nil, err
	}

	present := func(ctx context.Context, d ocispec.Descriptor) error {
		// The store may have had it already, so it may need the lease.
		if err := s.leases.AddResource(ctx, lease, leases.Resource{ID: d.Digest.String(), Type: "content"}); err != nil {
			return err
		}
		_, err := s.content.Info(ctx, d.Digest)
		if errdefs.IsNotFound(err) {
			return corruptf(err, "it lacks %s", d.Digest)
		}
		return err
	}
	p := *s.opts.DefaultPlatform
	for i := range entries {
		e := &entries[i]
		if e.found, err = s.find(ctx, e.target, p, present); err != nil {
			return nil, importError(e.name, err)
		}
		if err := s.assemble(ctx, e.found, &meter{}, present); err != nil {
			return nil, importError(e.name, err)
		}
	}
	var out []*Image
	for _, e := range entries {
		img, err := s.record(ctx, nameKey{e.name.name, p}, e.found.source, e.found.target)
		if err != nil {
			return nil, err
		}
		s.log.Info("image imported", "image", img.Name, "digest", img.Digest)
		out = append(out, img)
	}
	return out, nil
}

// maxArchiveEntries bounds the images of one archive.
const maxArchiveEntries = 1000

// archiveEntries lists what an archive holds, each with its name.
func archiveEntries(idx ocispec.Index, as ref) ([]entry, error) {
	var entries []entry
	distinct := make(map[string]struct{})
	for _, d := range idx.Manifests {
		if !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		distinct[d.Digest.String()] = struct{}{}
		entries = append(entries, entry{target: d})
	}
	switch {
	case len(entries) == 0:
		return nil, notAnArchive(errors.New("no image in its index"))
	case len(entries) > maxArchiveEntries:
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"The archive holds %d images; at most %d can be imported at once.", len(entries), maxArchiveEntries)
	case as.name != "" && len(distinct) > 1:
		return nil, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"The archive holds %d images, so that they cannot all be named %q. Import it without a name.", len(distinct), as.name)
	case as.name != "":
		return []entry{{name: as, target: entries[0].target}}, nil
	}
	for i := range entries {
		var err error
		if entries[i].name, err = annotatedName(entries[i].target); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// annotatedName is the name that an archive gives an image. The OCI annotation
// may hold a whole reference or, as the specification suggests, just a tag.
func annotatedName(d ocispec.Descriptor) (ref, error) {
	name := d.Annotations[images.AnnotationImageName]
	if name == "" {
		if v := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(v, ":/") {
			name = v
		}
	}
	if name == "" {
		return ref{}, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"The archive does not say what its image is called. Give a name.")
	}
	r, err := parseRef(name)
	if err == nil && r.repository == "" {
		err = badReference(name, "a name is needed")
	}
	return r, err
}

func notAnArchive(err error) error {
	if ours(err) {
		return err
	}
	e := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
		"The file is neither an OCI image archive nor one made by docker save, or it is damaged.")
	e.Err = err
	return e
}

// ours reports whether an error while reading an archive says something about
// this machine or the limits, rather than about the archive.
func ours(err error) bool {
	var big *tooBigError
	for _, target := range []error{context.Canceled, context.DeadlineExceeded, unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS} {
		if errors.Is(err, target) {
			return true
		}
	}
	return errors.As(err, &big)
}

func importError(as ref, err error) error {
	if err == nil {
		return nil
	}
	if as.name == "" {
		as.name = "the archive"
	}
	if errors.Is(err, errCorrupt) && !ours(err) {
		e := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"The archive of image %q is damaged: %s. Nothing of it was kept.", as.name, corruption(err))
		e.Err = err
		return e
	}
	return failure(as, false, err)
}

// spaceReader looks at the disk from time to time while an archive is read.
type spaceReader struct {
	r     io.Reader
	since int64
	check func(int64) error
}

func (s *spaceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.since += int64(n); s.since >= spaceInterval {
		s.since = 0
		if err := s.check(0); err != nil {
			return n, err
		}
	}
	return n, err
}

// Export writes an image as an OCI archive that docker load reads as well. It
// takes the store's default platform if the image is here for several.
func (s *Store) Export(ctx context.Context, reference string, w io.Writer) error {
	img, err := s.Lookup(ctx, reference, nil)
	if err != nil {
		if img, err = s.anyPlatform(reference, err); err != nil {
			return err
		}
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	// A lease keeps the image's blobs even if it is removed meanwhile.
	ctx, lease, err := s.lease(ctx, "export")
	if err != nil {
		return err
	}
	defer s.endLease(lease)
	if err := s.leases.AddResource(ctx, lease, leases.Resource{ID: img.Digest, Type: "content"}); err != nil {
		return fmt.Errorf("exporting image %q: %w", img.Name, err)
	}
	target := img.target
	target.Platform = &ocispec.Platform{OS: img.Platform.OS, Architecture: img.Platform.Arch}
	var names []string // none for an image that has lost its own
	if img.Name != "" {
		names = []string{img.Name}
	}
	if err := archive.Export(ctx, s.content, w, archive.WithManifest(target, names...)); err != nil {
		return fmt.Errorf("exporting image %q: %w", img.Name, err)
	}
	return nil
}

// anyPlatform returns the image that a reference means if it is here for one
// platform only.
func (s *Store) anyPlatform(reference string, notFound error) (*Image, error) {
	r, err := s.refs.parse(reference)
	if err != nil {
		return nil, err
	}
	keys := s.index.keys(r)
	if len(keys) != 1 {
		return nil, notFound
	}
	if img := s.index.lookup(ref{name: keys[0].name, repository: keys[0].name}, keys[0].platform); img != nil {
		return img, nil
	}
	return nil, notFound
}
