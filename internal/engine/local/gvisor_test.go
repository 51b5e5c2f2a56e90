package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/enginetest"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gvisor/gvisortest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// gvisorHost is an instance with runsc.
func gvisorHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.opts.RunscPath = gvisortest.Runsc(t)
	return h
}

// behindGVisor is an engine on which every sandbox is behind gVisor.
type behindGVisor struct{ *Engine }

func (b behindGVisor) walled(spec *sandbox.Spec) *sandbox.Spec {
	c := spec.Clone()
	c.Isolation = sandbox.IsolationGVisor
	return &c
}

func (b behindGVisor) Check(ctx context.Context, spec *sandbox.Spec) error {
	return b.Engine.Check(ctx, b.walled(spec))
}

func (b behindGVisor) Reserve(ctx context.Context, spec *sandbox.Spec) (string, error) {
	return b.Engine.Reserve(ctx, b.walled(spec))
}

func (b behindGVisor) Create(ctx context.Context, r sandbox.CreateRequest) (*sandbox.Created, error) {
	r.Spec = b.walled(r.Spec)
	return b.Engine.Create(ctx, r)
}

func TestConformanceWithGVisor(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Host {
		h := conformingHost(t, gvisorHost(t))
		open := h.Open
		h.Open = func(t *testing.T) sandbox.Engine { return behindGVisor{open(t).(*Engine)} }
		return h
	})
}

// A server without runsc, and what can't be had behind gVisor.
func TestGVisorIsRefused(t *testing.T) {
	e, _ := gvisorHost(t).open(t)
	defer e.Close()
	for _, c := range []struct {
		name   string
		path   string // of runsc, unless it is the right one
		change func(*sandbox.Spec)
		want   []string
	}{
		{"no runsc", "/nowhere/runsc", func(*sandbox.Spec) {}, []string{`extensions["paddock.isolation"]`, "/nowhere/runsc", "make runsc"}},
		{"GPUs", "", func(s *sandbox.Spec) { s.Limits.GPUs = "1" }, []string{"resourceLimits.gpu", "gVisor"}},
		{"little memory", "", func(s *sandbox.Spec) { s.Limits.MemoryBytes = 31 << 20 }, []string{"resourceLimits.memory", "at least 32Mi"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kept := e.opts.RunscPath
			defer func() { e.opts.RunscPath = kept }()
			if c.path != "" {
				e.opts.RunscPath = c.path
			}
			spec := &sandbox.Spec{Image: testImage, Isolation: sandbox.IsolationGVisor}
			c.change(spec)
			err := e.Check(t.Context(), spec)
			var known *sandbox.Error
			if !errors.As(err, &known) || known.Kind != sandbox.KindInvalid {
				t.Fatalf("got %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(known.Message, want) {
					t.Errorf("%q lacks %q", known.Message, want)
				}
			}
		})
	}
}

// status reads some lines of /proc/pid/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		lines[name] = strings.Join(strings.Fields(value), " ")
	}
	return lines
}

