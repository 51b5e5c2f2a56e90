package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/tarball"
)

// readCloser reads through one thing and closes another.
type readCloser struct {
	io.Reader
	io.Closer
}

// packDir copies the content of a directory into one of the sandbox.
func (a *app) packDir(ctx context.Context, to *place, src, target string) error {
	return a.pack(ctx, to, target, "copying", -1, func(ctx context.Context, w io.Writer) error {
		return tarball.Pack(ctx, w, src, tarball.PackOptions{NoOwners: true})
	})
}

// packFile copies one file to a path of the sandbox.
func (a *app) packFile(ctx context.Context, to *place, src, target string, size int64) error {
	// An archive holds a link itself, but the user has named what it is.
	resolved, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	dir, name := path.Dir(target), path.Base(target)
	return a.pack(ctx, to, dir, name, size, func(ctx context.Context, w io.Writer) error {
		return tarball.Pack(ctx, w, resolved, tarball.PackOptions{Name: name, NoOwners: true})
	})
}

// pack sends what write writes, an archive, to a directory of the sandbox.
func (a *app) pack(ctx context.Context, to *place, target, shown string, size int64, write func(context.Context, io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(write(ctx, pw))
	}()
	bar := a.transfer(shown, size)
	res, err := to.c.UploadDir(ctx, to.id, target, bar.reader(pr))
	bar.end()
	// The writer may wait for a reader that has gone.
	pr.CloseWithError(errors.New("the upload has ended"))
	<-done
	return a.unpacked(to, target, res, err)
}

// uploadDir sends an archive that the user made.
func (a *app) uploadDir(ctx context.Context, to *place, target string, archive io.Reader) error {
	bar := a.transfer("copying", -1)
	res, err := to.c.UploadDir(ctx, to.id, target, bar.reader(archive))
	bar.end()
	return a.unpacked(to, target, res, err)
}

// unpacked tells how an upload has ended.
func (a *app) unpacked(to *place, target string, res *client.Unpacked, err error) error {
	if err != nil {
		return fmt.Errorf("copying to %s:%s: %w", to.id, client.Printable(target), err)
	}
	for _, s := range res.Skipped {
		a.warnSkipped(s.Name, s.Reason)
	}
	a.warnMore(res.SkippedTotal - int64(len(res.Skipped)))
	return nil
}

func (a *app) warnSkipped(name, reason string) {
	fmt.Fprintf(a.streams.Err, "paddock: %s was left out: %s\n", client.Printable(name), client.Printable(reason))
}

func (a *app) warnMore(n int64) {
	if n > 0 {
		fmt.Fprintf(a.streams.Err, "paddock: %d more were left out\n", n)
	}
}

// unpackDir copies the content of a directory of the sandbox into one here,
// which is made when it is missing.
func (a *app) unpackDir(ctx context.Context, from *place, to *destination) error {
	root, made, err := to.directory()
	if err == nil {
		err = a.unpack(ctx, from, root, "copying", -1, tarball.UnpackOptions{Foreign: true, Made: made})
		root.Close()
	}
	if err != nil && made {
		// Only when nothing has come.
		_ = unix.Unlinkat(int(to.dir.Fd()), to.name, unix.AT_REMOVEDIR)
	}
	return err
}

// unpackFile copies one file of the sandbox to a path here.
func (a *app) unpackFile(ctx context.Context, from *place, to *destination, size int64) error {
	root, err := to.root()
	if err != nil {
		return err
	}
	defer root.Close()
	return a.unpack(ctx, from, root, to.name, size, tarball.UnpackOptions{Foreign: true, Name: to.name})
}

// unpack fetches an archive of the source. What a sandbox packs is hostile:
// tarball keeps it beneath the directory.
func (a *app) unpack(ctx context.Context, from *place, root *os.Root, shown string, size int64, o tarball.UnpackOptions) error {
	r, err := from.c.DownloadDir(ctx, from.id, from.path)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	defer r.Close()
	bar := a.transfer(shown, size)
	res, err := tarball.Unpack(ctx, bar.reader(r), root, o)
	bar.end()
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, printable(err))
	}
	for _, s := range res.Skipped {
		a.warnSkipped(s.Name, s.Reason)
	}
	a.warnMore(res.SkippedTotal - int64(len(res.Skipped)))
	return nil
}

// printableError is an error whose text holds names that a sandbox chose.
type printableError struct{ err error }

func printable(err error) error { return &printableError{err} }

func (e *printableError) Error() string { return client.Printable(e.err.Error()) }
func (e *printableError) Unwrap() error { return e.err }
