package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/gvisor"
)

// checkGVisor looks whether runsc is here and, on a trial, whether it starts
// execd. Most servers have no need of it.
func checkGVisor(ctx context.Context, o DoctorOptions) Check {
	c := Check{Name: "gVisor", Required: o.GVisorNeeded}
	lack := func(err error, remedy string) Check {
		c.Detail, c.Remedy, c.Cost = err.Error(), remedy, "sandboxes that ask for the isolation gvisor are refused or can't start"
		if c.Required {
			c.Cost += "; sandbox.default_isolation asks for it"
		}
		return c
	}
	run, err := gvisor.Find(o.RunscPath)
	if errors.Is(err, gvisor.ErrMissing) && !c.Required && o.RunscPath == "" {
		c.OK, c.Detail = true, "runsc was not found; sandboxes that ask for the isolation gvisor are refused. To have it, "+remedyRunsc
		return c
	}
	if err != nil {
		return lack(err, remedyRunsc)
	}
	version, err := run.Version(ctx)
	if err != nil {
		return lack(err, remedyRunsc)
	}
	c.Detail = run.Path() + ", " + version
	if o.Trial && os.Geteuid() == 0 {
		began := time.Now()
		if err := trialGVisor(ctx, run, o.RunDir); err != nil {
			return lack(fmt.Errorf("%s does not start a sandbox: %w", run.Path(), err), "do what the message says, or build another runsc with `make runsc`")
		}
		c.Detail += fmt.Sprintf(", starts a sandbox in %s", time.Since(began).Round(time.Millisecond))
	}
	c.OK = true
	return c
}

// trialGVisor starts execd behind gVisor, in the server's place, without a
// cgroup, an image and an interface, and ends it.
func trialGVisor(ctx context.Context, run *gvisor.Runtime, runDir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	if runDir == "" {
		runDir = DefaultRunDir()
	}
	// Beside the run directory, as for the other trial.
	dir, err := os.MkdirTemp(existing(filepath.Dir(runDir)), "paddock-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := installRoot(root); err != nil {
		return err
	}
	max, err := maxOpenFiles()
	if err != nil {
		return err
	}
	start := &gvisor.Start{
		Sandbox: &gvisor.Sandbox{ID: filepath.Base(dir), Root: root, Base: trialBase, MaxFiles: max},
		Bundle:  dir, Key: newKey(),
	}
	if start.MountNS, err = unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	defer unix.Close(start.MountNS)
	if start.NetNS, err = newNetNS(); err != nil {
		return err
	}
	defer unix.Close(start.NetNS)
	if start.Execd, err = os.Open(filepath.Join(root, "execd")); err != nil {
		return err
	}
	defer start.Execd.Close()
	for i, name := range []string{"log0", "log1"} {
		if start.Log[i], err = os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		defer start.Log[i].Close()
	}
	pid, err := run.Run(ctx, start)
	if err != nil {
		return err
	}
	return endTrial(ctx, pid)
}
