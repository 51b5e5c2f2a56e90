package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/engine/local/seccomp"
)

// trialTimeout bounds doctor's start of a shell, which takes some ten
// milliseconds.
const trialTimeout = 15 * time.Second

// checkRuntime looks whether the OCI runtime is here and, on a trial, whether it
// starts execd behind the wall that a sandbox has.
func checkRuntime(ctx context.Context, o DoctorOptions) Check {
	const name = "OCI runtime"
	kind, path := o.OCIRuntime, o.OCIPath
	if kind == "" {
		kind = string(oci.Crun)
	}
	if path == "" {
		path = kind
	}
	remedy := "install it: apt-get install " + kind
	found, err := exec.LookPath(path)
	if err != nil {
		return need(name, fmt.Errorf("%s was not found", path), "", remedy)
	}
	out, err := exec.CommandContext(ctx, found, "--version").Output()
	first, _, _ := strings.Cut(string(out), "\n")
	if err != nil || !o.Trial || os.Geteuid() != 0 {
		return need(name, err, found+", "+first, remedy)
	}
	if o.RunDir == "" {
		o.RunDir = DefaultRunDir()
	}
	began := time.Now()
	if err := trialShell(ctx, oci.Kind(kind), found, o.RunDir); err != nil {
		other := oci.Runc
		if kind == string(oci.Runc) {
			other = oci.Crun
		}
		return need(name, fmt.Errorf("%s does not start a shell: %w", found, err), "",
			fmt.Sprintf("do what the message says, upgrade %s, or set runtime.oci = %q", kind, other))
	}
	return need(name, nil, fmt.Sprintf("%s, %s, starts a shell in %s", found, first, time.Since(began).Round(time.Millisecond)), "")
}

// trialShell starts a shell in the server's place, without a cgroup and a
// network, and ends it when it has answered.
func trialShell(ctx context.Context, kind oci.Kind, path, runDir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	// Beside the run directory, whose mode only a server changes.
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
	filter, err := seccomp.Compile()
	if err != nil {
		return err
	}
	runtime, err := oci.New(kind, path, filepath.Join(dir, "runtime"), filter)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, runtime.Close()) }()
	max, err := maxOpenFiles()
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "execd.sock")
	files, err := execdFiles(socket, filepath.Join(dir, "log0"), filepath.Join(dir, "log1"))
	defer closeFiles(files)
	if err != nil {
		return err
	}
	pid, err := runtime.Run(ctx, &oci.Start{
		Shell:  &oci.Shell{ID: filepath.Base(dir), Root: root, Base: trialBase, MaxFiles: max},
		Bundle: dir, Files: files,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, endTrial(ctx, pid)) }()
	conn, err := dialExecd(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.ping(ctx); err != nil {
		said, _ := os.ReadFile(filepath.Join(dir, "execd.err"))
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}

// trialBase is root of the trial shell on the host, out of the range of every
// instance's first sandboxes.
const trialBase = 1<<29 - oci.IDRange

func endTrial(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return endProcess(ctx, fd)
}

// existing is the directory, or the nearest above it that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
