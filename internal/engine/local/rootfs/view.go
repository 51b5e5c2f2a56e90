package rootfs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrSource is returned, wrapped, when a path of the sandbox can't be shown in a
// view: it does not exist, leads through a symbolic link, or is part of a
// filesystem of the kernel.
var ErrSource = errors.New("can't be shown")

// View is the root of an isolated session: that of its sandbox, read-only, with
// some directories of it writable, or writable as copies.
type View struct {
	// Base is the host id that is root in the sandbox.
	Base uint32
	// UserNS is a descriptor of the sandbox's user namespace.
	UserNS int
	// Source is a descriptor of the mount namespace of the sandbox, Target one
	// of that of the session, which shows a shell's first root.
	Source, Target int
	// Mounts are made in order: what is beneath another one comes after it.
	Mounts []ViewMount
}

// Mode is what a session may do in one place.
type Mode int

const (
	// ReadWrite writes to the sandbox's own files.
	ReadWrite Mode = iota
	// ReadOnly changes nothing.
	ReadOnly
	// Overlay writes to copies.
	Overlay
	// Private hides what the sandbox has there behind an empty directory.
	Private
)

// ViewMount is one place of a view.
type ViewMount struct {
	// Path is a clean absolute path, neither "/" nor one in /proc, /sys or /dev.
	// A missing directory is made in the sandbox, unless From names another
	// path.
	Path string
	// From is what of the sandbox is shown there: a directory, or a file when
	// Path is not the same. Empty means Path.
	From string
	Mode Mode
	// Upper, with Overlay, is a descriptor of a directory with the directories
	// "upper" and "work", as in Root.Dir. -1 stands for a tmpfs of UpperBytes,
	// which goes with the session.
	Upper      int
	UpperBytes int64
	// Detached, when not empty, says that Upper is a detached mount, which is
	// mapped to the sandbox's ids and so serves once, and names the directory
	// in it that holds "upper" and "work".
	Detached string
}

// Show makes v the root of the session's processes. When it fails the session's
// container is of no further use and must be thrown away.
//
// The calling thread is for a moment in the mount namespace of the sandbox,
// where hostile code runs. It follows no symbolic link there, and the sandbox's
// processes can't see it, being in another PID namespace.
func (t *Threads) Show(ctx context.Context, v *View) error {
	var c clones
	defer func() { closeAll(c.all()) }()
	// Here and not on the thread, whose mount namespace may not be the one that
	// the descriptors belong to.
	if err := c.openUppers(v); err != nil {
		return err
	}
	return t.do(ctx, func(th *thread) error {
		if err := th.in(v.Source, func() error { return c.take(th, v) }); err != nil {
			return err
		}
		for i := range v.Mounts {
			m := &v.Mounts[i]
			var err error
			switch m.Mode {
			case Overlay:
				err = th.as(v.Base, func() error { return c.cover(th, v, i) })
			case Private:
				c.mounts[i], err = newTmpfs(v.Base, m.UpperBytes, 0o1777)
			}
			if err != nil {
				return fmt.Errorf("preparing %s: %w", m.Path, err)
			}
		}
		return th.in(v.Target, func() error { return c.attach(th, v) })
	})
}

// clones are detached mounts of parts of a sandbox.
type clones struct {
	root   int
	mounts []int
	// uppers are those of overlays whose copies are in a directory of the host.
	uppers []int
}

// openUppers clones the hosts' directories for overlays, mapped to the
// sandbox's ids.
func (c *clones) openUppers(v *View) (err error) {
	c.uppers = make([]int, len(v.Mounts))
	for i := range v.Mounts {
		m := &v.Mounts[i]
		if m.Mode != Overlay || m.Upper < 0 || m.Detached != "" {
			continue
		}
		if c.uppers[i], err = cloneMapped(m.Upper, "", v.UserNS, 0); err != nil {
			return fmt.Errorf("preparing %s: %w", m.Path, err)
		}
	}
	return nil
}

func (c *clones) all() []int {
	var open []int
	for _, fd := range slices.Concat(c.mounts, c.uppers, []int{c.root}) {
		if fd > 0 {
			open = append(open, fd)
		}
	}
	return open
}

