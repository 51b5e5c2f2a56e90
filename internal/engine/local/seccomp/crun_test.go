package seccomp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container runs the probe under crun with every capability over a user
// namespace of its own, so that what is refused is refused by the filter.
type container struct {
	t      *testing.T
	dir    string
	filter []byte // a ready program, nil for none
	runs   int
}

func newContainer(t *testing.T) *container {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to map a range of user ids")
	}
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("needs crun: ", err)
	}
	// Not t.TempDir: its parent is closed to the mapped user.
	dir, err := os.MkdirTemp("", "paddock-seccomp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"rootfs/proc", "rootfs/dev", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "rootfs/probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	return &container{t: t, dir: dir}
}

// run runs the probe once and returns what it printed and crun's exit code.
func (c *container) run(args ...string) (string, int) {
	c.t.Helper()
	caps := make([]string, 0, len(capabilities))
	for _, name := range capabilities {
		caps = append(caps, "CAP_"+name)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	spec := specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args:            append([]string{"/probe"}, args...),
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root: &specs.Root{Path: filepath.Join(c.dir, "rootfs"), Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
		},
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UserNamespace},
			},
		},
	}
	if c.filter != nil {
		spec.Annotations = map[string]string{CrunAnnotation: base64.StdEncoding.EncodeToString(c.filter)}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), raw, 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.runs++
	// crun refuses to start on a host where some controllers are on the old
	// hierarchy and some on the new, which lies beside it. It needs neither
	// here, so it gets a mount namespace without the new one.
	script := `if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"`
	cmd := exec.CommandContext(c.t.Context(), "unshare", "--mount", "--propagation", "private",
		"sh", "-c", script, "sh",
		"crun", "--root", filepath.Join(c.dir, "state"), "--cgroup-manager=disabled",
		"run", "--bundle", c.dir, fmt.Sprintf("paddock-seccomp-%d-%d", os.Getpid(), c.runs))
	var stdout, stderr bytes.Buffer
	// Not /dev/null, which crun would give to the container's user.
	cmd.Stdin = strings.NewReader("")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	if stderr.Len() > 0 {
		c.t.Logf("crun: %s", stderr.String())
	}
	return stdout.String(), cmd.ProcessState.ExitCode()
}

// probeCall is one call for the probe to make.
type probeCall struct {
	name string
	nr   uint32
	args [6]uint64
}

func (c *container) errnos(calls []probeCall) []unix.Errno {
	c.t.Helper()
	type wire struct {
		NR   uint32    `json:"nr"`
		Args [6]uint64 `json:"args"`
	}
	in := make([]wire, 0, len(calls))
	for _, call := range calls {
		in = append(in, wire{call.nr, call.args})
	}
	raw, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	out, code := c.run("calls", string(raw))
	var errnos []unix.Errno
	if err := json.Unmarshal([]byte(out), &errnos); err != nil || len(errnos) != len(calls) {
		c.t.Fatalf("probe answered %q (exit %d): %v", out, code, err)
	}
	return errnos
}

func TestUnderCrun(t *testing.T) {
	c := newContainer(t)
	numbers, err := machineOf(runtime.GOARCH)
	if err != nil {
		t.Skip(err)
	}
	nr := func(name string) uint32 {
		n, ok := numbers.number[name]
		if !ok {
			t.Fatalf("no call %q here", name)
		}
		return n
	}

	// Without the filter these work, or fail for another reason: else the
	// rest of the test would prove nothing. They change only the probe.
	control := []probeCall{
		{"unshare", nr("unshare"), [6]uint64{unix.CLONE_NEWNS}},
		{"unshare", nr("unshare"), [6]uint64{unix.CLONE_NEWUSER}},
		{"mount", nr("mount"), [6]uint64{}},
		{"fsopen", nr("fsopen"), [6]uint64{}},
		{"setns", nr("setns"), [6]uint64{0xffffffff}},
		{"keyctl", nr("keyctl"), [6]uint64{0, 0xfffffffd}},
		{"clone3", nr("clone3"), [6]uint64{}},
	}
	for i, errno := range c.errnos(control) {
		if errno == unix.EPERM || errno == unix.ENOSYS {
			t.Errorf("without a filter, %s: %v", control[i].name, errno)
		}
	}

	if c.filter, err = Compile(); err != nil {
		t.Fatal(err)
	}
	out, _ := c.run("status")
	for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1"} {
		if !strings.Contains(out, want) {
			t.Errorf("status %q lacks %q", out, want)
		}
	}

	t.Run("denied", func(t *testing.T) {
		c.t = t
		calls, want := deniedCalls(numbers, nr)
		calls, want = append(calls, probeCall{"an x32 call", 1<<30 | 39, [6]uint64{}}), append(want, unix.ENOSYS)
		for i, errno := range c.errnos(calls) {
			if errno != want[i] {
				t.Errorf("%s: got %v, want %v", calls[i].name, errno, want[i])
			}
		}
	})
	t.Run("allowed", func(t *testing.T) {
		c.t = t
		c.checkAllowed(allowedCalls(nr))
	})
	t.Run("32-bit", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skip("only amd64 can make calls of another architecture from one program")
		}
		c.t = t
		out, code := c.run("legacy")
		if strings.Contains(out, "survived") || code != 128+int(unix.SIGSYS) {
			t.Errorf("exit %d, printed %q, want to be killed by SIGSYS", code, out)
		}
	})
}

// checkAllowed makes calls whose failure must not be the filter's.
func (c *container) checkAllowed(calls []probeCall) {
	c.t.Helper()
	for i, errno := range c.errnos(calls) {
		switch errno {
		case unix.EPERM, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT:
			c.t.Errorf("%s: %v", calls[i].name, errno)
		}
	}
}

