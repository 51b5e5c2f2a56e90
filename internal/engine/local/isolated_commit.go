package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// maxCommitPaths bounds CommitRequest.Paths.
const maxCommitPaths = 1000

// committer applies the copies of overlays to the directories that they cover.
//
// Both sides are written by hostile code at the same time. So every step is from
// an open directory to one name in it, no link is followed, no mount is crossed,
// and only regular files are opened. It acts as the sandbox's root on the
// filesystem, so that what it makes belongs to ids of the sandbox.
type committer struct {
	base   uint32
	paths  []string // empty for all
	hit    []bool   // which of paths had a change
	budget int
	answer *isolated.Commit
	listed int // bytes of text in answer.Skipped
}

func (a *isolatedAPI) commit(w http.ResponseWriter, r *http.Request) error {
	is, err := a.find(r)
	if err != nil {
		return err
	}
	defer is.begin()()
	var req isolated.CommitRequest
	if err := web.ReadOptionalJSON(w, r, &req); err != nil {
		return err
	}
	c := &committer{base: a.s.base, budget: maxEntries,
		answer: &isolated.Commit{Session: is.record.ID, Skipped: []isolated.Skipped{}}}
	if err := c.choose(&req, &is.record.Settings); err != nil {
		return err
	}
	if frozen, err := a.s.group.Frozen(); err != nil || frozen {
		return web.Errorf(http.StatusConflict, web.CodeNotSupported, "the sandbox is paused; resume it first")
	}
	// The session's turn first: who waits for it is no walk.
	applied, err := is.applying.take(r.Context(), 1)
	if err != nil {
		return err
	}
	defer applied()
	leave, err := a.s.isolation.walks.take(r.Context(), maxWalks)
	if err != nil {
		return err
	}
	defer leave()
	err = a.eachOverlay(is, func(m isolated.Mount, upper *upperDir) error {
		lower, err := a.s.openSandboxPath(m.Path)
		if err != nil {
			return web.Errorf(http.StatusConflict, web.CodeRuntime, "the directory to commit to can't be used: %v", err)
		}
		defer unix.Close(lower)
		return asSandboxRoot(a.s.base, func() error { return c.directory(r.Context(), upper, lower, 0) })
	})
	if err != nil {
		return commitError(err, c.answer.Committed)
	}
	for i, p := range c.paths {
		if !c.hit[i] {
			c.skip(p, "there is no change")
		}
	}
	web.JSON(w, http.StatusOK, c.answer)
	return nil
}

func commitError(err error, done int) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return web.Errorf(http.StatusInsufficientStorage, web.CodeRuntime,
			"the sandbox's disk is full; %d changes were committed before, and the others are as they were. Free space and commit again", done)
	}
	return treeError(err)
}

// asSandboxRoot runs f on a thread that acts on filesystems as the sandbox's
// root, but with the rights of the host's.
func asSandboxRoot(base uint32, f func() error) error {
	return thread.Run(func() error {
		if err := thread.KeepCapabilities(); err != nil {
			return err
		}
		if err := unix.Setfsgid(int(base)); err != nil {
			return err
		}
		if err := unix.Setfsuid(int(base)); err != nil {
			return err
		}
		// The thread ends afterwards, and its ids with it.
		return f()
	})
}

// choose checks the paths of a request.
func (c *committer) choose(req *isolated.CommitRequest, set *isolated.Settings) error {
	if len(req.Paths) > maxCommitPaths {
		return web.BadBody("paths has %d entries; at most %d are possible. Name directories, or leave it out for everything", len(req.Paths), maxCommitPaths)
	}
	for i, p := range req.Paths {
		if len(p) >= unix.PathMax {
			return web.BadBody("paths: entry %d has %d bytes; at most %d are possible", i, len(p), unix.PathMax-1)
		}
		if !path.IsAbs(p) || path.Clean(p) != p {
			return web.BadBody("paths: %q is not a plain absolute path, as the diff has them", p)
		}
		inside := false
		for _, m := range set.Mounts() {
			inside = inside || m.Mode == isolated.ModeOverlay && !m.Ephemeral && within(p, m.Path)
		}
		if !inside {
			return web.BadBody("paths: %q is in no overlay of this session", p)
		}
	}
	c.paths, c.hit = req.Paths, make([]bool, len(req.Paths))
	return nil
}

