package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/dustin/go-humanize"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A layer is a tar archive made by a stranger. containerd's archive package
// unpacks it as root with every path resolved inside the layer's directory:
// symbolic links, absolute or looping, and hard links lead nowhere else, and
// trusted.* attributes, with which overlayfs could be steered, are not set.
// Added here: limits on size and number, and no devices.

const (
	// maxEntries bounds the files of one image; the largest images known have
	// a tenth of it.
	maxEntries = 4 << 20
	// maxHeaderBytes bounds names, link targets and attributes in one image,
	// which are held in memory while a layer is unpacked.
	maxHeaderBytes = 512 << 20
	// maxOverhead is what a layer's headers and padding may take beyond the
	// content of its files.
	maxOverhead = 4 << 30
	// maxTrailer is what may follow the end mark of a layer; tar pads to 10 KiB.
	maxTrailer = 16 << 20
	// spaceInterval is how much is written between two looks at the disk.
	spaceInterval = 64 << 20
	// maxZstdWindow is what zstd's strongest normal setting (--long=27) needs.
	maxZstdWindow = 128 << 20
)

// limits is what one image may still use while it is unpacked.
type limits struct {
	bytes, allowed       int64
	entries, headerBytes int64
	sinceCheck           int64
	checkSpace           func() error
}

func newLimits(s *Store) *limits {
	return &limits{
		bytes: s.opts.MaxUnpackedBytes, allowed: s.opts.MaxUnpackedBytes,
		entries: maxEntries, headerBytes: maxHeaderBytes,
		checkSpace: func() error { return s.checkSpace(0) },
	}
}

func (l *limits) spend(n int64) error {
	if n < 0 || n > l.bytes {
		return &tooBigError{fmt.Sprintf("its layers unpack to more than the %s that are allowed", humanize.IBytes(uint64(l.allowed)))}
	}
	l.bytes -= n
	if l.sinceCheck += n; l.sinceCheck >= spaceInterval {
		l.sinceCheck = 0
		return l.checkSpace()
	}
	return nil
}

// entry decides on one file of a layer. A sparse file counts in full: it is
// written so.
func (l *limits) entry(h *tar.Header) (bool, error) {
	if l.entries--; l.entries < 0 {
		return false, &tooBigError{fmt.Sprintf("it has more than the %d files that are allowed", maxEntries)}
	}
	size := int64(len(h.Name) + len(h.Linkname))
	for key, value := range h.PAXRecords {
		size += int64(len(key) + len(value))
	}
	if l.headerBytes -= size; l.headerBytes < 0 {
		return false, &tooBigError{fmt.Sprintf("the names of its files take more than the %s that are allowed", humanize.IBytes(maxHeaderBytes))}
	}
	switch h.Typeflag {
	case tar.TypeBlock, tar.TypeChar:
		// A sandbox has its own /dev. Besides, a character device 0:0 would be
		// a whiteout to overlayfs.
		return false, nil
	case tar.TypeReg:
		return true, l.spend(h.Size)
	}
	return true, nil
}

// budgetReader bounds the decompressed stream: headers and padding count too,
// and what stands between files.
type budgetReader struct {
	r    io.Reader
	left int64
	max  int64
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, &tooBigError{fmt.Sprintf("its layers unpack to more than the %s that are allowed", humanize.IBytes(uint64(b.max)))}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// applyLayer unpacks a blob into dir, makes it durable, and returns the digest
// of the uncompressed archive.
func applyLayer(ctx context.Context, blob content.ReaderAt, dir string, parents []string, algorithm digest.Algorithm, l *limits) (digest.Digest, error) {
	tarball, closeTarball, err := decompress(content.NewReader(blob))
	if err != nil {
		return "", err
	}
	defer closeTarball()
	digester := algorithm.Digester()
	most := l.bytes + maxOverhead
	stream := io.TeeReader(&budgetReader{r: tarball, left: most, max: l.allowed}, digester.Hash())

	opts := []archive.ApplyOpt{archive.WithFilter(l.entry)}
	if len(parents) > 0 {
		// The bottom layer has nothing below it to hide; there a whiteout only
		// removes what came before it in the same layer.
		opts = append(opts, archive.WithParents(parents), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(ctx, dir, stream, opts...); err != nil {
		return "", layerError(err)
	}
	// The digest covers what follows the archive's end mark as well.
	if n, err := io.Copy(io.Discard, io.LimitReader(stream, maxTrailer+1)); err != nil {
		return "", layerError(err)
	} else if n > maxTrailer {
		return "", corruptf(nil, "one of its layers goes on for more than %d bytes after its end", maxTrailer)
	}
	if err := syncFS(dir); err != nil {
		return "", err
	}
	return digester.Digest(), nil
}

// layerError separates a layer that can't be unpacked from a disk that does
// not take it.
func layerError(err error) error {
	var big *tooBigError
	var errno syscall.Errno
	switch {
	case errors.As(err, &big), errors.Is(err, context.Canceled), errors.Is(err, errCorrupt),
		errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS):
		return err
	case errors.As(err, &errno):
		return corruptf(err, "one of its layers contains a file that cannot be made (%s)", errno.Error())
	}
	return corruptf(err, "one of its layers is not a valid archive")
}

// syncFS makes a layer durable before the database says that it is there.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// decompress recognises gzip (RFC 1952) and zstd (RFC 8878, skippable frames
// included) by their first bytes, because media types are often wrong.
func decompress(r io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	head, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, corruptf(err, "a gzip stream in it is broken")
		}
		return z, func() { z.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, corruptf(err, "a zstd stream in it is broken")
		}
		return z, z.Close, nil
	}
	return buffered, func() {}, nil
}
