package rootfs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	osthread "github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// Stage is a root filesystem that a runtime finds by path, in a mount namespace
// of its own.
type Stage struct {
	// MountNS is a descriptor of that namespace. All of it ends with the last
	// descriptor and the last process in it.
	MountNS int
	// Root is the path of the root, Volumes those of the volumes, and Tmp that of
	// the root's /tmp, which is made when it is missing; empty when it is no
	// directory.
	Root    string
	Volumes []string
	Tmp     string
}

// Close drops the descriptor.
func (s *Stage) Close() error { return unix.Close(s.MountNS) }

// Stage mounts r beneath the existing directory at, in a mount namespace that is
// a copy of the caller's. The volumes are beside the root, not in it: whoever
// serves the root's files may assume that nobody else changes them, which does
// not hold of volumes. The image has a mount point for each of them. MountNS,
// Links and SharedMemoryBytes of r are not used.
func (t *Threads) Stage(ctx context.Context, r *Root, at string) (*Stage, error) {
	volumes, err := cloneVolumes(r)
	defer closeAll(volumes)
	if err != nil {
		return nil, err
	}
	overlay := -1
	err = t.do(ctx, func(th *thread) error {
		return th.as(r.Base, func() (err error) {
			overlay, err = mountOverlay(th, r)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(overlay)
	s := &Stage{MountNS: -1, Root: filepath.Join(at, "root"), Tmp: filepath.Join(at, "tmp")}
	for i := range r.Volumes {
		s.Volumes = append(s.Volumes, filepath.Join(at, "v"+strconv.Itoa(i)))
	}
	if err := osthread.Run(func() error { return s.build(r, at, overlay, volumes) }); err != nil {
		return nil, err
	}
	return s, nil
}

// build runs on a thread of its own.
func (s *Stage) build(r *Root, at string, overlay int, volumes []int) (err error) {
	if err := osthread.KeepCapabilities(); err != nil {
		return err
	}
	if err := ownNamespace(at); err != nil {
		return err
	}
	th := &thread{}
	for _, v := range r.Volumes {
		if err := th.as(r.Base, func() error { return makeMountPoint(overlay, &v) }); err != nil {
			return fmt.Errorf("mounting volume at %s: %w", v.Target, err)
		}
	}
	if err := putAt(overlay, s.Root); err != nil {
		return fmt.Errorf("attaching the image: %w", err)
	}
	if err := s.showTmp(th, r, overlay); err != nil {
		return fmt.Errorf("attaching /tmp: %w", err)
	}
	for i, path := range s.Volumes {
		if err := putAt(volumes[i], path); err != nil {
			return fmt.Errorf("attaching volume %s: %w", r.Volumes[i].Target, err)
		}
	}
	s.MountNS, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// showTmp attaches the root's /tmp, wherever in the root that leads, at a path of
// its own.
func (s *Stage) showTmp(th *thread, r *Root, root int) error {
	dir := -1
	err := th.as(r.Base, func() (err error) {
		dir, err = makeTmp(root)
		return err
	})
	if errors.Is(err, ErrMountPoint) {
		s.Tmp = "" // no directory, and none can be made in its place
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	clone, err := cloneTree(dir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(clone)
	return putAt(clone, s.Tmp)
}

// makeTmp opens /tmp, and makes it for everybody when it is missing.
func makeTmp(root int) (int, error) {
	err := unix.Mkdirat(root, "tmp", 0o777)
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	dir, err := makeDirs(root, "/tmp", 0)
	if err != nil || !made {
		return dir, err
	}
	if err := unix.Fchmodat(root, "tmp", 0o1777, 0); err != nil {
		unix.Close(dir)
		return -1, err
	}
	return dir, nil
}

// makeMountPoint makes what a volume is to be mounted on.
func makeMountPoint(root int, v *Volume) error {
	isDir, err := directory(v.Source)
	if err != nil {
		return err
	}
	at, err := makeTarget(root, v.Target, isDir, 0)
	if err != nil {
		return err
	}
	return unix.Close(at)
}

// putAt attaches a detached mount at a new path.
func putAt(mount int, path string) error {
	isDir, err := directory(mount)
	if err != nil {
		return err
	}
	if isDir {
		err = unix.Mkdir(path, 0o755)
	} else {
		err = unix.Mknod(path, unix.S_IFREG|0o444, 0)
	}
	if err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