// within reports whether p is dir, which is not "/", or in it. It is asked for
// every file and every path, so it makes no string.
func within(p, dir string) bool {
	return p == dir || len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// wanted says whether a change was asked for, and whether one beneath it may
// have been.
func (c *committer) wanted(p string) (this, beneath bool) {
	if len(c.paths) == 0 {
		return true, true
	}
	for i, chosen := range c.paths {
		if within(p, chosen) {
			c.hit[i] = true
			this, beneath = true, true
		}
		if within(chosen, p) {
			beneath = true
		}
	}
	return this, beneath
}

func (c *committer) skip(p, reason string) {
	p = strings.ToValidUTF8(p, "\uFFFD")
	if len(c.answer.Skipped) >= maxSkipped || c.listed+len(p)+len(reason) > maxListed {
		return
	}
	c.listed += len(p) + len(reason)
	c.answer.Skipped = append(c.answer.Skipped, isolated.Skipped{Path: p, Reason: reason})
}

// fatal reports whether an error of one file means that no other will do.
func fatal(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, errTooDeep) || errors.Is(err, errTooLong) || errors.Is(err, errTooManyEntries)
}

// directory applies what is in upper to lower.
func (c *committer) directory(ctx context.Context, upper *upperDir, lower, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %q", errTooDeep, upper.path)
	}
	return upper.each(ctx, &c.budget, func(e *entry) error {
		p, err := upper.join(e.name)
		if err != nil {
			return err
		}
		this, beneath := c.wanted(p)
		if !beneath {
			return nil
		}
		switch {
		case e.is(unix.S_IFDIR):
			err = c.subdirectory(ctx, upper, lower, e, this, depth)
		case !this:
			return nil
		case e.whiteout():
			err = c.removed(ctx, lower, e.name)
		case e.is(unix.S_IFREG):
			err = c.file(ctx, upper, lower, e)
		case e.is(unix.S_IFLNK):
			err = c.symlink(ctx, upper, lower, e)
		default:
			c.skip(p, "it is neither a file, a directory nor a symbolic link")
			return nil
		}
		if err != nil {
			if fatal(err) {
				return err
			}
			c.skip(p, err.Error())
		} else if this {
			c.answer.Committed++
		}
		return nil
	})
}

// subdirectory applies a directory: its own mode, owner and attributes if it was
// asked for, and what is in it.
func (c *committer) subdirectory(ctx context.Context, upper *upperDir, lower int, e *entry, this bool, depth int) error {
	sub, err := upper.open(e.name)
	if err != nil {
		return err
	}
	defer sub.close()
	if this && sub.opaque {
		// What was there before is gone in the session.
		if err := c.removed(ctx, lower, e.name); err != nil {
			return err
		}
	}
	made := false
	fd, err := openBelow(lower, e.name)
	if isNotThere(err) {
		if !this && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err := c.removed(ctx, lower, e.name); err != nil {
			return err
		}
		if err := unix.Mkdirat(lower, e.name, 0o700); err != nil {
			return err
		}
		made = true
		fd, err = openBelow(lower, e.name)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if this || made {
		if err := copyXattrs(fd, sub.fd); err != nil {
			return err
		}
		if err := c.own(fd, e); err != nil {
			return err
		}
	}
	return c.directory(ctx, sub, fd, depth+1)
}

// own gives an open file the owner and mode of its copy.
func (c *committer) own(fd int, e *entry) error {
	if err := unix.Fchown(fd, int(e.stat.Uid+c.base), int(e.stat.Gid+c.base)); err != nil {
		return err
	}
	return unix.Fchmod(fd, e.stat.Mode&0o7777)
}
