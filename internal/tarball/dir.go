package tarball

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenRoot opens a directory beneath which names are looked up. os.OpenRoot
// alone would wait for the writer of a FIFO.
func OpenRoot(path string) (*os.Root, error) {
	dir, err := openDir(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
}

// openDir opens a directory, following symlinks in its path.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}

// Vanished reports whether an error means that a name is no more what it was.
func Vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// IsPseudo reports whether a directory belongs to a filesystem that shows the
// kernel instead of holding files. Reading those may never end.
func IsPseudo(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.SELINUX_MAGIC:
		return true
	}
	return false
}

// failure is an error of the operating system about a file.
func failure(name string, err error) error {
	return &fs.PathError{Op: "tar", Path: name, Err: err}
}

// openat opens a name of a directory for reading. It neither follows a symlink
// nor waits for a FIFO's writer.
func openat(parent int, base string, flags int) (*os.File, error) {
	fd, err := unix.Openat(parent, base, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

func readlinkat(parent int, base string) (string, error) {
	// Longer than PATH_MAX, which bounds a symlink on all but odd filesystems.
	buf := make([]byte, 4097)
	n, err := unix.Readlinkat(parent, base, buf)
	if err == nil && n == len(buf) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
