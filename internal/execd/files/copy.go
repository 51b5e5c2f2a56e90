package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// moveAcross moves a file to another filesystem (a volume, say), and a directory
// that lies in the image, which overlayfs does not rename.
func moveAcross(src, dest string) error {
	if _, err := os.Lstat(dest); err == nil {
		return &os.LinkError{Op: "rename", Old: src, New: dest, Err: syscall.EEXIST}
	}
	if err := copyTree(src, dest); err != nil {
		return errors.Join(err, os.RemoveAll(dest))
	}
	return os.RemoveAll(src)
}

// copyTree copies what is at src, with owners, modes and times. Sockets and
// devices are refused: the first mean nothing elsewhere, the second can't be made
// in a sandbox.
func copyTree(src, dest string) error {
	st, err := os.Lstat(src)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return &fs.PathError{Op: "stat", Path: src, Err: syscall.EINVAL}
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		err = copyDirectory(src, dest)
	case fs.ModeSymlink:
		return copyLink(src, dest, sys)
	case 0:
		err = copyFile(src, dest)
	case fs.ModeNamedPipe:
		if err = unix.Mkfifo(dest, 0o600); err != nil {
			err = &fs.PathError{Op: "mkfifo", Path: dest, Err: err}
		}
	default:
		err = &fs.PathError{Op: "copy", Path: src, Err: syscall.EXDEV}
	}
	if err != nil {
		return err
	}
	kept, err := keepOwner(dest, sys)
	if err != nil {
		return err
	}
	mode := sys.Mode & 0o7777
	if !kept {
		// What ran as another user must not run as this one.
		mode &^= syscall.S_ISUID | syscall.S_ISGID
	}
	if err := syscall.Chmod(dest, mode); err != nil {
		return &fs.PathError{Op: "chmod", Path: dest, Err: err}
	}
	return os.Chtimes(dest, st.ModTime(), st.ModTime())
}

// keepOwner gives dest the owner of the original. A user who may move files of
// others may not make such, and then owns the copy, as with mv(1).
func keepOwner(dest string, sys *syscall.Stat_t) (kept bool, err error) {
	err = os.Lchown(dest, int(sys.Uid), int(sys.Gid))
	if errors.Is(err, syscall.EPERM) {
		return false, nil
	}
	return err == nil, err
}

func copyDirectory(src, dest string) error {
	if err := os.Mkdir(dest, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if err := copyTree(filepath.Join(src, d.Name()), filepath.Join(dest, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyLink(src, dest string, sys *syscall.Stat_t) error {
	target, err := os.Readlink(src)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, dest); err != nil {
		return err
	}
	_, err = keepOwner(dest, sys)
	return err
}

func copyFile(src, dest string) error {
	in, err := os.OpenFile(src, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyContent(out, in), out.Close())
}

// copyContent copies a file and leaves its holes: a sparse file, such as the
// image of a disk, may be larger than the target's filesystem.
func copyContent(out, in *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	for at := int64(0); at < size; {
		data, hole, err := nextData(in, at, size)
		if err != nil {
			return err
		}
		if data >= size {
			break
		}
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return err
		}
		// Within one filesystem this is copy_file_range(2).
		n, err := io.CopyN(out, in, hole-data)
		if errors.Is(err, io.EOF) {
			// It became shorter in the meantime.
			size = data + n
			break
		}
		if err != nil {
			return err
		}
		at = hole
	}
	return out.Truncate(size)
}

// nextData finds the first stretch of data at or after at. There is none when
// data is size.
func nextData(in *os.File, at, size int64) (data, hole int64, err error) {
	data, err = in.Seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return size, size, nil
	case errors.Is(err, syscall.EINVAL):
		return at, size, nil // a filesystem that does not know holes
	case err != nil:
		return 0, 0, err
	}
	hole, err = in.Seek(data, unix.SEEK_HOLE)
	return data, min(hole, size), err
}