// A process whose id is read from a file is taken for the sandbox's only when it
// is in its group.
func TestCheckMember(t *testing.T) {
	e, _ := newHost(t).open(t)
	defer e.Close()
	s, err := e.find(mustCreate(t, e, func(*sandbox.Spec) {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkMember(s.group, s.pid, s.pidfd); err != nil {
		t.Errorf("the sandbox's own process: %v", err)
	}
	other := exec.Command("sleep", "infinity")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { other.Process.Kill(); other.Wait() }
	defer stop()
	fd, err := openProcess(other.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if checkMember(s.group, other.Process.Pid, fd) == nil {
		t.Error("a process of the host's passes for the sandbox's")
	}
	// The id has become the sandbox's since the pidfd was opened.
	stop()
	if checkMember(s.group, s.pid, fd) == nil {
		t.Error("a process that has ended passes for the sandbox's")
	}
}

// The privileges of runsc's processes are those that docs/security.md names.
func TestGVisorPrivileges(t *testing.T) {
	e, _ := gvisorHost(t).open(t)
	defer e.Close()
	id := mustCreate(t, e, func(s *sandbox.Spec) { s.Isolation = sandbox.IsolationGVisor })
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := s.group.Procs()
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprint(s.base)
	// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID and SYS_CHROOT, as
	// bits of include/uapi/linux/capability.h.
	const none, gofers = "0000000000000000", "000000000004001f"
	seen := map[string]int{}
	for _, pid := range pids {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(string(cmd), "\x00")
		who, caps := "65534", none
		if name == "runsc-gofer" {
			who, caps = root, gofers
		}
		seen[name]++
		st := status(t, pid)
		ids := strings.Join([]string{who, who, who, who}, " ")
		if st["Uid"] != ids || st["Gid"] != ids || st["Groups"] != "" {
			t.Errorf("%s %d: user %s, group %s, groups %q", name, pid, st["Uid"], st["Gid"], st["Groups"])
		}
		if st["CapPrm"] != caps || st["CapEff"] != caps || st["CapBnd"] != caps || st["CapInh"] != caps || st["CapAmb"] != caps {
			t.Errorf("%s %d: capabilities %s, inheritable %s, ambient %s, bounded by %s", name, pid, st["CapPrm"], st["CapInh"], st["CapAmb"], st["CapBnd"])
		}
		if st["NoNewPrivs"] != "1" || st["Seccomp"] != "2" {
			t.Errorf("%s %d: no-new-privileges %s, seccomp %s", name, pid, st["NoNewPrivs"], st["Seccomp"])
		}
		for _, ns := range []string{"mnt", "pid", "ipc", "uts", "user", "net"} {
			own, err := os.Readlink("/proc/self/ns/" + ns)
			theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			if err != nil || terr != nil || own == theirs {
				t.Errorf("%s %d: namespace %s is the host's: %v %v", name, pid, ns, err, terr)
			}
		}
		environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if home := os.Getenv("HOME"); home != "" && strings.Contains(string(environ), "HOME=") {
			t.Errorf("%s %d has the server's environment", name, pid)
		}
	}
	if seen["runsc-gofer"] != 1 || seen["runsc-sandbox"] < 1 {
		t.Errorf("processes: %v", seen)
	}
	var null unix.Stat_t
	if err := unix.Stat(os.DevNull, &null); err != nil || null.Uid != 0 {
		t.Errorf("the host's %s belongs to %d: %v", os.DevNull, null.Uid, err)
	}
}

// Files are where those of containers are: on this disk, within its limit, with
// volumes that others change too.
func TestGVisorFiles(t *testing.T) {
	h := gvisorHost(t)
	shared := t.TempDir()
	h.opts.AllowedHostPaths = []string{shared}
	e, _ := h.open(t)
	defer e.Close()
	id := mustCreate(t, e, func(s *sandbox.Spec) {
		s.Isolation = sandbox.IsolationGVisor
		s.Volumes = []sandbox.VolumeMount{
			{Name: "a", HostPath: shared, MountPath: "/mnt/rw"},
			{Name: "b", HostPath: shared, MountPath: "/tmp/ro", ReadOnly: true},
		}
	})
	if err := os.WriteFile(filepath.Join(shared, "f"), []byte("first"), 0o644); err != nil {
		t.Fatal(err)
	}
	check := func(command, want string) {
		t.Helper()
		if out, _ := run(t, e, id, command); strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %q", command, out, want)
		}
	}
	check("cat /mnt/rw/f /tmp/ro/f", "firstfirst")
	if err := os.WriteFile(filepath.Join(shared, "f"), []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("cat /mnt/rw/f /tmp/ro/f", "otherother")
	check("touch /tmp/ro/g 2> /dev/null || echo refused", "refused")
	check("echo inside > /mnt/rw/g; echo tmp > /tmp/t; echo root > /r; sync; cat /tmp/ro/g", "inside")
	for path, want := range map[string]string{
		filepath.Join(shared, "g"):                  "inside\n",
		filepath.Join(e.in.data(id), "upper/tmp/t"): "tmp\n",
		filepath.Join(e.in.data(id), "upper/r"):     "root\n",
	} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	check("ls -A / | grep -c execd", "0") // it is no file of the sandbox's
	check("cat /proc/1/environ /proc/1/exe > /dev/null 2>&1 && echo read || echo refused", "refused")
}

func TestGVisorLimitedDisk(t *testing.T) {
	e, _ := gvisorHost(t).open(t)
	defer e.Close()
	id, err := create(t, e, func(s *sandbox.Spec) {
		s.Isolation = sandbox.IsolationGVisor
		s.Limits.EphemeralBytes = 16 << 20
	})
	var known *sandbox.Error
	if errors.As(err, &known) && strings.Contains(known.Message, "can't be enforced") {
		t.Skip(known.Message)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, _ := run(t, e, id, "dd if=/dev/zero of=/tmp/big bs=1M count=20 2>&1; sync; du -sm /tmp/big | cut -f1")
	if !strings.Contains(out, "No space left") {
		t.Errorf("20 MiB fit on a disk of 16: %s", out)
	}
}

// A sandbox whose kernel dies is reported, and nobody waits on its connections.
func TestGVisorEndsAtOnce(t *testing.T) {
	e, _ := gvisorHost(t).open(t)
	defer e.Close()
	id := mustCreate(t, e, func(s *sandbox.Spec) { s.Isolation = sandbox.IsolationGVisor })
	c, err := e.Dial(t.Context(), id, sandbox.ExecdPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("something answers")
	}
	select {
	case exit := <-e.Exits():
		if exit.ID != id || !exit.ExecdLost || exit.OutOfMemory {
			t.Errorf("reported: %+v", exit)
		}
	case <-time.After(30 * time.Second):
		t.Error("the end was not reported")
	}
	if c, err := e.Dial(t.Context(), id, 80); err == nil {
		c.Close()
		t.Error("a connection to a sandbox that has ended")
	}
}

// At its limit of processes a sandbox gets an error, as a container does, and
// lives; whatever its root does, it has no more than it can have on the host.
func TestGVisorProcessLimit(t *testing.T) {
	e, _ := gvisorHost(t).open(t)
	defer e.Close()
	id := mustCreate(t, e, func(s *sandbox.Spec) {
		s.Isolation = sandbox.IsolationGVisor
		s.Limits.PIDs = 40
	})
	out, _ := run(t, e, id, "for i in $(seq 60); do sleep 1000 & done 2>&1; true")
	if !strings.Contains(out, "Resource temporarily unavailable") {
		t.Errorf("60 processes within a limit of 40: %q", out)
	}
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	if ended(s.pidfd) {
		t.Error("the sandbox has ended")
	}
	u, err := s.group.Usage()
	if err != nil || u.PIDs > outerPIDs(40) {
		t.Errorf("%d tasks on the host, %v", u.PIDs, err)
	}
	if outerPIDs(0) != 0 {
		t.Error("no limit became one")
	}
}
