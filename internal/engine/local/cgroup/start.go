package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// Start starts cmd so that it and all that it forks are in the group from the
// first instruction. cmd.SysProcAttr is kept and added to; Pdeathsig is refused
// because the forking thread may end before the command.
func (g *Group) Start(cmd *exec.Cmd) error {
	if a := cmd.SysProcAttr; a != nil && a.Pdeathsig != 0 {
		return errors.New("starting in a cgroup: Pdeathsig can't be used, the thread that forks ends first")
	}
	if !g.p.threaded() {
		return g.StartHere(cmd)
	}
	return thread.Run(func() error { return g.StartHere(cmd) })
}

// StartHere is Start on the calling goroutine's thread; see EnterThread for
// what that demands of it. Use it within thread.Run.
func (g *Group) StartHere(cmd *exec.Cmd) error {
	if err := g.EnterThread(); err != nil {
		return err
	}
	f, err := g.OpenDir()
	if err != nil {
		return err
	}
	if f != nil {
		defer f.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	return cmd.Start()
}

// EnterThread puts the calling thread into the group in all v1 hierarchies, so
// that what it forks is in them. The calling goroutine must be locked to it and
// never be unlocked, as within thread.Run; the thread counts as one of the group's
// tasks, and keeps the group from being removed, until it ends. It fails on the
// main thread, which never ends. It does nothing where there is no v1
// hierarchy. In the v2 hierarchy threads can't be moved one by one: see OpenDir.
func (g *Group) EnterThread() error {
	if g.p.threaded() && thread.OnMain() {
		return errors.New("entering the cgroup: the main thread must not, use thread.Run")
	}
	for _, d := range g.p.dirs {
		if d.v2 {
			continue
		}
		// "0" stands for the writer. Writing the number of a thread, even
		// its own, takes a lock that waits for an RCU grace period, some
		// milliseconds; "0" does without it (cgroup_procs_write_start in
		// kernel/cgroup/cgroup.c).
		if err := d.write(g.id+"/tasks", "0"); err != nil {
			return fmt.Errorf("entering the cgroup: %w", err)
		}
	}
	if d := g.p.devices; d != nil && !g.p.granting {
		if err := d.write("tasks", "0"); err != nil {
			return fmt.Errorf("entering the cgroup: %w", err)
		}
	}
	return nil
}

// OpenDir opens the group in the v2 hierarchy, for SysProcAttr.CgroupFD: the
// child is born in it. The caller closes it. It returns nil on a host without a
// v2 hierarchy. On a hybrid host both this and EnterThread are needed.
func (g *Group) OpenDir() (*os.File, error) {
	d := g.p.unified
	if d == nil {
		return nil, nil
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, g.id, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	path := filepath.Join(d.path, g.id)
	if err != nil {
		return nil, &os.PathError{Op: "opening the cgroup", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// threaded reports whether any hierarchy is entered by thread.
func (p *Parent) threaded() bool {
	if p.devices != nil {
		return true
	}
	for _, d := range p.dirs {
		if !d.v2 {
			return true
		}
	}
	return false
}
