package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

// container is runsc's name for the one sandbox that a bundle is of. It is
// short: the path of runsc's control socket is made of it, and such a path has
// at most 107 bytes.
const container = "sb"

// ErrMissing is wrapped when there is no runsc.
var ErrMissing = errors.New("runsc was not found")

// Runtime starts sandboxes with runsc. Its methods may be called in parallel.
type Runtime struct{ path string }

// Start is one sandbox to be started.
type Start struct {
	Sandbox *Sandbox
	// Bundle is an existing directory, on tmpfs, for all that runsc keeps.
	Bundle string
	// MountNS and NetNS are descriptors of the namespaces that the root
	// filesystem and the configured interface are in.
	MountNS, NetNS int
	// Execd is the program that becomes PID 1, Log the two segments of the
	// entrypoint's log.
	Execd *os.File
	Log   [2]*os.File
	// Key is what execd's claim will have to carry.
	Key string
	// Begin starts the command on the calling thread, in the sandbox's cgroup;
	// nil means the caller's own cgroup.
	Begin func(*exec.Cmd) error
}

// Find looks for runsc: at path or, when that is empty, in $PATH and beside this
// program. ErrMissing is wrapped when there is none.
func Find(path string) (*Runtime, error) {
	names := []string{path}
	if path == "" {
		names = []string{"runsc"}
		if self, err := os.Executable(); err == nil {
			names = append(names, filepath.Join(filepath.Dir(self), "runsc"))
		}
	}
	for _, name := range names {
		if found, err := exec.LookPath(name); err == nil {
			return &Runtime{path: found}, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrMissing, strings.Join(names, ", "))
}

// Path is where runsc was found.
func (r *Runtime) Path() string { return r.path }

// Version asks runsc for its version.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, r.path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", r.path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first, nil
}

// Run starts a sandbox and returns the host pid of its sentry when execd serves
// its port. When it fails, processes may be left in the cgroup, for the caller
// to kill.
func (r *Runtime) Run(ctx context.Context, s *Start) (pid int, err error) {
	spec, err := json.Marshal(s.Sandbox.spec())
	if err != nil {
		return 0, err
	}
	for name, content := range map[string][]byte{"config.json": spec, "runtime.log": nil, "execd.err": nil} {
		if err := os.WriteFile(filepath.Join(s.Bundle, name), content, 0o600); err != nil {
			return 0, err
		}
	}
	key, sendKey, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("making a pipe for execd: %w", err)
	}
	defer key.Close()
	// It fits into the pipe.
	_, err = io.WriteString(sendKey, s.Key)
	if err := errors.Join(err, sendKey.Close()); err != nil {
		return 0, fmt.Errorf("writing to the pipe for execd: %w", err)
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("making a pipe for execd: %w", err)
	}
	defer ready.Close()
	err = thread.Run(func() error { return r.runOnThread(ctx, s, key, tell) })
	tell.Close()
	if err != nil {
		return 0, err
	}
	if err := awaitReady(ctx, ready); err != nil {
		return 0, s.explain(fmt.Errorf("waiting for execd in gVisor: %w", err))
	}
	return readPID(filepath.Join(s.Bundle, "pid"))
}

// runOnThread starts runsc in the sandbox's namespaces and waits until it has
// started the sandbox.
func (r *Runtime) runOnThread(ctx context.Context, s *Start, key, tell *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unsharing the thread's root: %w", err)
	}
	for _, ns := range []struct{ fd, kind int }{{s.MountNS, unix.CLONE_NEWNS}, {s.NetNS, unix.CLONE_NEWNET}} {
		if err := unix.Setns(ns.fd, ns.kind); err != nil {
			return fmt.Errorf("entering the sandbox's namespaces: %w", err)
		}
	}
	errLog, err := os.OpenFile(filepath.Join(s.Bundle, "execd.err"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer errLog.Close()
	// runsc gives standard streams to the sentry's user: as /dev/null that would
	// be the host's own.
	stdin, end, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe for the standard input: %w", err)
	}
	end.Close()
	defer stdin.Close()
	files := []*os.File{s.Log[0], s.Log[1], key, tell, s.Execd}
	cmd := exec.CommandContext(ctx, r.path, r.args(s, files)...)
	cmd.ExtraFiles = files
	// Not the server's, which may have secrets: the gofer inherits it.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, errLog, errLog
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begin := (*exec.Cmd).Start
	if s.Begin != nil {
		begin = func(c *exec.Cmd) error { return s.Begin(c) }
	}
	if err := begin(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", r.path, err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // which had it killed
		}
		return s.explain(fmt.Errorf("runsc run: %w", err))
	}
	return nil
}

// args choose the platform that works on every machine, virtual ones included;
// kvm would need a device that no sandbox's cgroup grants. They leave cgroups to the caller, and all data in the root filesystem that the
// caller made. The gofer opens files for the sentry, which has no way to any by
// itself (directfs), and neither connects to sockets or opens named pipes of the
// host's.
func (r *Runtime) args(s *Start, files []*os.File) []string {
	args := []string{
		"--root", filepath.Join(s.Bundle, "runsc"), "--log", filepath.Join(s.Bundle, "runtime.log"),
		"--panic-log", filepath.Join(s.Bundle, "panic.log"),
		"--platform=systrap", "--ignore-cgroups", "--network=sandbox", "--gofer-network-namespace=new",
		"--overlay2=none", "--directfs=false", "--host-uds=none", "--host-fifo=none", "--host-settings=ignore",
		"--file-access=exclusive", "--file-access-mounts=exclusive",
		"run", "--detach", "--bundle", s.Bundle, "--pid-file", filepath.Join(s.Bundle, "pid"),
	}
	last := len(files) - 1
	for i := range last {
		n := strconv.Itoa(firstFD + i)
		args = append(args, "--pass-fd", n+":"+n)
	}
	return append(args, "--exec-fd", strconv.Itoa(firstFD+last), container)
}

// firstFD is the descriptor that the first inherited file becomes.
const firstFD = 3

// awaitReady waits for execd's word. The pipe ends when the sentry does.
func awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := io.ReadFull(ready, make([]byte, len(hostapi.Ready)))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return errors.New("it ended at once")
	}
	return err
}

// said bounds what is quoted of a log, in bytes.
const said = 2048

// explain adds what runsc and execd had to say.
func (s *Start) explain(err error) error {
	var all []string
	for _, name := range []string{"runtime.log", "execd.err", "panic.log"} {
		b, rerr := os.ReadFile(filepath.Join(s.Bundle, name))
		if text := bytes.TrimSpace(b[max(0, len(b)-said):]); rerr == nil && len(text) > 0 {
			all = append(all, string(text))
		}
	}
	if len(all) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(all, "; "))
}

func readPID(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("reading the sentry's pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("reading the sentry's pid: %q is not one", b)
	}
	return pid, nil
}
