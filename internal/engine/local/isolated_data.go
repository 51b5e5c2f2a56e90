package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/disk"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/rmtree"
)

// isolatedData is the directory of all sessions' copies in a sandbox's data: on
// its limited disk when it has one, so that they count against that.
const isolatedData = "isolated"

// dataRoot opens the filesystem of a sandbox's writable layer, at the parent of
// its upper directory. No process of the sandbox has a path there.
func (e *Engine) dataRoot(s *shell) (int, error) {
	if s.loop != nil {
		return disk.Reopen(e.diskFile(s.id), *s.loop)
	}
	return unix.Open(e.in.data(s.id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// upperPath is that of a session's i-th place below dataRoot.
func upperPath(is *isolatedSession, i int) string {
	return filepath.Join(isolatedData, is.record.short(), strconv.Itoa(i))
}

// makeUpper makes the directories of a session's i-th place, which is an
// overlay, and says in m where they are. The caller closes m.Upper.
func (e *Engine) makeUpper(s *shell, is *isolatedSession, i int, m *rootfs.ViewMount) error {
	root, err := e.dataRoot(s)
	if err != nil {
		return err
	}
	m.Upper = root
	// A path through the descriptor leads into the filesystem, whether or not
	// that is mounted anywhere.
	parent := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", root), upperPath(is, i))
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(parent, dir), 0o755); err != nil {
			return fmt.Errorf("making a session's directories: %w", err)
		}
	}
	if s.loop != nil {
		m.Detached = upperPath(is, i)
		return nil
	}
	defer unix.Close(root)
	m.Upper, err = unix.Open(parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

// openUpper opens the upper directory of a session's i-th place.
func (e *Engine) openUpper(s *shell, is *isolatedSession, i int) (int, error) {
	root, err := e.dataRoot(s)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, filepath.Join(upperPath(is, i), "upper"), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// dropUppers removes a session's copies. A limited disk has no trash: its file
// goes as a whole with the sandbox.
func (e *Engine) dropUppers(s *shell, is *isolatedSession) error {
	if s.loop == nil {
		dir := filepath.Join(e.in.data(s.id), isolatedData, is.record.short())
		return e.trash.put(dir, s.id+".isolated")
	}
	root, err := e.dataRoot(s)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// No deadline: what is left would count against the disk's limit.
	return rmtree.RemoveAt(context.Background(), root, filepath.Join(isolatedData, is.record.short()))
}

// openSandboxPath opens a directory of the sandbox as its processes see it. No
// link is followed, and nothing outside the sandbox's root can be reached.
func (s *shell) openSandboxPath(path string) (int, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(s.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the sandbox's root: %w", err)
	}
	defer unix.Close(root)
	// As long as execd lives, its pid has meant it.
	if err := unix.PidfdSendSignal(s.pidfd, 0, nil, 0); err != nil {
		return -1, errIsolatedEnding
	}
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "opening", Path: path, Err: err}
	}
	return fd, nil
}

// isNotThere reports whether err says that there is no such directory.
func isNotThere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
