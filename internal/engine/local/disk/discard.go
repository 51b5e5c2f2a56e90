package disk

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlShutdown stops a filesystem (EXT4_IOC_SHUTDOWN in fs/ext4/ext4.h,
// _IOR('X', 125, __u32)); noFlush writes nothing more
// (EXT4_GOING_FLAGS_NOLOGFLUSH).
const (
	ioctlShutdown = 0x8004587d
	noFlush       = 2
)

// Discard stops the filesystem in the file at path, which was mounted on that
// loop device: what is in memory of it is never written, and every access
// fails. Without it the end of the last process that uses the mount waits until
// everything was written, which may be gigabytes. Mounts and device stay until
// their users go. It is not an error when nothing is mounted any more.
func Discard(path string, loop int) error {
	dev, err := openDevice(loop)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening /dev/loop%d: %w", loop, err)
	}
	defer unix.Close(dev)
	// While it is open the device stays bound to its file.
	same, err := bound(dev, path)
	if err != nil || !same {
		return err
	}
	// A device has one filesystem object in the kernel, however often it is
	// mounted.
	fd, err := mount(dev)
	if err != nil {
		return fmt.Errorf("reaching the filesystem on /dev/loop%d: %w", loop, err)
	}
	defer unix.Close(fd)
	root, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the filesystem on /dev/loop%d: %w", loop, err)
	}
	defer unix.Close(root)
	flags := uint32(noFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(root), ioctlShutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return fmt.Errorf("stopping the filesystem on /dev/loop%d: %w", loop, errno)
	}
	return nil
}

// bound reports whether the loop device's file is the one at path.
func bound(dev int, path string) (bool, error) {
	info, err := unix.IoctlLoopGetStatus64(dev)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking for a loop device's file: %w", err)
	}
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return info.Device == uint64(st.Dev) && info.Inode == st.Ino, nil
}
