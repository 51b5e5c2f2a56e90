package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxChanges bounds a diff's list, and maxSkipped a commit's.
	maxChanges = 10_000
	maxSkipped = 1_000
	// maxListed bounds the text of either list, in bytes. JSON may need six
	// times as many.
	maxListed = 4 << 20
	// maxEntries bounds what is looked at for one answer.
	maxEntries = 2_000_000
	// maxDepth bounds how deep directories may lie in each other: each is up to
	// three open descriptors.
	maxDepth = 100
	// opaqueXattr marks a directory of an upper layer that hides what is beneath
	// it (Documentation/filesystems/overlayfs.rst).
	opaqueXattr = "trusted.overlay.opaque"
)

// upperDir is one directory of an overlay's copies, open for reading. What is in
// it was written by hostile code, and may change at any moment.
type upperDir struct {
	fd int
	// path is that of the directory in the session.
	path string
	// opaque says that nothing of the lower directory is seen through it.
	opaque bool
}

// entry is one file in an upperDir.
type entry struct {
	name string
	stat unix.Stat_t
}

func (e *entry) is(format uint32) bool { return e.stat.Mode&unix.S_IFMT == format }

// whiteout reports whether the entry says that a file was deleted.
func (e *entry) whiteout() bool { return e.is(unix.S_IFCHR) && e.stat.Rdev == 0 }

// kind is the entry's type for an answer.
func (e *entry) kind() string {
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "other"
}

// newUpperDir takes fd over.
func newUpperDir(fd int, path string) *upperDir {
	return &upperDir{fd: fd, path: path, opaque: isOpaque(fd)}
}

