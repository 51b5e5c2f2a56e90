package rootfs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NewRoot is the empty directory in a shell's first root where the image is
// attached before it becomes the root.
const NewRoot = "/new"

// maxLayers is what overlayfs accepts (OVL_MAX_STACK, fs/overlayfs/params.h).
const maxLayers = 500

// ErrMountPoint is returned, wrapped, when a path inside the image cannot
// serve as a mount point: it is a file, or a loop of symlinks.
var ErrMountPoint = errors.New("not usable as a mount point")

// ErrIDMap is returned, wrapped, when a filesystem cannot map user ids.
var ErrIDMap = errors.New("the filesystem does not support idmapped mounts")

// Root describes a sandbox's root filesystem.
type Root struct {
	// Layers are the image's layer directories, topmost first. Their files
	// have the ids that they have in the image.
	Layers []string
	// Dir holds the directories "upper" and "work", on one filesystem, with
	// the ids that the sandbox sees as well: 0 is the sandbox's root.
	Dir string
	// DirFD, unless it is 0, is the descriptor of a detached mount whose root
	// takes the place of Dir. Switch maps that mount to the sandbox's ids, so
	// it serves once; the overlay keeps its filesystem from then on, and the
	// caller closes DirFD.
	DirFD int
	// Base is the host id that is root in the shell.
	Base uint32
	// UserNS is a descriptor of the shell's user namespace.
	UserNS int
	// MountNS is a descriptor of the shell's mount namespace.
	MountNS int
	// Volumes are mounted in order, after /proc, /sys and /dev.
	Volumes []Volume
	// Links are made after that.
	Links []Link
	// SharedMemoryBytes is how much fits into /dev/shm; 0 leaves the shell's
	// size.
	SharedMemoryBytes int64
}

// Volume is one directory or file of the host in the sandbox.
type Volume struct {
	// Source is a descriptor of the directory or file.
	Source int
	// Target is a clean absolute path in the sandbox. Missing directories are
	// made, and for a file an empty one to mount it on.
	Target   string
	ReadOnly bool
	// Device says that Source is a device node which belongs to one of the
	// shell's ids on the host: it is not mapped to them, and can be opened.
	Device bool
}

// Switch makes r the root of the shell. When it fails the shell is of no
// further use and must be thrown away; nothing is mounted anywhere else.
func (t *Threads) Switch(ctx context.Context, r *Root) error {
	// Here and not on the thread, whose mount namespace may not be the one
	// that the volumes' descriptors belong to.
	volumes, err := cloneVolumes(r)
	defer closeAll(volumes)
	if err != nil {
		return err
	}
	return t.do(ctx, func(th *thread) error {
		var overlay int
		err := th.as(r.Base, func() (err error) {
			overlay, err = mountOverlay(th, r)
			return err
		})
		if err != nil {
			return err
		}
		defer unix.Close(overlay)
		return th.in(r.MountNS, func() error { return attach(th, r, overlay, volumes) })
	})
}

// mountOverlay returns a detached overlay mount. The thread's fsuid is the
// shell's base id: overlayfs acts on the upper directory as the mounter, whose
// id must be one that the idmapped mount of it can express, or the overlay is
// silently read-only.
func mountOverlay(th *thread, r *Root) (int, error) {
	if len(r.Layers) == 0 || len(r.Layers) > maxLayers {
		return -1, fmt.Errorf("the image has %d layers, overlayfs takes 1 to %d", len(r.Layers), maxLayers)
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening overlayfs: %w", err)
	}
	defer unix.Close(fs)
	set := setLayers
	if th.scratch != "" {
		set = th.setLayersByPath
	}
	// A detached mount lives as long as its descriptor, and the overlay makes
	// its own clones only when it is created.
	defer th.dropScratch(r)
	open, err := set(fs, r)
	defer closeAll(open)
	if err != nil {
		return -1, overlayError(fs, err)
	}
	return finishOverlay(fs)
}

