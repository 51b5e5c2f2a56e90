package files

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeBuffer is how much is written at once, in bytes.
const writeBuffer = 256 << 10

// write replaces the content of the file at path with what r gives, in one
// step: the new content is written and synced under another name beside it
// first. A symlink is written through; what is not a regular file (a device, a
// FIFO) is written in place. Mode and owner of an existing file stay, unless set
// says otherwise.
func write(path string, r io.Reader, set resolved) error {
	err := place(path, r, set)
	var pe *fs.PathError
	if errors.As(err, &pe) && strings.HasPrefix(filepath.Base(pe.Path), stagedPrefix) {
		// The caller knows the file under its own name only.
		return &fs.PathError{Op: pe.Op, Path: path, Err: pe.Err}
	}
	return err
}

// stagedPrefix begins the names of files that are not complete yet.
const stagedPrefix = ".upload-"

func place(path string, r io.Reader, set resolved) error {
	path, err := throughLinks(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeNew(path, r, set)
	case err != nil:
		return err
	case st.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case !st.Mode().IsRegular():
		if err := writeInPlace(path, r); err != nil {
			return err
		}
		return set.apply(path)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return &fs.PathError{Op: "stat", Path: path, Err: syscall.EINVAL}
	}
	return overwrite(path, r, set, sys)
}

func writeNew(path string, r io.Reader, set resolved) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, newDirectoryMode); err != nil {
		return err
	}
	if set.mode == 0 {
		set.mode = 0o644
	}
	tmp, err := stage(dir, r)
	if err != nil {
		return err
	}
	if err = set.apply(tmp); err == nil {
		err = os.Rename(tmp, path)
	}
	return finish(tmp, err)
}

// overwrite replaces an existing file. A file that can't be replaced keeps its
// inode and is written in place, once all of the content is there: a mount
// point, a file with several names, one in a directory that the user may not
// write to, or one whose owner the user may not give to a new file.
func overwrite(path string, r io.Reader, set resolved, st *syscall.Stat_t) error {
	// Replacing needs no permission of the file's own, but writing does. Not by
	// opening it: a program that runs can be replaced but not written to.
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	inPlace := set.besides(st)
	tmp, err := stage(filepath.Dir(path), r)
	var opening *fs.PathError
	if errors.As(err, &opening) && opening.Op == "open" && denied(err) {
		return writeThrough(path, r, inPlace)
	}
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		return finish(tmp, copyInto(tmp, path, inPlace))
	}
	if err = set.over(st).apply(tmp); err == nil {
		err = os.Rename(tmp, path)
	}
	if denied(err) || errors.Is(err, unix.EBUSY) {
		err = copyInto(tmp, path, inPlace)
	}
	return finish(tmp, err)
}

// denied reports that the user lacks a permission, or everybody does.
func denied(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EROFS)
}

// stage writes the content to a new file in dir and returns its path. On failure
// nothing is left. A failure to open the file took nothing from r.
func stage(dir string, r io.Reader) (string, error) {
	tmp := filepath.Join(dir, stagedPrefix+randomName())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if err := errors.Join(fill(f, r), f.Close()); err != nil {
		return "", errors.Join(err, removeQuietly(tmp))
	}
	return tmp, nil
}

// finish removes the staged file after a failure.
func finish(tmp string, err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, removeQuietly(tmp))
}

func removeQuietly(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// throughLinks returns the file that opening path for writing would open; the
// target of a dangling link is where the file will be made.
func throughLinks(path string) (string, error) {
	for range 40 { // MAXSYMLINKS of Linux
		st, err := os.Lstat(path)
		if err != nil || st.Mode()&fs.ModeSymlink == 0 {
			return path, nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			// The directory's own links must be gone before ".." means its
			// parent.
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", err
			}
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}

func fill(f *os.File, r io.Reader) error {
	g := &grower{f: f}
	if err := transfer(g, r); err != nil {
		return err
	}
	if err := g.fit(); err != nil {
		return err
	}
	return f.Sync()
}

// transfer copies in large pieces. A part of an upload hands over its own.
func transfer(w io.Writer, r io.Reader) error {
	if from, ok := r.(io.WriterTo); ok {
		_, err := from.WriteTo(w)
		return err
	}
	buf := buffers.Get().(*[writeBuffer]byte)
	defer buffers.Put(buf)
	// Without a file's ReadFrom, which would use a buffer of its own.
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, buf[:])
	return err
}

const (
	// growFrom is from what size on space is allocated ahead, and growStep how
	// much of it, in bytes.
	growFrom = 1 << 20
	growStep = 16 << 20
)

// grower writes to a new file and has space allocated ahead of it. On ext4 a file
// with space that is not allocated yet is written to the disk when it replaces
// another (mount option auto_da_alloc, ext4(5)), which makes every second upload
// as slow as the disk.
type grower struct {
	f                  *os.File
	written, allocated int64
}

func (g *grower) Write(p []byte) (int, error) {
	n, err := g.f.Write(p)
	g.written += int64(n)
	if g.written >= growFrom && g.written+int64(len(p)) > g.allocated && g.allocated >= 0 {
		from := max(g.allocated, g.written)
		if unix.Fallocate(int(g.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, from, growStep) == nil {
			g.allocated = from + growStep
		} else {
			g.allocated = -1 // not here, or not so much
		}
	}
	return n, err
}

// fit gives back what was allocated beyond the end.
func (g *grower) fit() error {
	if g.allocated <= g.written {
		return nil
	}
	return g.f.Truncate(g.written)
}

func writeInPlace(path string, r io.Reader) error {
	// Without O_NONBLOCK a FIFO that nobody reads would hold the request for
	// ever.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(transfer(f, r), f.Close())
}

// writeThrough gathers the content where the user may write, so that an upload
// that breaks off changes nothing, and puts it into the file. Where there is no
// such place it is written as it comes.
func writeThrough(path string, r io.Reader, set resolved) error {
	fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		f := os.NewFile(uintptr(fd), "upload")
		defer f.Close()
		if err := transfer(f, r); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r = f
	}
	if err := writeInPlace(path, r); err != nil {
		return err
	}
	return set.apply(path)
}

// copyInto puts the content of tmp into the file at path and removes tmp.
func copyInto(tmp, path string, set resolved) error {
	in, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := writeInPlace(path, in); err != nil {
		return err
	}
	if err := set.apply(path); err != nil {
		return err
	}
	return os.Remove(tmp)
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
