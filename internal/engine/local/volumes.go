package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Named volumes are directories of the data directory's "volumes", owned by the
// ids that sandboxes see. A new one appears under its name in one step, with the
// id of the sandbox that it was made for in an attribute, so that a crash loses
// nothing of that; there is no other record.

// makerAttr names the sandbox whose create made a volume. Attributes of this
// class can't be seen or changed from within a user namespace (xattr(7)).
const makerAttr = "trusted.paddock.maker"

// openVolumes opens the sources of all mounts, making named volumes and host
// directories that are missing. It returns what it opened and the named volumes
// that it made, also with an error.
func (e *Engine) openVolumes(id string, mounts []sandbox.VolumeMount) (opened []rootfs.Volume, made []string, err error) {
	for i := range mounts {
		m := &mounts[i]
		fd, created, err := e.openVolume(id, m)
		if created {
			made = append(made, m.Claim)
		}
		if err != nil {
			return opened, made, err
		}
		opened = append(opened, rootfs.Volume{Source: fd, Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	return opened, made, nil
}

func closeVolumes(volumes []rootfs.Volume) {
	for _, v := range volumes {
		unix.Close(v.Source)
	}
}

// openVolume returns a descriptor of the directory to mount.
func (e *Engine) openVolume(id string, m *sandbox.VolumeMount) (fd int, created bool, err error) {
	if m.HostPath != "" {
		fd, err = e.openHostPath(m)
	} else {
		fd, created, err = e.openNamed(id, m)
	}
	if err != nil || m.SubPath == "" {
		return fd, created, err
	}
	defer unix.Close(fd)
	// The volume's content is the work of sandboxes: its symlinks may point
	// anywhere, and are followed only as long as they stay beneath.
	sub, err := openBeneath(fd, m.SubPath, 0o755)
	if err != nil {
		return -1, created, subPathRefused(m, err)
	}
	return sub, created, nil
}

func subPathRefused(m *sandbox.VolumeMount, err error) error {
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidSubPath,
		"Volume %q: subPath %q can't be opened: %s. It must be a directory within the volume, reached by no link that leaves it.", m.Name, m.SubPath, plain(err))
}

func (e *Engine) openNamed(id string, m *sandbox.VolumeMount) (int, bool, error) {
	dir := filepath.Join(e.in.volumesDir(), m.Claim)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		return fd, false, nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return -1, false, err
	}
	if !m.CreateIfMissing {
		return -1, false, volumeMissing(m)
	}
	created, err := e.makeVolume(id, dir)
	if err != nil {
		return -1, false, err
	}
	fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, created, err
}

// makeVolume makes a volume for a sandbox, and reports false when somebody else
// did so first.
func (e *Engine) makeVolume(id, dir string) (bool, error) {
	// What a crash leaves in the trash, the next start removes.
	temporary, err := os.MkdirTemp(e.in.trashDir(), "volume-")
	if err != nil {
		return false, err
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return false, errors.Join(err, os.Remove(temporary))
	}
	err = unix.Setxattr(temporary, makerAttr, []byte(id), 0)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return false, errors.Join(fmt.Errorf("marking a volume: %w", err), os.Remove(temporary))
	}
	err = unix.Renameat2(unix.AT_FDCWD, temporary, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	return false, errors.Join(err, os.Remove(temporary))
}

// MadeVolume implements sandbox.VolumeMaker.
func (e *Engine) MadeVolume(name string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(filepath.Join(e.in.volumesDir(), name), makerAttr, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func volumeMissing(m *sandbox.VolumeMount) error {
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeVolumeNotFound,
		"Volume %q: the named volume %q does not exist, and pvc.createIfNotExists is false.", m.Name, m.Claim)
}

// openHostPath opens a host directory beneath the allowed directory that holds
// it. Links within are followed as long as they stay beneath.
func (e *Engine) openHostPath(m *sandbox.VolumeMount) (int, error) {
	root, rel, ok := e.allowedRoot(m.HostPath)
	if !ok {
		return -1, e.notAllowed(m)
	}
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, sandbox.Errorf(sandbox.KindInternal, sandbox.CodeHostPathNotFound,
			"Volume %q: the allowed directory %q can't be opened: %s.", m.Name, root, plain(err))
	}
	if rel == "" {
		return at, nil
	}
	defer unix.Close(at)
	fd, err := openBeneath(at, rel, 0o755)
	switch {
	case err == nil:
		return fd, nil
	case astray(err):
		return -1, e.linkRefused(m, root)
	}
	return -1, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeHostPathNotFound,
		"Volume %q: host.path %q can't be used: %s. It must be a directory, or a path where one can be made.", m.Name, m.HostPath, plain(err))
}

