package rmtree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// maxLevels is how many directories are open at once, one in the other. A
// directory that lies deeper is first moved to the top of the tree.
const maxLevels = 64

const (
	// Each step is by one name, or by a path from a directory that is ours.
	// Nothing leads out: no link, no "..", no mount.
	resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

	openFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

var (
	errMount = errors.New("another filesystem is mounted in it")
	errName  = errors.New("not the path of something to remove")
)

// Remove removes what is at path, with all in it. It is no error if nothing is
// there. The path up to its last name is trusted, and what is beneath isn't: no
// symlink is followed and no mount is crossed. What is mounted in the tree
// stays, with the directories above it, and is an error.
//
// An error names path only, and wraps the first of what went wrong; the rest of
// the tree is removed nevertheless. When ctx ends, so does Remove, with its
// error. What is left then may lie elsewhere in the tree than before; another
// Remove continues. There must not be two at the same time for one tree.
func Remove(ctx context.Context, path string) error {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	parent, err := retry(func() (int, error) {
		return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		defer unix.Close(parent)
		err = remove(ctx, parent, name)
	}
	return named(path, err)
}

// RemoveAt is Remove for a path beneath the directory that is open as dir. No
// part of the path is trusted.
func RemoveAt(ctx context.Context, dir int, path string) error {
	above, name := filepath.Split(filepath.Clean(path))
	if above == "" {
		above = "."
	}
	parent, err := openAt(dir, above, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err == nil {
		defer unix.Close(parent)
		err = remove(ctx, parent, name)
	}
	return named(path, err)
}

func named(path string, err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "removing", Path: path, Err: err}
}

// remove removes a tree in passes. A pass that fails may have made the next one
// possible: moving a directory can take a block that a full disk gets free only
// by what the pass removes.
func remove(ctx context.Context, parent int, name string) error {
	if name == "" || name == "." || name == ".." {
		return errName
	}
	if err := unlink(parent, name, 0); !isDirectory(err) {
		return err
	}
	r := &remover{ctx: ctx, top: -1}
	for {
		before := r.removed
		err := r.pass(parent, name)
		if err == nil || r.removed == before || ctx.Err() != nil {
			return err
		}
	}
}

// remover removes one tree.
type remover struct {
	ctx context.Context
	// top is the tree's uppermost directory.
	top int
	// prefix begins the names of directories that were moved to the top. It is
	// random, so that the tree can't have such names.
	prefix string
	// moved counts the directories that were moved to the top.
	moved int
	// removed counts the names that are gone.
	removed int64
	// err is the first error of a pass.
	err error
	// buffers are for the entries of a directory at each level.
	buffers [maxLevels + 1][]byte
}

// pass goes once through the tree. What it moves to the top is named by
// numbers, so that neither memory nor another look at the top, which may hold
// millions of names, is needed to find it again.
func (r *remover) pass(parent int, name string) error {
	top, err := openAt(parent, name, openFlags)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	r.top, r.prefix, r.moved, r.err = top, ".deep."+uuid.NewString()+".", 0, nil
	r.clear(top, 0)
	for i := 0; i < r.moved && r.ctx.Err() == nil; i++ {
		r.directory(top, r.prefix+strconv.Itoa(i), 1)
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.err != nil {
		return r.err
	}
	err = unlink(parent, name, unix.AT_REMOVEDIR)
	if err == nil {
		r.removed++
	}
	return err
}

// fail keeps an error. The first one says most: that a directory isn't empty
// then follows from it.
func (r *remover) fail(err error) {
	if r.err == nil && err != nil && !errors.Is(err, unix.ENOENT) {
		r.err = err
	}
}

// directory removes the directory dir/name, which is at a level below the top.
func (r *remover) directory(dir int, name string, level int) {
	if level > maxLevels {
		r.deep(dir, name)
		return
	}
	fd, err := openAt(dir, name, openFlags)
	if err != nil {
		r.fail(err)
		return
	}
	defer unix.Close(fd)
	for {
		before := r.removed
		r.clear(fd, level)
		if r.ctx.Err() != nil {
			return
		}
		err := unlink(dir, name, unix.AT_REMOVEDIR)
		if err == nil {
			r.removed++
			return
		}
		// Some filesystems leave out names while others are removed.
		if !isNotEmpty(err) || r.err != nil || r.removed == before {
			r.fail(err)
			return
		}
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			r.fail(err)
			return
		}
	}
}

// deep removes the directory dir/name if it is empty, and else moves it to the
// top, where the pass comes to it later.
func (r *remover) deep(dir int, name string) {
	err := unlink(dir, name, unix.AT_REMOVEDIR)
	if err == nil {
		r.removed++
		return
	}
	if !isNotEmpty(err) {
		r.fail(err)
		return
	}
	to := r.prefix + strconv.Itoa(r.moved)
	_, err = retry(func() (int, error) { return 0, unix.Renameat(dir, name, r.top, to) })
	if err != nil {
		r.fail(err)
		return
	}
	r.moved++
}

// clear removes what is in the directory fd, a buffer of names at a time.
func (r *remover) clear(fd, level int) {
	if r.buffers[level] == nil {
		r.buffers[level] = make([]byte, bufferSize)
	}
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(fd, r.buffers[level]) })
		if err != nil {
			r.fail(err)
			return
		}
		if n <= 0 {
			return
		}
		for rest := r.buffers[level][:n]; len(rest) > 0; {
			var e entry
			e, rest = next(rest)
			if r.ctx.Err() != nil {
				return
			}
			if !r.passesOver(e.name, level) {
				r.entry(fd, e, level)
			}
		}
	}
}

// passesOver reports whether a name in a directory isn't to be removed: it is
// none, or that of a directory which this pass has moved there.
func (r *remover) passesOver(name string, level int) bool {
	if name == "" || name == "." || name == ".." {
		return true
	}
	return level == 0 && len(name) > len(r.prefix) && name[:len(r.prefix)] == r.prefix
}

func (r *remover) entry(fd int, e entry, level int) {
	if e.kind != unix.DT_DIR {
		err := unlink(fd, e.name, 0)
		if err == nil {
			r.removed++
			return
		}
		if !isDirectory(err) {
			r.fail(err)
			return
		}
	}
	r.directory(fd, e.name, level+1)
}

func openAt(dir int, path string, flags uint64) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat2(dir, path, &unix.OpenHow{Flags: flags, Resolve: resolve})
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, errMount
	}
	return fd, err
}

func unlink(dir int, name string, flags int) error {
	_, err := retry(func() (int, error) { return 0, unix.Unlinkat(dir, name, flags) })
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", errMount, err)
	}
	return err
}

// isDirectory reports whether err says that a name can't be unlinked since it
// is a directory's (unlink(2)).
func isDirectory(err error) bool { return errors.Is(err, unix.EISDIR) }

func isNotEmpty(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}

// retry repeats a system call that a signal interrupts.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
