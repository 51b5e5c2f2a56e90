package files

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeBuffer is how much is written at once, in bytes: an upload arrives in
// small pieces.
const writeBuffer = 256 << 10

// write replaces the content of the file at path with what r gives, in one
// step: the new content is written and synced under another name beside it
// first. A symlink is written through; what is not a regular file (a device, a
// FIFO) and what can't be renamed over (a mount point) is written in place. Mode
// and owner of an existing file stay, unless set says otherwise.
func write(path string, r io.Reader, set resolved) error {
	path, err := throughLinks(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case err == nil && !st.Mode().IsRegular():
		return writeInPlace(path, r, set)
	case err == nil:
		set = set.over(st)
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(path), newDirectoryMode); err != nil {
			return err
		}
		if set.mode == 0 {
			set.mode = 0o644
		}
	default:
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), ".upload-"+randomName())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f, r), f.Close())
	if err == nil {
		err = set.apply(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
		if errors.Is(err, unix.EBUSY) {
			err = copyInto(tmp, path, set)
		}
	}
	if err != nil {
		return errors.Join(err, removeQuietly(tmp))
	}
	return nil
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

// over fills in what the existing file has.
func (r resolved) over(st fs.FileInfo) resolved {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return r
	}
	if r.mode == 0 {
		r.mode = sys.Mode & 0o7777
	}
	if r.uid < 0 {
		r.uid = int(sys.Uid)
	}
	if r.gid < 0 {
		r.gid = int(sys.Gid)
	}
	return r
}

func fill(f *os.File, r io.Reader) error {
	w := bufio.NewWriterSize(f, writeBuffer)
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}

func writeInPlace(path string, r io.Reader, set resolved) error {
	// Without O_NONBLOCK a FIFO that nobody reads would hold the request for
	// ever.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
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
	if err := writeInPlace(path, in, set); err != nil {
		return err
	}
	return os.Remove(tmp)
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
