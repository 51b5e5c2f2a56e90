package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/seccomp"
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
	kind   Kind
	binary *binary
	// root is the directory where it keeps its state.
	root string
	// mountNS is the mount namespace that the runtime is started in; -1 means
	// the caller's own.
	mountNS int
	// filter is the compiled system call filter, and filterFile a sealed file
	// with it for execd to read; nil where the runtime takes the filter.
	filter     []byte
	filterFile *os.File
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
// root must be on tmpfs: it is written on every start. Every shell runs under
// filter, a program that package seccomp compiled.
func New(kind Kind, path, root string, filter []byte) (*Runtime, error) {
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
	r := &Runtime{kind: kind, binary: &binary{path: found, asIs: kind != Crun}, root: root, mountNS: -1, filter: filter}
	if kind == Crun {
		r.mountNS, err = withoutUnifiedCgroup()
	} else {
		r.mountNS, err = withReadOnlyCgroups()
	}
	if err != nil {
		return nil, err
	}
	if kind != Crun {
		if r.filterFile, err = sealedFile("system-call-filter", filter); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// Close releases what New opened.
func (r *Runtime) Close() error {
	var errs []error
	if r.mountNS >= 0 {
		errs = append(errs, unix.Close(r.mountNS))
	}
	if r.filterFile != nil {
		errs = append(errs, r.filterFile.Close())
	}
	errs = append(errs, r.binary.close())
	return errors.Join(errs...)
}

// sealedFile returns a file in memory whose content nobody can change: one
// descriptor of it goes into every sandbox.
func sealedFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing a file in memory: %w", err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing a file in memory: %w", err)
	}
	return f, nil
}

// Kind says which runtime this is.
func (r *Runtime) Kind() Kind { return r.kind }

// Run starts a shell and returns the host pid of its execd. When it fails no
// process is left.
func (r *Runtime) Run(ctx context.Context, s *Start) (pid int, err error) {
	spec, err := json.Marshal(r.spec(s))
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

// command is the runtime's start of a shell, without the standard streams.
func (r *Runtime) command(ctx context.Context, s *Start) *exec.Cmd {
	files := r.files(s)
	sealed := r.binary.open()
	if sealed == nil {
		cmd := exec.CommandContext(ctx, r.binary.path, r.args(s)...)
		cmd.ExtraFiles = files
		return cmd
	}
	// The name is resolved between fork and exec, in the process that inherits
	// the file, under the number that it has there: any other may have become
	// one of the inherited files by then. It is behind those that the runtime
	// lets the shell have.
	cmd := exec.CommandContext(ctx, "/proc/self/fd/"+strconv.Itoa(firstFD+len(files)), r.args(s)...)
	cmd.Args[0] = r.binary.path
	cmd.ExtraFiles = append(slices.Clone(files), sealed)
	return cmd
}

// emptyPipe returns a pipe's end from which there is nothing to read.
func emptyPipe() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for the shell's standard input: %w", err)
	}
	return r, w.Close()
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
	stdin, err := emptyPipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd := r.command(ctx, s)
	// crun gives standard streams to the sandbox's root. As /dev/null that
	// would be the host's own, which all sandboxes have, too.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, errLog, errLog
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

// spec is the runtime specification, with the filter in the form that the
// runtime takes.
func (r *Runtime) spec(s *Start) *specs.Spec {
	spec := s.Shell.spec()
	if r.filterFile == nil {
		spec.Annotations = map[string]string{seccomp.CrunAnnotation: base64.StdEncoding.EncodeToString(r.filter)}
		return spec
	}
	// runc only takes a profile, which libseccomp compiles at every start, and
	// to which it answers differently where it doesn't know a call.
	spec.Process.Args = append(spec.Process.Args, "--filter-fd", strconv.Itoa(firstFD+len(s.Files)))
	return spec
}

// firstFD is the descriptor that the first of Start.Files becomes.
const firstFD = 3

// files are those that execd inherits.
func (r *Runtime) files(s *Start) []*os.File {
	if r.filterFile == nil {
		return s.Files
	}
	return append(slices.Clone(s.Files), r.filterFile)
}

// args make cgroups none of the runtime's business: package cgroup makes them,
// once, in a known place, on every kind of host.
func (r *Runtime) args(s *Start) []string {
	args := []string{"--root", r.root, "--log", filepath.Join(s.Bundle, "runtime.log")}
	if r.kind == Crun {
		args = append(args, "--cgroup-manager=disabled")
	} else {
		// With this, runc goes on where it may not make a cgroup, and
		// withReadOnlyCgroups sees to it that it never may.
		args = append(args, "--rootless=true")
	}
	return append(args, "run", "-d", "--preserve-fds", strconv.Itoa(len(r.files(s))),
		"--pid-file", filepath.Join(s.Bundle, "pid"), "--bundle", s.Bundle, r.container(s.Shell.ID))
}

// runcPrefix is before a shell's id in the name of runc's container. On cgroup
// v2 runc takes a cgroup of the container's name, beside the one that it is
// started in, for the container's; there must be none.
const runcPrefix = "shell-"

// container is the runtime's name for a shell.
func (r *Runtime) container(id string) string {
	if r.kind == Crun {
		return id
	}
	return runcPrefix + id
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

// Forget drops the state of a shell that the runtime keeps; a configuration may
// have named the other one when the shell was made. Its processes, mounts
// and cgroups are ended by the engine, which makes the runtime's delete command
// a needless process start.
func (r *Runtime) Forget(id string) error {
	return errors.Join(os.RemoveAll(filepath.Join(r.root, id)), os.RemoveAll(filepath.Join(r.root, runcPrefix+id)))
}

// Known lists the shells that the runtime, or the other one before it, has state
// of.
func (r *Runtime) Known() ([]string, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, strings.TrimPrefix(e.Name(), runcPrefix))
		}
	}
	return ids, nil
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