func (e *Engine) linkRefused(m *sandbox.VolumeMount, root string) error {
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeHostPathNotAllowed,
		"Volume %q: host.path %q leads out of the allowed directory %q through a link.", m.Name, m.HostPath, root)
}

// astray reports whether a path was refused for a link that leaves its root.
func astray(err error) bool { return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) }

// allowedRoot finds the allowed directory that holds p.
func (e *Engine) allowedRoot(p string) (root, rel string, ok bool) {
	for _, allowed := range e.opts.AllowedHostPaths {
		allowed = path.Clean(allowed)
		if p == allowed {
			return allowed, "", true
		}
		prefix := strings.TrimSuffix(allowed, "/") + "/"
		if rest, found := strings.CutPrefix(p, prefix); found {
			return allowed, rest, true
		}
	}
	return "", "", false
}

func (e *Engine) notAllowed(m *sandbox.VolumeMount) error {
	allowed := "no host path is allowed; the server's operator can allow some in storage.allowed_host_paths"
	if len(e.opts.AllowedHostPaths) > 0 {
		allowed = "allowed are directories in " + strings.Join(e.opts.AllowedHostPaths, ", ")
	}
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeHostPathNotAllowed,
		"Volume %q: host.path %q is not allowed: %s.", m.Name, m.HostPath, allowed)
}

// beneath opens a directory that is reached without leaving where it began.
var beneath = &unix.OpenHow{
	Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
	Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
}

// openBeneath opens the directory rel beneath at, making missing parts.
func openBeneath(at int, rel string, mode uint32) (int, error) {
	fd, err := unix.Openat2(at, rel, beneath)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, name := path.Split(strings.TrimSuffix(rel, "/"))
	dir := at
	if parent = strings.TrimSuffix(parent, "/"); parent != "" {
		if dir, err = openBeneath(at, parent, mode); err != nil {
			return -1, err
		}
		defer unix.Close(dir)
	}
	if err := unix.Mkdirat(dir, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return unix.Openat2(at, rel, beneath)
}

// plain is an errno as a phrase.
func plain(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// removeVolumes undoes what a failed create made.
func (e *Engine) removeVolumes(names []string) {
	for _, name := range names {
		if err := e.RemoveVolume(context.Background(), name); err != nil {
			e.log.Error("removing the volume of a failed create", "volume", name, "error", err)
		}
	}
}

// ListVolumes lists the named volumes.
func (e *Engine) ListVolumes(ctx context.Context) ([]sandbox.VolumeInfo, error) {
	entries, err := os.ReadDir(e.in.volumesDir())
	if err != nil {
		return nil, err
	}
	var out []sandbox.VolumeInfo
	for _, d := range entries {
		info, err := d.Info()
		if err != nil {
			continue
		}
		size, err := diskUse(ctx, filepath.Join(e.in.volumesDir(), d.Name()))
		if err != nil {
			return nil, err
		}
		out = append(out, sandbox.VolumeInfo{Name: d.Name(), CreatedAt: info.ModTime().UTC(), SizeBytes: size})
	}
	return out, nil
}

// diskUse adds up the blocks of a tree, without following links.
func diskUse(ctx context.Context, dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				total += st.Blocks * 512
			} else {
				total += info.Size()
			}
		}
		return nil
	})
	return total, err
}

// RemoveVolume removes a named volume and its content.
func (e *Engine) RemoveVolume(_ context.Context, name string) error {
	if name == "" || strings.ContainsAny(name, "/.") {
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeVolumeNotFound, "Volume %q does not exist.", name)
	}
	dir := filepath.Join(e.in.volumesDir(), name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeVolumeNotFound, "Volume %q does not exist.", name)
	}
	if err := e.trash.put(dir, "volume."+name); err != nil {
		return fmt.Errorf("removing volume %q: %w", name, err)
	}
	return nil
}
