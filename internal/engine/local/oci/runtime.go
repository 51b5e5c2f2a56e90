package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// Kind is which OCI runtime starts shells.
type Kind string

const (
	Crun Kind = "crun"
	Runc Kind = "runc"
)

// Runtime starts shells. Its methods may be called in parallel.
type Runtime struct {
	kind Kind
	// path of the binary and the directory where it keeps its state.
	path, root string
	// mountNS is the mount namespace that the runtime is started in; -1 means
	// the caller's own.
	mountNS int
}

// Start is one shell to be started.
type Start struct {
	Shell *Shell
	// Bundle is an existing directory for config.json and the log.
	Bundle string
	// Files become descriptors 3 and following of execd.
	Files []*os.File
	// Begin starts the command on the calling thread, in the shell's cgroup;
	// nil means the caller's own cgroup.
	Begin func(*exec.Cmd) error
}

// New finds the runtime's binary; path may be empty for a search in $PATH.
// root must be on tmpfs: it is written on every start.
func New(kind Kind, path, root string) (*Runtime, error) {
	if path == "" {
		path = string(kind)
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("finding the OCI runtime %q: %w", path, err)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	r := &Runtime{kind: kind, path: found, root: root}
	if r.mountNS, err = withoutUnifiedCgroup(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close releases what New opened.
func (r *Runtime) Close() error {
	if r.mountNS < 0 {
		return nil
	}
	return unix.Close(r.mountNS)
}

// Kind says which runtime this is.
func (r *Runtime) Kind() Kind { return r.kind }

// Run starts a shell and returns the host pid of its execd. When it fails no
// process is left.
func (r *Runtime) Run(ctx context.Context, s *Start) (pid int, err error) {
	spec, err := json.Marshal(s.Shell.spec())
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(s.Bundle, "config.json"), spec, 0o600); err != nil {
		return 0, err
	}
	// The thread has a mount namespace, and with cgroup v1 a cgroup, of its
	// own.
	if err := thread.Run(func() error { return r.runOnThread(ctx, s) }); err != nil {
		r.Forget(s.Shell.ID)
		return 0, err
	}
	return readPID(filepath.Join(s.Bundle, "pid"))
}

func (r *Runtime) runOnThread(ctx context.Context, s *Start) error {
	if err := r.enterMountNS(); err != nil {
		return err
	}
	errLog, err := os.OpenFile(filepath.Join(s.Bundle, "execd.err"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer errLog.Close()
	cmd := exec.CommandContext(ctx, r.path, r.args(s)...)
	cmd.ExtraFiles = s.Files
	cmd.Stderr = errLog
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begin := (*exec.Cmd).Start
	if s.Begin != nil {
		begin = func(c *exec.Cmd) error { return s.Begin(c) }
	}
	if err := begin(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", r.kind, err)
	}
	if err := cmd.Wait(); err != nil {
		return r.explain(s, err)
	}
	return nil
}

func (r *Runtime) args(s *Start) []string {
	args := []string{"--root", r.root, "--log", filepath.Join(s.Bundle, "runtime.log")}
	if r.kind == Crun {
		// cgroups are made by package cgroup: once, in a known place, on
		// every kind of host.
		args = append(args, "--cgroup-manager=disabled")
	}
	return append(args, "run", "-d", "--preserve-fds", strconv.Itoa(len(s.Files)),
		"--pid-file", filepath.Join(s.Bundle, "pid"), "--bundle", s.Bundle, s.Shell.ID)
}

// explain adds what the runtime logged.
func (r *Runtime) explain(s *Start, err error) error {
	var said []string
	for _, name := range []string{"runtime.log", "execd.err"} {
		b, rerr := os.ReadFile(filepath.Join(s.Bundle, name))
		if rerr == nil && len(bytes.TrimSpace(b)) > 0 {
			said = append(said, string(bytes.TrimSpace(b[max(0, len(b)-2048):])))
		}
	}
	if len(said) == 0 {
		return fmt.Errorf("%s run: %w", r.kind, err)
	}
	return fmt.Errorf("%s run: %w: %s", r.kind, err, strings.Join(said, "; "))
}

// Forget drops the runtime's own state of a container. Its processes, mounts
// and cgroups are ended by the engine, which makes the runtime's delete command
// a needless process start.
func (r *Runtime) Forget(id string) error {
	return os.RemoveAll(filepath.Join(r.root, id))
}

// Known lists the containers that the runtime has state of.
func (r *Runtime) Known() ([]string, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// withoutUnifiedCgroup returns a mount namespace in which the cgroup v2
// hierarchy of a hybrid host is not to be seen, or -1 on other hosts. crun
// refuses a hybrid host while a controller sits on v2 ("cgroups in hybrid mode
// not supported"), and unmounting it for everybody is not ours to do. Mounts and
// unmounts of the host still reach the namespace.
func withoutUnifiedCgroup() (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(unifiedCgroup, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return -1, nil
	}
	fd := -1
	err := thread.Run(func() (err error) {
		fd, err = hideUnifiedCgroup()
		return err
	})
	return fd, err
}

// unifiedCgroup is where hybrid hosts mount the cgroup v2 hierarchy
// (systemd's convention, which crun follows).
const unifiedCgroup = "/sys/fs/cgroup/unified"

func hideUnifiedCgroup() (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return -1, fmt.Errorf("detaching the mount namespace: %w", err)
	}
	if err := unix.Unmount(unifiedCgroup, unix.MNT_DETACH); err != nil {
		return -1, fmt.Errorf("hiding %s: %w", unifiedCgroup, err)
	}
	return unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// enterMountNS moves the calling thread, which is not used for anything else
// afterwards.
func (r *Runtime) enterMountNS() error {
	if r.mountNS < 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unsharing the thread's root: %w", err)
	}
	if err := unix.Setns(r.mountNS, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the mount namespace: %w", err)
	}
	return nil
}

func readPID(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("reading the shell's pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("reading the shell's pid: %q is not one", b)
	}
	return pid, nil
}
