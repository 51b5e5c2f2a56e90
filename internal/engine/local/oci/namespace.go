package oci

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// Where hosts mount cgroups; on hybrid ones the v2 hierarchy is below (systemd's
// convention, which both runtimes follow).
const (
	cgroupRoot    = "/sys/fs/cgroup"
	unifiedCgroup = cgroupRoot + "/unified"
)

// withoutUnifiedCgroup returns a mount namespace in which the cgroup v2
// hierarchy of a hybrid host is not to be seen, or -1 on other hosts. crun
// refuses a hybrid host while a controller sits on v2 ("cgroups in hybrid mode
// not supported"), and unmounting it for everybody is not ours to do.
func withoutUnifiedCgroup() (int, error) {
	if !hybrid() {
		return -1, nil
	}
	return namespace(hideUnifiedCgroup)
}

// withReadOnlyCgroups returns a mount namespace for runc, which can't be told to
// leave cgroups alone: on v1 it puts a device policy of its own under the parent
// with ours, which the kernel refuses, and at the end it removes what others
// still use. In the namespace it can make, enter, change and remove none; the
// shell stays in the cgroup that runc was started in.
func withReadOnlyCgroups() (int, error) {
	return namespace(func() error {
		if hybrid() {
			if err := hideUnifiedCgroup(); err != nil {
				return err
			}
		}
		err := unix.MountSetattr(unix.AT_FDCWD, cgroupRoot, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("making %s read-only for runc: cgroups must be mounted there", cgroupRoot)
		}
		if err != nil {
			return fmt.Errorf("making %s read-only for runc: %w", cgroupRoot, err)
		}
		return nil
	})
}

func hybrid() bool {
	var st unix.Statfs_t
	return unix.Statfs(unifiedCgroup, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func hideUnifiedCgroup() error {
	if err := unix.Unmount(unifiedCgroup, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("hiding %s: %w", unifiedCgroup, err)
	}
	return nil
}

// namespace returns a mount namespace that change was called in.
func namespace(change func() error) (int, error) {
	fd := -1
	err := thread.Run(func() (err error) {
		if err := thread.OwnMounts(); err != nil {
			return err
		}
		if err := change(); err != nil {
			return err
		}
		fd, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// enterMountNS moves the calling thread, which is not used for anything else
// afterwards.
func (r *Runtime) enterMountNS() error {
	if r.mountNS < 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unsharing the thread's root: %w", err)
	}
	if err := unix.Setns(r.mountNS, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the mount namespace: %w", err)
	}
	return nil
}
