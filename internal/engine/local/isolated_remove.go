package local

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// errMounted is why a change is not committed: what is mounted is not part of
// what the overlay covers.
var errMounted = errors.New("something is mounted there")

// openBelow opens a directory by one name, on the same mount.
func openBelow(dir int, name string) (int, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, errMounted
	}
	return fd, err
}

// notMounted fails when something is mounted on the name, whatever that is. The
// kernel refuses to remove or replace a mount point only when it is one in the
// caller's mount namespace, which here is the host's. In that of the sandbox it
// would take the mount off. Processes of the sandbox can't mount, so the answer
// holds.
func notMounted(dir int, name string) error {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		// Symbolic links are opened themselves.
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return errMounted
	}
	return err
}

// unlink removes one name on which nothing is mounted.
func unlink(dir int, name string, flags int) error {
	if err := notMounted(dir, name); err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, flags)
}

// replace renames a file in a directory to a name on which nothing is mounted.
func replace(dir int, temp, name string) error {
	if err := notMounted(dir, name); err != nil {
		return err
	}
	return unix.Renameat(dir, temp, dir, name)
}

// removed removes what has that name, with all in it.
func (c *committer) removed(ctx context.Context, dir int, name string) error {
	return removeTree(ctx, dir, name, &c.budget, 0)
}

func removeTree(ctx context.Context, dir int, name string, budget *int, depth int) error {
	err := unlink(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth > maxDepth {
		return errTooDeep
	}
	fd, err := openBelow(dir, name)
	if err != nil {
		return err
	}
	d := &upperDir{fd: fd, path: name}
	defer d.close()
	err = d.each(ctx, budget, func(e *entry) error { return removeTree(ctx, fd, e.name, budget, depth+1) })
	if err != nil {
		return err
	}
	return unlink(dir, name, unix.AT_REMOVEDIR)
}