// deniedCalls is every denied call, and what each has to answer.
func deniedCalls(numbers machine, nr func(string) uint32) (calls []probeCall, want []unix.Errno) {
	for act, names := range verdicts {
		for _, name := range names {
			if name == "uretprobe" || name == "uprobe" {
				continue // the kernel doesn't ask filters about these
			}
			if n, ok := numbers.number[name]; ok {
				calls = append(calls, probeCall{name, n, [6]uint64{}})
				want = append(want, unix.Errno(act.errno()))
			}
		}
	}
	for _, extra := range []struct {
		name string
		nr   uint32
		args [6]uint64
		want unix.Errno
	}{
		{"unshare(NEWUSER)", nr("unshare"), [6]uint64{unix.CLONE_NEWUSER}, unix.EPERM},
		{"clone(NEWUSER)", nr("clone"), [6]uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, unix.EPERM},
		{"clone(NEWNS)", nr("clone"), [6]uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}, unix.EPERM},
		{"personality(READ_IMPLIES_EXEC)", nr("personality"), [6]uint64{0x400000}, unix.EPERM},
		{"socket(AF_PACKET)", nr("socket"), [6]uint64{unix.AF_PACKET, unix.SOCK_RAW}, unix.EAFNOSUPPORT},
		{"socket(AF_VSOCK)", nr("socket"), [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, unix.EAFNOSUPPORT},
		{"socket(AF_ALG)", nr("socket"), [6]uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, unix.EAFNOSUPPORT},
		{"socket(SOCK_PACKET)", nr("socket"), [6]uint64{unix.AF_INET, unix.SOCK_PACKET, 0x300}, unix.ESOCKTNOSUPPORT},
		{"socket(NETFILTER)", nr("socket"), [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, unix.EPROTONOSUPPORT},
		{"a call of the future", 2000, [6]uint64{}, unix.ENOSYS},
	} {
		calls = append(calls, probeCall{extra.name, extra.nr, extra.args})
		want = append(want, extra.want)
	}
	return calls, want
}

// allowedCalls have arguments that the call refuses, for a reason of its own.
func allowedCalls(nr func(string) uint32) []probeCall {
	const bad = 1<<64 - 1
	return []probeCall{
		{"read", nr("read"), [6]uint64{bad}},
		{"openat", nr("openat"), [6]uint64{bad}},
		{"openat2", nr("openat2"), [6]uint64{bad}},
		{"statx", nr("statx"), [6]uint64{bad}},
		{"newfstatat", nr("newfstatat"), [6]uint64{bad}},
		{"faccessat2", nr("faccessat2"), [6]uint64{bad}},
		{"fchmodat2", nr("fchmodat2"), [6]uint64{bad, 0, 0, bad}},
		{"close_range", nr("close_range"), [6]uint64{5, 4}},
		{"memfd_create", nr("memfd_create"), [6]uint64{}},
		{"copy_file_range", nr("copy_file_range"), [6]uint64{bad, 0, bad}},
		{"mknodat", nr("mknodat"), [6]uint64{bad}},
		{"chroot", nr("chroot"), [6]uint64{}},
		{"mount namespaces aside, fchdir", nr("fchdir"), [6]uint64{bad}},
		{"pidfd_open", nr("pidfd_open"), [6]uint64{0}},
		{"pidfd_send_signal", nr("pidfd_send_signal"), [6]uint64{bad}},
		{"pidfd_getfd", nr("pidfd_getfd"), [6]uint64{bad}},
		{"ptrace", nr("ptrace"), [6]uint64{unix.PTRACE_CONT, 1 << 30}},
		{"process_vm_readv", nr("process_vm_readv"), [6]uint64{1 << 30, 0, 0, 0, 0, 0}},
		{"clone without a namespace", nr("clone"), [6]uint64{unix.CLONE_SIGHAND}},
		{"personality query", nr("personality"), [6]uint64{0xffffffff}},
		{"seccomp", nr("seccomp"), [6]uint64{99}},
		{"prctl", nr("prctl"), [6]uint64{9999}},
		{"membarrier", nr("membarrier"), [6]uint64{9999}},
		{"futex", nr("futex"), [6]uint64{1, 1}},
		{"rseq", nr("rseq"), [6]uint64{1, 1}},
		{"shmget", nr("shmget"), [6]uint64{}},
		{"semget", nr("semget"), [6]uint64{0, bad}},
		{"mq_open", nr("mq_open"), [6]uint64{}},
		{"io_setup", nr("io_setup"), [6]uint64{}},
		{"epoll_create1", nr("epoll_create1"), [6]uint64{bad}},
		{"epoll_pwait2", nr("epoll_pwait2"), [6]uint64{bad}},
		{"timerfd_create", nr("timerfd_create"), [6]uint64{bad}},
		{"setpgid", nr("setpgid"), [6]uint64{1 << 30}},
		{"prlimit64", nr("prlimit64"), [6]uint64{1 << 30}},
		{"socket(unix)", nr("socket"), [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}},
		{"socket(tcp)", nr("socket"), [6]uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}},
		{"socket(udp6)", nr("socket"), [6]uint64{unix.AF_INET6, unix.SOCK_DGRAM}},
		{"socket(route)", nr("socket"), [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}},
		{"socketpair", nr("socketpair"), [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}},
	}
}

// capabilities is every capability of Linux 6.18.
var capabilities = []string{
	"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF",
	"CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER",
	"FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE",
	"MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
	"NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP",
	"SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE",
	"SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
	"SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}
