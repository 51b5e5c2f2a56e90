package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// copyBatch is how many files go in one upload.
	copyBatch = 64
	// maxCopyDepth bounds how deep a directory in a sandbox is followed.
	maxCopyDepth = 255
)

// readCloser reads through one thing and closes another.
type readCloser struct {
	io.Reader
	io.Closer
}

func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, r)
	return err
}

// copyDirIn copies a directory into the sandbox: as a tar archive that is
// unpacked there, or file by file when the sandbox has no tar.
func (a *app) copyDirIn(ctx context.Context, to *place, src, target string) error {
	if !to.hasTar(ctx) {
		return a.copyFilesIn(ctx, to, src, target)
	}
	archive := temporary()
	defer to.discard(ctx, archive)
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := writeTar(pw, src)
		pw.CloseWithError(err)
		done <- err
	}()
	err := a.uploadStream(ctx, to, archive, pr)
	pr.CloseWithError(errors.New("the upload has ended"))
	if werr := <-done; werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	return to.shell(ctx, `mkdir -p "$0" && tar -xf "$1" -C "$0"`, target, archive)
}

func (a *app) uploadStream(ctx context.Context, to *place, name string, r io.Reader) error {
	bar := a.transfer("copying", -1)
	err := to.c.UploadFiles(ctx, to.id, client.UploadFile{Path: name, Mode: 600, Content: bar.reader(r), Size: -1})
	bar.end(err)
	if err != nil {
		return fmt.Errorf("copying to %s: %w", to.id, err)
	}
	return nil
}

// writeTar packs the content of a directory.
func writeTar(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return addToTar(tw, root, name, d)
	})
	return errors.Join(err, tw.Close())
}

func addToTar(tw *tar.Writer, root *os.Root, name string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	if !st.IsDir() && !st.Mode().IsRegular() && st.Mode()&fs.ModeSymlink == 0 {
		return nil // sockets, devices and pipes make no sense elsewhere
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	// Owners mean nothing on the other side.
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
	if err := tw.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(tw, f); err != nil {
		return fmt.Errorf("%s changed while it was copied: %w", name, err)
	}
	return nil
}

// copyFilesIn copies a directory through the files API alone.
func (a *app) copyFilesIn(ctx context.Context, to *place, src, target string) error {
	var batch []client.UploadFile
	var open []*os.File
	flush := func() error {
		err := to.c.UploadFiles(ctx, to.id, batch...)
		for _, f := range open {
			f.Close()
		}
		batch, open = nil, nil
		return err
	}
	skipped := 0
	err := filepath.WalkDir(src, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, name)
		if err != nil {
			return err
		}
		dest := path.Join(target, filepath.ToSlash(rel))
		st, err := d.Info()
		if err != nil {
			return err
		}
		perm := client.ModeOf(uint32(st.Mode().Perm()))
		switch {
		case st.IsDir():
			return to.c.Mkdir(ctx, to.id, map[string]client.Permission{dest: {Mode: perm}})
		case !st.Mode().IsRegular():
			skipped++
			return nil
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		open = append(open, f)
		batch = append(batch, client.UploadFile{Path: dest, Mode: perm, Content: f, Size: st.Size()})
		if len(batch) == copyBatch {
			return flush()
		}
		return nil
	})
	err = errors.Join(err, flush())
	a.warnSkipped(skipped)
	return err
}

func (a *app) warnSkipped(n int) {
	if n > 0 {
		fmt.Fprintf(a.streams.Err, "paddock: %d links and special files were left out, because the sandbox has no tar\n", n)
	}
}

// copyDirOut copies a directory out of the sandbox, likewise.
func (a *app) copyDirOut(ctx context.Context, from *place, dst string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dst)
	if err != nil {
		return err
	}
	defer root.Close()
	if !from.hasTar(ctx) {
		return a.copyFilesOut(ctx, from, root)
	}
	archive := temporary()
	defer from.discard(ctx, archive)
	if err := from.shell(ctx, `tar -cf "$1" -C "$0" .`, from.path, archive); err != nil {
		return err
	}
	return a.download(ctx, from, archive, func(d *client.Download) error { return extract(root, d) })
}

