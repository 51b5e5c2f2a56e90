package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/disk"
	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// What to do where limited disks can't be made; for doctor and for the error.
const (
	remedyMkfs = "install it: apt-get install e2fsprogs"
	remedyLoop = "load it with `modprobe loop`; a container needs --privileged, or the devices /dev/loop-control and /dev/loop*"
	remedyExt4 = "load it with `modprobe ext4`"
)

// checkDisk refuses a limit of the writable layer that can't be honoured.
func (e *Engine) checkDisk(size int64) error {
	if size == 0 {
		return nil
	}
	invalid := func(format string, args ...any) error {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter, "resourceLimits.ephemeral-storage: "+format, args...)
	}
	if size < disk.MinBytes {
		return invalid("%d bytes is less than a filesystem needs; give at least %dMi.", size, disk.MinBytes>>20)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(e.opts.DataDir, &st); err != nil {
		return fmt.Errorf("asking for the size of the data directory: %w", err)
	}
	if all := int64(st.Blocks) * st.Bsize; size > all {
		return invalid("%d bytes is more than the disk of this server has; give at most %dMi.", size, all>>20)
	}
	if err := disk.Supported(); err != nil {
		return invalid("%d bytes can't be enforced on this server: %v. Leave it out, or have the server's operator do this: %s.", size, err, diskRemedy(err))
	}
	return nil
}

func diskRemedy(err error) string {
	switch {
	case errors.Is(err, disk.ErrNoMkfs):
		return remedyMkfs
	case errors.Is(err, disk.ErrNoLoop):
		return remedyLoop
	}
	return remedyExt4
}

// checkDisks is doctor's look at limited disks.
func checkDisks() Check {
	err := disk.Supported()
	if err == nil {
		return Check{Name: "limited disks", OK: true, Detail: "mkfs.ext4 and loop devices are available"}
	}
	return Check{Name: "limited disks", Detail: err.Error(), Remedy: diskRemedy(err),
		Cost: "sandboxes that ask for resourceLimits.ephemeral-storage are refused"}
}

// diskFile is the image of a sandbox's limited disk, if it has one.
func (e *Engine) diskFile(id string) string { return filepath.Join(e.in.data(id), "disk.img") }

// makeDisk makes a disk of that size for the shell, with a writable layer on
// it, to take the place of the one that every shell has. It returns a
// descriptor of the detached mount and the number of the loop device. Nothing
// but the file is left once the descriptor is closed.
func (e *Engine) makeDisk(ctx context.Context, s *shell, size int64) (fd, loop int, err error) {
	file := e.diskFile(s.id)
	if err := disk.Make(ctx, file, size); err != nil {
		return -1, -1, fmt.Errorf("making a disk of %d bytes: %w", size, err)
	}
	fd, loop, err = disk.Mount(file)
	if err != nil {
		return -1, -1, fmt.Errorf("making a disk of %d bytes: %w", size, err)
	}
	// A path through the descriptor leads into the mount, which has no other.
	if err := e.writeLayer(s, fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		unix.Close(fd)
		return -1, -1, err
	}
	return fd, loop, nil
}

// discardDisk keeps the end of a sandbox from waiting until all that it wrote
// has reached its disk's file, which is about to be removed.
func (e *Engine) discardDisk(s *shell) {
	if s.loop == nil {
		return
	}
	if err := disk.Discard(e.diskFile(s.id), *s.loop); err != nil {
		// The end only takes longer.
		e.log.Warn("discarding a sandbox's disk", "sandbox", s.id, "error", err)
	}
}

// writeLayer makes a writable layer in dir: the directories "upper" and "work",
// with the files that every sandbox has its own of.
func (e *Engine) writeLayer(s *shell, dir string) error {
	upper := filepath.Join(dir, "upper")
	for _, d := range []string{upper, filepath.Join(dir, "work"),
		// Directories of the upper layer hide whatever the image has under
		// these names, a symlink included.
		filepath.Join(upper, "proc"), filepath.Join(upper, "sys"), filepath.Join(upper, "dev"), filepath.Join(upper, "etc")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	host := oci.Hostname(s.id)
	addr, err := e.network.Addr(s.index)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"hostname":    host + "\n",
		"hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + addr.String() + "\t" + host + "\n",
		"resolv.conf": "nameserver " + e.network.Gateway().String() + "\n",
	} {
		if err := os.WriteFile(filepath.Join(upper, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
