package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MinBytes is the smallest filesystem that Make makes: below it the tables of
// ext4 are a large part of the whole.
const MinBytes = 16 << 20

// makeTimeout bounds the run of mkfs.ext4, which writes about 0.001% of the
// size.
const makeTimeout = 20 * time.Second

// features of the filesystem, all of ext4 since Linux 2.6.28, so that it is the
// same whatever the host's mke2fs.conf says. No journal: see the package
// comment. uninit_bg makes lazy inode tables possible.
const features = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,uninit_bg,dir_nlink,extra_isize"

// bytesPerInode is how much room there is for each file. A tree of packages has
// files of 4 to 8 KiB on average; an inode takes 256 bytes.
const bytesPerInode = "8192"

// ErrNoMkfs is returned, wrapped, when the host has no mkfs.ext4.
var ErrNoMkfs = errors.New("mkfs.ext4 was not found")

// ErrNoLoop is returned, wrapped, when the host offers no loop devices.
var ErrNoLoop = errors.New("loop devices are not available")

// Supported returns nil when this host can make and mount such filesystems, as
// far as can be told without making one; else an error that wraps ErrNoMkfs or
// ErrNoLoop, or says that ext4 is missing.
func Supported() error {
	if _, err := mkfs(); err != nil {
		return err
	}
	ctl, err := openControl()
	if err != nil {
		return err
	}
	unix.Close(ctl)
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("the kernel can't mount ext4: %w", err)
	}
	return unix.Close(fs)
}

// mkfs finds the program also where a service's PATH may not lead.
func mkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", ErrNoMkfs
}

// Make makes the file at path, which must not exist, with an empty filesystem
// of that size in it. The file is sparse: it takes from its disk only what is
// written. If Make fails, the file may be left.
func Make(ctx context.Context, path string, size int64) error {
	if size < MinBytes {
		return fmt.Errorf("making a disk of %d bytes: at least %d are needed", size, MinBytes)
	}
	program, err := mkfs()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("sizing the disk: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	var said bytes.Buffer
	// The descriptor and not the name: whatever the directory is called, it
	// can't be taken for an option.
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-b", "4096", "-m", "0", "-i", bytesPerInode, "-O", features,
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-U", "random", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"LC_ALL=C", "MKE2FS_CONFIG=/dev/null"}
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("running mkfs.ext4: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// Mount attaches the file at path and returns a descriptor of the detached
// mount of its filesystem, and the loop device's number, by which Discard finds
// it. Closing the descriptor, when nothing was made of the mount, undoes all.
// It may be called once for each file.
func Mount(path string) (fd, loop int, err error) {
	image, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(image)
	dev, loop, err := attach(image, filepath.Base(filepath.Dir(path)))
	if err != nil {
		return -1, -1, err
	}
	// The mount keeps the device from here on.
	defer unix.Close(dev)
	fd, err = mount(dev)
	if err != nil {
		return -1, -1, fmt.Errorf("mounting /dev/loop%d: %w", loop, err)
	}
	return fd, loop, nil
}

// mount returns a detached mount of the device's filesystem.
func mount(dev int) (int, error) {
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening ext4: %w", err)
	}
	defer unix.Close(fs)
	// By descriptor, so that it is the device that was configured, and needs
	// no node in /dev.
	if err := unix.FsconfigSetString(fs, "source", fmt.Sprintf("/proc/self/fd/%d", dev)); err != nil {
		return -1, fmt.Errorf("setting the device: %w", err)
	}
	// nobarrier: nobody's data depends on the order of writes, and a flush of
	// the loop device is an fsync of the whole file. noinit_itable: writing
	// the inode tables in the background would fill the sparse file.
	for _, flag := range []string{"nobarrier", "noinit_itable"} {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return -1, fmt.Errorf("setting %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("reading the filesystem: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("making the mount: %w", err)
	}
	return fd, nil
}