// finishOverlay returns a detached mount of an overlay that has its layers.
func finishOverlay(fs int) (int, error) {
	// volatile: no sync of the upper directory; a sandbox does not outlive its
	// host, so a crash of the host makes the upper directory rubbish anyway.
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return -1, overlayError(fs, fmt.Errorf("setting volatile: %w", err))
	}
	for _, kv := range [][2]string{{"source", "paddock"}, {"redirect_dir", "off"}, {"index", "off"}, {"metacopy", "off"}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, overlayError(fs, fmt.Errorf("setting %s: %w", kv[0], err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, overlayError(fs, fmt.Errorf("creating the overlay: %w", err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, overlayError(fs, fmt.Errorf("mounting the overlay: %w", err))
	}
	return fd, nil
}

// setLayers gives the overlay its layers, topmost first, and its writable part.
// The returned descriptors must stay open until the overlay is created.
func setLayers(fs int, r *Root) (open []int, err error) {
	for _, dir := range r.Layers {
		fd, err := cloneMapped(unix.AT_FDCWD, dir, r.UserNS, unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return open, fmt.Errorf("mapping layer %s: %w", dir, err)
		}
		open = append(open, fd)
		if err := unix.FsconfigSetFd(fs, "lowerdir+", fd); err != nil {
			return open, fmt.Errorf("adding layer %s: %w", dir, err)
		}
	}
	dir, err := r.mapDir()
	if err != nil {
		return open, fmt.Errorf("mapping %s: %w", r.Dir, err)
	}
	open = append(open, dir)
	for _, d := range [][2]string{{"upperdir", "upper"}, {"workdir", "work"}} {
		fd, err := unix.Openat(dir, d[1], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return open, fmt.Errorf("opening %s/%s: %w", r.Dir, d[1], err)
		}
		open = append(open, fd)
		if err := unix.FsconfigSetFd(fs, d[0], fd); err != nil {
			return open, fmt.Errorf("setting %s: %w", d[0], err)
		}
	}
	return open, nil
}

// setLayersByPath does what setLayers does on kernels that take paths only: the
// mapped clones are attached in the thread's scratch tmpfs until the overlay
// exists, which keeps clones of its own.
func (th *thread) setLayersByPath(fs int, r *Root) ([]int, error) {
	var names []string
	for i, dir := range r.Layers {
		name := th.scratchName(i)
		err := attachScratch(name, func() (int, error) {
			return cloneMapped(unix.AT_FDCWD, dir, r.UserNS, unix.MOUNT_ATTR_RDONLY)
		})
		if err != nil {
			return nil, fmt.Errorf("mapping layer %s: %w", dir, err)
		}
		names = append(names, name)
	}
	top := th.scratchName(len(r.Layers))
	if err := attachScratch(top, r.mapDir); err != nil {
		return nil, fmt.Errorf("mapping %s: %w", r.Dir, err)
	}
	for _, kv := range [][2]string{
		{"lowerdir", strings.Join(names, ":")},
		{"upperdir", top + "/upper"}, {"workdir", top + "/work"},
	} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return nil, fmt.Errorf("setting %s: %w", kv[0], err)
		}
	}
	return nil, nil
}

func (th *thread) scratchName(i int) string { return path.Join(th.scratch, strconv.Itoa(i)) }

// attachScratch replaces what an earlier overlay left attached under that name
// by the detached mount that open returns.
func attachScratch(name string, open func() (int, error)) error {
	if err := unix.Mkdir(name, 0o711); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Unmount(name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	fd, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.MoveMount(fd, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// dropScratch takes a filesystem of the sandbox's own off the scratch tmpfs: it
// shall end with the sandbox, not with the thread's next overlay.
func (th *thread) dropScratch(r *Root) {
	if th.scratch != "" && r.DirFD > 0 {
		// It may not have come to be attached.
		_ = unix.Unmount(th.scratchName(len(r.Layers)), unix.MNT_DETACH)
	}
}

// mapDir returns a descriptor of the mapped parent of upper and work. Upper and
// work must be on one mount, so their parent is mapped and not they. A detached
// mount is mapped itself: kernels before 6.15 can't clone one.
func (r *Root) mapDir() (int, error) {
	if r.DirFD <= 0 {
		return cloneMapped(unix.AT_FDCWD, r.Dir, r.UserNS, 0)
	}
	return dupMapped(r.DirFD, r.UserNS)
}

// dupMapped maps the ids of a detached mount and returns another descriptor of
// it.
func dupMapped(mount, userns int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(mount), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := mapMount(fd, userns, 0); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// cloneMapped returns a detached clone of the mount at dir whose ids are mapped
// through the user namespace.
func cloneMapped(at int, dir string, userns int, attr uint64) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if dir == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(at, dir, flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	if err := mapMount(fd, userns, attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mapMount maps the ids of a detached mount through the user namespace.
func mapMount(fd, userns int, attr uint64) error {
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | attr,
		Userns_fd: uint64(userns),
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w (%w)", ErrIDMap, err)
	}
	return fmt.Errorf("mount_setattr: %w", err)
}

// overlayError adds what the kernel says in the filesystem context's log.
func overlayError(fs int, err error) error {
	buf := make([]byte, 512)
	var said []string
	for range 8 {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(string(buf[:n])))
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w (kernel: %s)", err, strings.Join(said, "; "))
}

func cloneVolumes(r *Root) ([]int, error) {
	var fds []int
	for _, v := range r.Volumes {
		fd, err := v.clone(r.UserNS)
		if err != nil {
			return fds, fmt.Errorf("mounting a volume at %s: %w", v.Target, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// clone returns a detached mount of the volume.
func (v *Volume) clone(userns int) (int, error) {
	if v.Device {
		return cloneDevice(v.Source)
	}
	attr := uint64(unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID)
	if v.ReadOnly {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	return cloneMapped(v.Source, "", userns, attr)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// attach runs in the shell's mount namespace.
func attach(th *thread, r *Root, overlay int, volumes []int) error {
	if err := unix.MoveMount(overlay, "", unix.AT_FDCWD, NewRoot, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attaching the image: %w", err)
	}
	if r.SharedMemoryBytes > 0 {
		if err := resizeShm(r.SharedMemoryBytes); err != nil {
			return err
		}
	}
	for _, name := range []string{"proc", "sys", "dev"} {
		if err := carry(overlay, name); err != nil {
			return err
		}
	}
	for i, v := range r.Volumes {
		err := th.as(r.Base, func() error { return attachVolume(overlay, volumes[i], v.Target, 0) })
		if err != nil {
			return fmt.Errorf("mounting volume at %s: %w", v.Target, err)
		}
	}
	for _, l := range r.Links {
		if err := th.as(r.Base, func() error { return l.make(overlay) }); err != nil {
			return fmt.Errorf("linking %s: %w", l.Path, err)
		}
	}
	return pivot(overlay)
}

// resizeShm sets the size of the shell's /dev/shm. Its path is still the shell's,
// which no sandbox has had a hand in.
func resizeShm(bytes int64) error {
	fs, err := unix.Fspick(unix.AT_FDCWD, "/dev/shm", unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return fmt.Errorf("opening /dev/shm: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", strconv.FormatInt(bytes, 10)); err != nil {
		return fmt.Errorf("setting the size of /dev/shm: %w", err)
	}
	if err := unix.FsconfigReconfigure(fs); err != nil {
		return fmt.Errorf("setting the size of /dev/shm: %w", err)
	}
	return nil
}

// carry moves one of the shell's ready kernel filesystems, with all that is
// mounted on it, into the image. The engine made an own directory of that name
// in the upper directory, so whatever the image has there is hidden.
func carry(root int, name string) error {
	target, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return fmt.Errorf("opening /%s of the image: %w (%w)", name, ErrMountPoint, err)
	}
	defer unix.Close(target)
	if err := unix.MoveMount(unix.AT_FDCWD, "/"+name, target, "", unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("moving /%s: %w", name, err)
	}
	return nil
}

// attachVolume mounts a detached mount at a path of the image, making what is
// missing of it. resolve is as for makeDirs.
func attachVolume(root, mount int, target string, resolve uint64) error {
	isDir, err := directory(mount)
	if err != nil {
		return err
	}
	at, err := makeTarget(root, target, isDir, resolve)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return unix.MoveMount(mount, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// makeTarget opens a directory or file of the image to mount another on it, or
// makes it. resolve is as for makeDirs.
func makeTarget(root int, target string, isDir bool, resolve uint64) (int, error) {
	if isDir {
		return makeDirs(root, target, resolve)
	}
	return makeFile(root, target, resolve)
}

// makeDirs opens a directory of the image, making what is missing of its path.
// Symlinks resolve inside the image, unless resolve has RESOLVE_NO_SYMLINKS;
// magic links are refused.
func makeDirs(root int, target string, resolve uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	fd, err := unix.Openat2(root, target, how)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, mountPointError(err)
	}
	// Each parent is opened within the root again and the next name made in
	// it: a single name cannot lead anywhere else.
	parent, name := path.Split(strings.TrimSuffix(target, "/"))
	if name == "" {
		return -1, mountPointError(err)
	}
	pfd, err := makeDirs(root, parent, resolve)
	if err != nil {
		return -1, err
	}
	err = unix.Mkdirat(pfd, name, 0o755)
	unix.Close(pfd)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("making %s: %w", target, err)
	}
	// EEXIST is a dangling symlink: opening it again fails and says so.
	fd, err = unix.Openat2(root, target, how)
	return fd, mountPointError(err)
}

func mountPointError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w (%w)", ErrMountPoint, err)
}

// pivot makes the mount at root the root of the namespace and of every process
// in it, and drops the old one.
func pivot(root int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the old root: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return fmt.Errorf("entering the old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the old root: %w", err)
	}
	return unix.Chdir("/")
}
