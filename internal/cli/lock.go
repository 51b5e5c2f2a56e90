package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// dataLock keeps a second server out of a data directory: an open file
// description lock (fcntl(2)), which the kernel drops when the process dies,
// however it dies.
type dataLock struct{ f *os.File }

// lockData makes the data directory, closed to other users, and locks it.
func lockData(dir string) (*dataLock, error) {
	err := os.MkdirAll(dir, 0o700)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("making the data directory: %w: run as root, or set PADDOCK_SERVER and PADDOCK_API_KEY to use a server", err)
	}
	if err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing the data directory to other users: %w", err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		f.Close()
		return nil, fmt.Errorf("another paddock (%s) is using %s: stop it first, or give this one another --data-dir", holder(dir), dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return &dataLock{f}, nil
}

// holder says who holds the lock, as far as it has said so itself.
func holder(dir string) string {
	if info, err := look(dir); err == nil {
		return fmt.Sprintf("process %d", info.PID)
	}
	return "a process that is starting or stopping"
}

// release lets the next one in.
func (l *dataLock) release() error { return l.f.Close() }

// lockHeld reports whether some process holds the lock. It only asks: taking
// the lock for a moment could make a server that starts just then give up.
func lockHeld(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("asking for the lock %s: %w", path, err)
	}
	return l.Type != unix.F_UNLCK, nil
}
