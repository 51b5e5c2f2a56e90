package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Back-off between looks at what v1 doesn't report.
const (
	firstLook = 200 * time.Microsecond
	lastLook  = 20 * time.Millisecond
)

// Freeze stops every process of the group and returns when all have stopped.
// Idempotent. When it fails, by the context's end too, the group is thawed
// again.
func (g *Group) Freeze(ctx context.Context) error {
	err := g.freeze(ctx)
	if err != nil && !gone(err) {
		err = errors.Join(err, g.setFrozen(false))
	}
	if err != nil {
		return fmt.Errorf("freezing: %w", err)
	}
	return nil
}

func (g *Group) freeze(ctx context.Context) error {
	if err := g.setFrozen(true); err != nil {
		return err
	}
	if d := g.p.unified; d != nil {
		return g.p.await(ctx, g.id, func(events []byte) bool {
			n, _ := lookup(events, "frozen")
			return n == 1
		})
	}
	return poll(ctx, func() (bool, error) {
		frozen, err := g.Frozen()
		if err != nil || frozen {
			return frozen, err
		}
		// A task that could not be frozen is tried again on each write
		// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
		return false, g.setFrozen(true)
	})
}

// Thaw lets the group's processes go on. Idempotent. They may not all be
// running yet when it returns.
func (g *Group) Thaw(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := g.setFrozen(false); err != nil {
		return fmt.Errorf("thawing: %w", err)
	}
	return nil
}

func (g *Group) setFrozen(frozen bool) error {
	switch {
	case g.p.unified != nil && frozen:
		return g.p.unified.write(g.id+"/cgroup.freeze", "1")
	case g.p.unified != nil:
		return g.p.unified.write(g.id+"/cgroup.freeze", "0")
	case g.p.freezer == nil:
		return fmt.Errorf("the host has no freezer: %w", ErrUnsupported)
	case frozen:
		return g.p.freezer.write(g.id+"/freezer.state", "FROZEN")
	default:
		return g.p.freezer.write(g.id+"/freezer.state", "THAWED")
	}
}

// Frozen reports whether all processes of the group have stopped.
func (g *Group) Frozen() (bool, error) {
	switch {
	case g.p.unified != nil:
		n, err := g.p.unified.field(g.id+"/cgroup.events", "frozen")
		return n == 1, err
	case g.p.freezer != nil:
		b, err := g.p.freezer.read(g.id + "/freezer.state")
		return strings.TrimSpace(string(b)) == "FROZEN", err
	}
	return false, nil
}

// Kill kills every process of the group and returns when none is left, or with
// the context's error. Frozen processes die too. Idempotent; a group that does
// not exist has no processes.
func (g *Group) Kill(ctx context.Context) error {
	var err error
	if d := g.p.unified; d != nil {
		if err = d.write(g.id+"/cgroup.kill", "1"); err == nil {
			err = g.empty(ctx)
		}
	} else {
		err = g.killByProcess(ctx)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("killing: %w", err)
	}
	return nil
}

// killByProcess is Kill without a v2 hierarchy.
func (g *Group) killByProcess(ctx context.Context) error {
	if g.p.pids != nil {
		// Or a fork bomb outruns us.
		if err := g.p.pids.write(g.id+"/pids.max", "0"); err != nil {
			return err
		}
	}
	return poll(ctx, func() (bool, error) {
		left, err := g.killOnce()
		if err != nil || left == 0 {
			return left == 0, err
		}
		if g.p.freezer != nil {
			// A frozen process dies when it is thawed.
			return false, g.setFrozen(false)
		}
		return false, nil
	})
}

// killOnce sends SIGKILL to each process in the group and returns how many
// there were. Process ids are reused: one is killed only when it was in the
// group both before and after a descriptor of it was opened, which then can't
// be another's.
func (g *Group) killOnce() (int, error) {
	before, err := g.Procs()
	if err != nil {
		return 0, err
	}
	open := make(map[int]int, len(before))
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for _, pid := range before {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			break // the rest in the next round
		}
		if err == nil {
			open[pid] = fd
		}
	}
	after, err := g.Procs()
	if err != nil {
		return 0, err
	}
	for _, pid := range after {
		fd, ok := open[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("killing process %d: %w", pid, err)
		}
	}
	return len(after), nil
}

// empty waits until no process is in the group.
func (g *Group) empty(ctx context.Context) error {
	if g.p.unified != nil {
		return g.p.await(ctx, g.id, func(events []byte) bool {
			n, ok := lookup(events, "populated")
			return ok && n == 0
		})
	}
	return poll(ctx, func() (bool, error) {
		list, err := g.Procs()
		return len(list) == 0, err
	})
}

// Remove waits until no process is in the group and removes it, with groups
// below it, from all hierarchies. It kills nothing. Idempotent.
func (g *Group) Remove(ctx context.Context) error {
	if err := g.empty(ctx); err != nil && !gone(err) {
		return fmt.Errorf("waiting for the cgroup to become empty: %w", err)
	}
	for _, d := range g.p.dirs {
		if err := removeTree(ctx, d, g.id); err != nil {
			return fmt.Errorf("removing the cgroup: %w", err)
		}
	}
	return nil
}

func removeTree(ctx context.Context, d *dir, group string) error {
	// Nearly always there is nothing below.
	err := unix.Unlinkat(d.fd, group, unix.AT_REMOVEDIR)
	if err == nil || gone(err) {
		return nil
	}
	return poll(ctx, func() (bool, error) {
		groups, err := tree(d, group)
		if errors.Is(err, os.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		for _, name := range groups {
			err := unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
			// Busy for a moment: the thread that entered the group, or a
			// process between its last word and its end.
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			if err != nil && !gone(err) {
				return false, &os.PathError{Op: "rmdir", Path: filepath.Join(d.path, name), Err: err}
			}
		}
		return true, nil
	})
}

// poll calls done with growing pauses until it is true, fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	pause := firstLook
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, lastLook)
	}
}