// extract unpacks an archive that a sandbox wrote. It is hostile: every path is
// resolved beneath the root, through no link that leaves it; devices and
// set-user-id bits are dropped, and directories are writable until all is done.
func extract(root *os.Root, r io.Reader) error {
	tr := tar.NewReader(r)
	modes := map[string]fs.FileMode{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading what the sandbox packed: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := extractOne(root, tr, h, name, modes); err != nil {
			return fmt.Errorf("unpacking %s: %w", client.Printable(name), err)
		}
	}
	var errs []error
	for name, mode := range modes {
		errs = append(errs, root.Chmod(name, mode))
	}
	return errors.Join(errs...)
}

func extractOne(root *os.Root, r io.Reader, h *tar.Header, name string, modes map[string]fs.FileMode) error {
	perm := fs.FileMode(h.Mode).Perm()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if perm != 0o755 {
			modes[name] = perm
		}
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		return writeBeneath(root, name, r, perm)
	case tar.TypeSymlink:
		if err := removeOld(root, name); err != nil {
			return err
		}
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if err := removeOld(root, name); err != nil {
			return err
		}
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	}
	return nil
}

// writeBeneath replaces a file rather than writing through what is there, which
// may be a link.
func writeBeneath(root *os.Root, name string, r io.Reader, perm fs.FileMode) error {
	if err := removeOld(root, name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func removeOld(root *os.Root, name string) error {
	err := root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copyFilesOut copies a directory through the files API alone.
func (a *app) copyFilesOut(ctx context.Context, from *place, root *os.Root) error {
	list, err := from.c.ListDir(ctx, from.id, from.path, maxCopyDepth)
	if err != nil {
		return err
	}
	base, err := from.stat(ctx, from.path)
	if err != nil || base == nil {
		return errors.Join(err, fmt.Errorf("%s:%s is gone", from.id, from.path))
	}
	skipped := 0
	for _, info := range list {
		rel, ok := strings.CutPrefix(path.Clean(info.Path), strings.TrimSuffix(path.Clean(base.Path), "/")+"/")
		if !ok {
			return fmt.Errorf("the sandbox listed %q, which is not below %q", info.Path, base.Path)
		}
		perm := fs.FileMode(info.Mode.Perm()).Perm()
		switch info.Type {
		case "directory":
			err = root.MkdirAll(rel, perm|0o700)
		case "file":
			err = root.MkdirAll(path.Dir(rel), 0o755)
			if err == nil {
				err = a.download(ctx, from, info.Path, func(d *client.Download) error { return writeBeneath(root, rel, d, perm) })
			}
		default:
			skipped++
		}
		if err != nil {
			return err
		}
	}
	a.warnSkipped(skipped)
	return nil
}

// temporary is a name for an archive in a sandbox.
func temporary() string { return "/tmp/.paddock-" + rand.Text() + ".tar" }

// discard removes a temporary file, even after the user has asked to stop.
func (p *place) discard(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptTimeout)
	defer cancel()
	_ = p.c.RemoveFiles(ctx, p.id, name)
}

// hasTar reports whether the sandbox can pack and unpack.
func (p *place) hasTar(ctx context.Context) bool {
	return p.shell(ctx, `command -v tar >/dev/null`) == nil
}

// shell runs a script in the sandbox, as its root; the words are $0, $1 and so
// on.
func (p *place) shell(ctx context.Context, script string, words ...string) error {
	out := new(bytes.Buffer)
	res, err := p.c.Run(ctx, p.id, client.Command{Argv: append([]string{"sh", "-c", script}, words...), UID: new(uint32)},
		client.Output{Stderr: &limitedWriter{w: out, left: 4 << 10}})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("in sandbox %s: %s", p.id, client.Printable(strings.TrimSpace(out.String())))
	}
	return err
}

// limitedWriter keeps the beginning of what is written.
type limitedWriter struct {
	w    io.Writer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	keep := p[:min(len(p), l.left)]
	l.left -= len(keep)
	if _, err := l.w.Write(keep); err != nil {
		return 0, err
	}
	return len(p), nil
}