// take runs in the sandbox's mount namespace.
func (c *clones) take(th *thread, v *View) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the sandbox's root: %w", err)
	}
	defer unix.Close(root)
	c.mounts = make([]int, len(v.Mounts))
	for i := range v.Mounts {
		m := &v.Mounts[i]
		if c.mounts[i], err = m.take(th, v, root); err != nil {
			return err
		}
	}
	// With what is mounted in it. That of the kernel's filesystems is dropped
	// again in the session.
	if c.root, err = cloneTree(root, unix.AT_RECURSIVE); err != nil {
		return fmt.Errorf("cloning the sandbox's root: %w", err)
	}
	return readOnly(c.root)
}

// take returns a clone of what the mount shows, -1 for a private one.
func (m *ViewMount) take(th *thread, v *View, root int) (int, error) {
	from := m.From
	if from == "" {
		from = m.Path
	}
	if from == m.Path || m.Mode == Private {
		if err := th.as(v.Base, func() error { return ensureTarget(root, m.Path, true) }); err != nil {
			return -1, err
		}
	}
	if m.Mode == Private {
		return -1, nil
	}
	src, err := openSource(root, from)
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	isDir, err := directory(src)
	switch {
	case err != nil:
		return -1, err
	case !isDir && (m.Mode == Overlay || from == m.Path):
		return -1, fmt.Errorf("%s %w: it is not a directory", from, ErrSource)
	}
	if from != m.Path {
		if err := th.as(v.Base, func() error { return ensureTarget(root, m.Path, isDir) }); err != nil {
			return -1, err
		}
	}
	if m.Mode == Overlay {
		// One filesystem is the lower layer; what is mounted beneath is not
		// part of it.
		return cloneTree(src, 0)
	}
	fd, err := cloneTree(src, unix.AT_RECURSIVE)
	if err == nil && m.Mode == ReadOnly {
		if err = readOnly(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, err
}

// ensureTarget makes a directory or file of the sandbox that is missing. The
// sandbox's processes may put links in its way; it follows none.
func ensureTarget(root int, name string, isDir bool) error {
	fd, err := makeTarget(root, name, isDir, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return linkError(name, err)
	}
	return unix.Close(fd)
}

// linkError says what is wrong with a path on which no link was followed.
func linkError(name string, err error) error {
	if errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%s %w: it leads through a symbolic link; give the path without", name, ErrSource)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// openSource opens a path of the sandbox without following any link, so that
// what the request names is what the session gets.
func openSource(root int, name string) (int, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		return -1, linkError(name, err)
	}
	if err != nil {
		return -1, fmt.Errorf("%s %w: %w", name, ErrSource, err)
	}
	if err := ordinary(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%s %w: %w", name, ErrSource, err)
	}
	return fd, nil
}

// errKernelFS says why a path is refused.
var errKernelFS = errors.New("it is part of a filesystem of the kernel")

// ordinary refuses filesystems of the kernel, of which a clone would lose what
// hides parts of them, and what is neither a directory nor a file.
func ordinary(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	switch int64(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, mqueueMagic,
		unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.SECURITYFS_MAGIC, unix.NSFS_MAGIC:
		return errKernelFS
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
		return nil
	}
	return errors.New("it is neither a directory nor a regular file")
}

// mqueueMagic is MQUEUE_MAGIC, ipc/mqueue.c.
const mqueueMagic = 0x19800202

// cloneTree returns a detached mount of what fd refers to.
func cloneTree(fd int, flags uint) (int, error) {
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	return clone, nil
}

// readOnly makes a detached mount read-only with all that is mounted in it.
func readOnly(fd int) error {
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// newTmpfs returns a detached tmpfs that belongs to a sandbox's root. Its pages
// count against the memory of the sandbox whose processes write them.
func newTmpfs(base uint32, size int64, mode uint32) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening tmpfs: %w", err)
	}
	defer unix.Close(fs)
	id := strconv.FormatUint(uint64(base), 10)
	for _, kv := range [][2]string{{"source", "paddock"}, {"uid", id}, {"gid", id},
		{"mode", strconv.FormatUint(uint64(mode), 8)}, {"size", strconv.FormatInt(size, 10)}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("setting %s of a tmpfs: %w", kv[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making a tmpfs: %w", err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
}

// cover replaces the clone of a directory by an overlay over it.
func (c *clones) cover(th *thread, v *View, i int) error {
	m := &v.Mounts[i]
	upper := c.uppers[i]
	if upper <= 0 {
		var err error
		if upper, err = m.openUpper(v); err != nil {
			return err
		}
		defer unix.Close(upper)
	}
	if err := likeLower(upper, path.Join(m.Detached, "upper"), c.mounts[i]); err != nil {
		return err
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("opening overlayfs: %w", err)
	}
	defer unix.Close(fs)
	if th.scratch == "" {
		err = coverByDescriptor(fs, c.mounts[i], upper, m.Detached)
	} else {
		err = th.coverByPath(fs, c.mounts[i], upper, m.Detached)
		defer th.clearScratch()
	}
	if err != nil {
		return overlayError(fs, err)
	}
	fd, err := finishOverlay(fs)
	if err != nil {
		return err
	}
	unix.Close(c.mounts[i])
	c.mounts[i] = fd
	return nil
}

// openUpper returns a detached mount with the directories "upper" and "work",
// where openUppers had nothing to clone.
func (m *ViewMount) openUpper(v *View) (int, error) {
	if m.Detached != "" {
		// Kernels before 6.15 can't clone one.
		return dupMapped(m.Upper, v.UserNS)
	}
	fd, err := newTmpfs(v.Base, m.UpperBytes, 0o755)
	if err != nil {
		return -1, err
	}
	// The thread's fsuid is the sandbox's root.
	for _, dir := range []string{"upper", "work"} {
		if err := unix.Mkdirat(fd, dir, 0o755); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("making %s: %w", dir, err)
		}
	}
	return fd, nil
}

// likeLower gives the upper directory the owner and mode of what it covers: those
// of an overlay's root are the upper directory's.
func likeLower(upper int, name string, lower int) error {
	var st unix.Stat_t
	if err := unix.Fstat(lower, &st); err != nil {
		return err
	}
	if err := unix.Fchownat(upper, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("giving the copies their owner: %w", err)
	}
	if err := unix.Fchmodat(upper, name, st.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("giving the copies their mode: %w", err)
	}
	return nil
}

func coverByDescriptor(fs, lower, upper int, dir string) error {
	if err := unix.FsconfigSetFd(fs, "lowerdir+", lower); err != nil {
		return fmt.Errorf("setting lowerdir: %w", err)
	}
	for _, d := range [][2]string{{"upperdir", "upper"}, {"workdir", "work"}} {
		fd, err := unix.Openat(upper, path.Join(dir, d[1]), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", d[1], err)
		}
		err = unix.FsconfigSetFd(fs, d[0], fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("setting %s: %w", d[0], err)
		}
	}
	return nil
}

// coverByPath is coverByDescriptor for kernels that take paths only. The mounts
// are moved, and the descriptors refer to them as before.
func (th *thread) coverByPath(fs, lower, upper int, dir string) error {
	for i, fd := range []int{lower, upper} {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := attachScratch(th.scratchName(i), func() (int, error) { return dup, nil }); err != nil {
			return fmt.Errorf("attaching a layer: %w", err)
		}
	}
	top := path.Join(th.scratchName(1), dir)
	for _, kv := range [][2]string{{"lowerdir", th.scratchName(0)}, {"upperdir", top + "/upper"}, {"workdir", top + "/work"}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return fmt.Errorf("setting %s: %w", kv[0], err)
		}
	}
	return nil
}

// clearScratch takes off what coverByPath attached: it shall end with the
// session.
func (th *thread) clearScratch() {
	for i := range 2 {
		_ = unix.Unmount(th.scratchName(i), unix.MNT_DETACH) // it may not have come to be attached
	}
}

// attach runs in the session's mount namespace.
func (c *clones) attach(th *thread, v *View) error {
	if err := unix.MoveMount(c.root, "", unix.AT_FDCWD, NewRoot, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attaching the sandbox's root: %w", err)
	}
	for _, name := range []string{"proc", "sys", "dev"} {
		// The sandbox's own; the session has its own ones.
		err := unix.Unmount(path.Join(NewRoot, name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("dropping the sandbox's /%s: %w", name, err)
		}
		if err := carry(c.root, name); err != nil {
			return err
		}
	}
	for i := range v.Mounts {
		err := th.as(v.Base, func() error { return attachAt(c.root, c.mounts[i], v.Mounts[i].Path) })
		if err != nil {
			return fmt.Errorf("mounting %s: %w", v.Mounts[i].Path, err)
		}
	}
	return pivot(c.root)
}

// attachAt mounts a detached mount on what is at target. In a private directory
// or an overlay of another one there may be nothing yet.
func attachAt(root, mount int, target string) error {
	at, err := unix.Openat2(root, target, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return attachVolume(root, mount, target, unix.RESOLVE_NO_SYMLINKS)
	}
	if err != nil {
		return mountPointError(err)
	}
	defer unix.Close(at)
	return unix.MoveMount(mount, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
