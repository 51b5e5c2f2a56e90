package rootfs

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Link is a symbolic link in the sandbox.
type Link struct {
	// Path is where it is, a clean absolute path. Missing directories are
	// made. Another symbolic link there is replaced; anything else stays, and
	// the link is not made.
	Path string
	// Target is what it says; only programs in the sandbox ever follow it.
	Target string
}

// cloneDevice returns a detached mount of a device node that can be opened,
// whatever the mount says on which the node was made. /run, for one, is usually
// nodev.
func cloneDevice(node int) (int, error) {
	fd, err := cloneTree(node, 0)
	if err != nil {
		return -1, err
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Attr_clr: unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount_setattr: %w", err)
	}
	return fd, nil
}

// directory reports whether the root of a detached mount is one.
func directory(mount int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(mount, &st); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// makeFile opens what is at a path of the image, unless that is a directory, or
// makes an empty file there, to mount a file on. resolve is as for makeDirs.
func makeFile(root int, target string, resolve uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	fd, err := unix.Openat2(root, target, how)
	if errors.Is(err, unix.ENOENT) {
		if err := makeEmpty(root, target, resolve); err != nil {
			return -1, err
		}
		fd, err = unix.Openat2(root, target, how)
	}
	if err != nil {
		return -1, mountPointError(err)
	}
	isDir, err := directory(fd)
	if err == nil && isDir {
		err = mountPointError(unix.EISDIR)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makeEmpty makes a file by its single name in its directory, which can't lead
// anywhere else.
func makeEmpty(root int, target string, resolve uint64) error {
	parent, name := path.Split(target)
	if name == "" {
		return mountPointError(unix.EISDIR)
	}
	dir, err := makeDirs(root, parent, resolve)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if errors.Is(err, unix.EEXIST) {
		return nil // a dangling symlink: the next look at it says so
	}
	if err != nil {
		return fmt.Errorf("making %s: %w", target, err)
	}
	return unix.Close(fd)
}

// make makes the link beneath the image's root.
func (l *Link) make(root int) error {
	parent, name := path.Split(l.Path)
	if name == "" {
		return mountPointError(unix.EISDIR)
	}
	dir, err := makeDirs(root, parent, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Symlinkat(l.Target, dir, name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return err
	}
	return unix.Symlinkat(l.Target, dir, name)
}
