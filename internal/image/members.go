package image

import (
	"archive/tar"
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/dustin/go-humanize"
)

// maxMembers bounds the files in an image archive: each is a blob, so that
// hundreds of images fit.
const maxMembers = 20_000

// members passes on the files and links of an image archive, with nothing but
// name, size and target, and refuses too many or too large ones: whoever reads
// the result keeps one record for each in memory. The returned reader must be
// closed; that waits for the goroutine behind it.
func members(archive io.Reader, maxBytes int64) io.ReadCloser {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(copyMembers(pw, archive, maxBytes))
	}()
	return &memberReader{PipeReader: pr, done: done}
}

type memberReader struct {
	*io.PipeReader
	done chan struct{}
}

func (m *memberReader) Close() error {
	err := m.PipeReader.Close()
	<-m.done
	return err
}

func copyMembers(w io.Writer, archive io.Reader, maxBytes int64) error {
	in, out := tar.NewReader(archive), tar.NewWriter(w)
	left := maxBytes
	for n := 0; ; n++ {
		h, err := in.Next()
		if err == io.EOF {
			return out.Close()
		} else if err != nil {
			return err
		}
		if n == maxMembers {
			return &tooBigError{fmt.Sprintf("it has more than the %d files that are allowed", maxMembers)}
		}
		slim := &tar.Header{Name: h.Name, Typeflag: h.Typeflag, Mode: 0o600}
		switch h.Typeflag {
		case tar.TypeReg:
			slim.Size = h.Size
		case tar.TypeSymlink:
			slim.Linkname = h.Linkname
		default:
			continue
		}
		if left -= h.Size; left < 0 {
			return &tooBigError{fmt.Sprintf("it holds more than the %s that are allowed", humanize.IBytes(uint64(maxBytes)))}
		}
		if err := out.WriteHeader(slim); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}

// importStore gives the parts that one import writes names of their own. In
// containerd's importer they are named after the members, and a part of that
// name which another import has left would be continued.
type importStore struct {
	content.Store
	prefix string
}

func (s importStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return s.Store.Writer(ctx, append(opts, func(o *content.WriterOpts) error {
		o.Ref = s.prefix + o.Ref
		return nil
	})...)
}