func isOpaque(fd int) bool {
	var b [8]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

func (d *upperDir) close() { unix.Close(d.fd) }

// open opens a directory in d.
func (d *upperDir) open(name string) (*upperDir, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newUpperDir(fd, path.Join(d.path, name)), nil
}

// join is the path of an entry in the session, unless that is too long to be
// used: relative to an open directory, paths of any length can be made.
func (d *upperDir) join(name string) (string, error) {
	if len(d.path)+1+len(name) >= unix.PathMax {
		return "", fmt.Errorf("%w: one in %q", errTooLong, d.path)
	}
	return path.Join(d.path, name), nil
}

// each calls f for what is in the directory, in the order of the filesystem.
// budget bounds how many that are, over many calls.
func (d *upperDir) each(ctx context.Context, budget *int, f func(*entry) error) error {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), d.path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if *budget--; *budget < 0 {
				return errTooManyEntries
			}
			e := &entry{name: name}
			if err := unix.Fstatat(d.fd, name, &e.stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				continue // it has just been removed
			}
			if err := f(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 && err == nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var (
	errTooManyEntries = fmt.Errorf("the session has more than %d changed files", maxEntries)
	errTooDeep        = fmt.Errorf("directories lie more than %d deep in each other", maxDepth)
	errTooLong        = fmt.Errorf("there are paths of %d bytes or more, which no program can use as they are", unix.PathMax)
	errEnough         = errors.New("the list is full")
)

// differ lists changes.
type differ struct {
	base   uint32 // the host id of the sandbox's root
	budget int
	list   []isolated.Change
	listed int // bytes of paths in list
}

func (a *isolatedAPI) diff(w http.ResponseWriter, r *http.Request) error {
	is, err := a.find(r)
	if err != nil {
		return err
	}
	defer is.begin()()
	leave, err := a.s.isolation.walks.take(r.Context(), maxWalks)
	if err != nil {
		return err
	}
	defer leave()
	d := &differ{base: a.s.base, budget: maxEntries}
	answer := isolated.Diff{Session: is.record.ID, Changes: []isolated.Change{}}
	err = a.eachOverlay(is, func(m isolated.Mount, upper *upperDir) error {
		lower, err := a.s.openSandboxPath(m.Path)
		if isNotThere(err) {
			lower = -1
		} else if err != nil {
			return err
		}
		defer closeFD(lower)
		return d.compare(r.Context(), upper, lower, 0)
	})
	if errors.Is(err, errEnough) {
		answer.Truncated, err = true, nil
	}
	if err != nil {
		return treeError(err)
	}
	slices.SortFunc(d.list, func(x, y isolated.Change) int { return strings.Compare(x.Path, y.Path) })
	answer.Changes = append(answer.Changes, d.list...)
	web.JSON(w, http.StatusOK, answer)
	return nil
}

// treeError explains what keeps a session's copies from being read.
func treeError(err error) error {
	if errors.Is(err, errTooDeep) || errors.Is(err, errTooLong) || errors.Is(err, errTooManyEntries) {
		return web.Errorf(http.StatusUnprocessableEntity, web.CodeNotSupported, "%v; take what is needed from it with the file routes", err)
	}
	return err
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// eachOverlay calls f with every overlay of the session whose copies are kept.
func (a *isolatedAPI) eachOverlay(is *isolatedSession, f func(isolated.Mount, *upperDir) error) error {
	found := false
	for i, m := range is.record.Settings.Mounts() {
		if m.Mode != isolated.ModeOverlay || m.Ephemeral {
			continue
		}
		found = true
		fd, err := a.e.openUpper(a.s, is, i)
		if err != nil {
			return fmt.Errorf("opening the session's copies of %s: %w", m.Path, err)
		}
		upper := newUpperDir(fd, m.Path)
		err = f(m, upper)
		upper.close()
		if err != nil {
			return err
		}
	}
	if !found {
		return web.Errorf(http.StatusBadRequest, web.CodeNotSupported,
			"isolated session %q has no overlay whose copies are kept: its directories are written directly, read-only, or have persist set to false", is.record.ID)
	}
	return nil
}

// compare lists what is in upper; lower is what it covers, -1 for nothing.
func (d *differ) compare(ctx context.Context, upper *upperDir, lower, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %q", errTooDeep, upper.path)
	}
	if upper.opaque {
		lower = -1
	}
	return upper.each(ctx, &d.budget, func(e *entry) error {
		p, err := upper.join(e.name)
		if err != nil {
			return err
		}
		var old unix.Stat_t
		exists := lower >= 0 && unix.Fstatat(lower, e.name, &old, unix.AT_SYMLINK_NOFOLLOW) == nil
		c := isolated.Change{Path: p, Kind: isolated.Added, Type: e.kind()}
		if exists {
			c.Kind = isolated.Modified
		}
		switch {
		case e.whiteout():
			if !exists {
				return nil // gone on both sides
			}
			return d.add(isolated.Change{Path: c.Path, Kind: isolated.Deleted})
		case e.is(unix.S_IFDIR):
			return d.directory(ctx, upper, lower, e, &old, c, depth)
		case e.is(unix.S_IFREG):
			c.Size = e.stat.Size
		}
		return d.add(c)
	})
}

func (d *differ) directory(ctx context.Context, upper *upperDir, lower int, e *entry, old *unix.Stat_t, c isolated.Change, depth int) error {
	sub, err := upper.open(e.name)
	if err != nil {
		return nil // it has just been removed or replaced
	}
	defer sub.close()
	below := -1
	if c.Kind == isolated.Modified && old.Mode&unix.S_IFMT == unix.S_IFDIR && !sub.opaque {
		below, err = unix.Openat(lower, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			below = -1
		}
		defer closeFD(below)
	}
	same := below >= 0 && e.stat.Mode == old.Mode && e.stat.Uid+d.base == old.Uid && e.stat.Gid+d.base == old.Gid
	if !same {
		c.Replaced = c.Kind == isolated.Modified && below < 0
		if err := d.add(c); err != nil {
			return err
		}
	}
	return d.compare(ctx, sub, below, depth+1)
}

func (d *differ) add(c isolated.Change) error {
	// Names are bytes; JSON is text.
	c.Path = strings.ToValidUTF8(c.Path, "\uFFFD")
	if len(d.list) >= maxChanges || d.listed+len(c.Path) > maxListed {
		return errEnough
	}
	d.listed += len(c.Path)
	d.list = append(d.list, c)
	return nil
}
