package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gvisor"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// A sandbox behind gVisor differs from a container in this: its root filesystem
// and network are whole before its first process, since nothing can be changed
// from outside afterwards; so its shell is made for it, without execd, and execd
// is started in the claim. execd is reached over TCP: a listener can't be handed
// through the wall. And what ends at once closes no connection, because no
// kernel of the host's knows them: the engine does that.

// behindGVisor reports whether the wall is gVisor's.
func (s *shell) behindGVisor() bool { return s.kind == sandbox.IsolationGVisor }

// minGVisorMemory is the smallest limit with which gVisor and execd in it, which
// take some 20 MiB, still work.
const minGVisorMemory = 32 << 20

// outerPIDs is the limit on the host of a sandbox with a limit of n processes and
// threads, which its own kernel enforces. A process there takes two tasks here,
// and gVisor some 35 for itself. Whoever is root in the sandbox can lift the inner
// limit, and then ends the sandbox at this one.
func outerPIDs(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return 3*n + 256
}

// remedyRunsc is for doctor and for the error.
const remedyRunsc = "build it with `make runsc` and put bin/runsc into $PATH or beside paddock, or set runtime.runsc to its path"

func (e *Engine) findGVisor() (*gvisor.Runtime, error) {
	return gvisor.Find(e.opts.RunscPath)
}

// checkIsolation refuses a wall that this server can't build, and what can't be
// had behind it.
func (e *Engine) checkIsolation(spec *sandbox.Spec) error {
	if spec.Isolation != sandbox.IsolationGVisor {
		return nil
	}
	if _, err := e.findGVisor(); err != nil {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
			"extensions[%q] is %q, which this server does not have (%v). Leave it out, or have the server's operator do this: %s.",
			sandbox.ExtensionIsolation, spec.Isolation, err, remedyRunsc)
	}
	if m := spec.Limits.MemoryBytes; m > 0 && m < minGVisorMemory {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
			"resourceLimits.memory: %d bytes is less than a sandbox with extensions[%q] %q needs, whose kernel counts, too; give at least %dMi.",
			m, sandbox.ExtensionIsolation, spec.Isolation, minGVisorMemory>>20)
	}
	if spec.Limits.GPUs != "" {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
			"resourceLimits.gpu can't be had together with extensions[%q] %q: gVisor has no way to this server's GPUs. Leave one of them out.",
			sandbox.ExtensionIsolation, spec.Isolation)
	}
	return nil
}

// makeGVisor makes a shell for a sandbox behind gVisor: all but processes.
func (e *Engine) makeGVisor(ctx context.Context, id string) (*shell, error) {
	return e.makeAny(ctx, id, sandbox.IsolationGVisor, e.buildGVisor)
}

func (e *Engine) buildGVisor(ctx context.Context, s *shell) error {
	if _, err := e.beginShell(s); err != nil {
		return err
	}
	users, err := childUserNamespace(s.base)
	if err != nil {
		return err
	}
	s.userns, err = unix.FcntlInt(users.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	users.Close()
	if err != nil {
		return fmt.Errorf("keeping the user namespace: %w", err)
	}
	if s.netns, err = newNetNS(); err != nil {
		return err
	}
	s.addr, err = e.network.Attach(ctx, s.netns, s.index, e.in.alias(s.id))
	return err
}

// newNetNS returns a network namespace that nobody is in.
func newNetNS() (int, error) {
	fd := -1
	err := thread.Run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// startGVisor starts execd in its root filesystem.
func (e *Engine) startGVisor(ctx context.Context, s *shell, root *rootfs.Root) error {
	run, err := e.findGVisor()
	if err != nil {
		return err
	}
	stage, err := e.threads.Stage(ctx, root, filepath.Join(e.rootDir(), rootfs.NewRoot))
	if err != nil {
		return rootError(err)
	}
	defer stage.Close()
	start := &gvisor.Start{
		Sandbox: &gvisor.Sandbox{ID: s.id, Root: stage.Root, Tmp: stage.Tmp, Base: s.base, MaxFiles: e.maxFiles, SharedMemoryBytes: root.SharedMemoryBytes},
		Bundle:  e.in.run(s.id), MountNS: stage.MountNS, NetNS: s.netns, Key: newKey(), Begin: s.group.StartHere,
	}
	for i, v := range root.Volumes {
		start.Sandbox.Mounts = append(start.Sandbox.Mounts, gvisor.Mount{Source: stage.Volumes[i], Target: v.Target, ReadOnly: v.ReadOnly})
	}
	if start.Execd, err = os.Open(filepath.Join(e.rootDir(), "execd")); err != nil {
		return err
	}
	defer start.Execd.Close()
	for i := range start.Log {
		if start.Log[i], err = os.OpenFile(e.logFile(s.id, i), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return err
		}
		defer start.Log[i].Close()
	}
	if s.pid, err = run.Run(ctx, start); err != nil {
		return err
	}
	if s.start, err = processStart(s.pid); err != nil {
		return fmt.Errorf("gVisor ended at once: %w", err)
	}
	if s.pidfd, err = openProcess(s.pid, s.start); err != nil {
		return fmt.Errorf("gVisor ended at once: %w", err)
	}
	if err := checkMember(s.group, s.pid, s.pidfd); err != nil {
		return fmt.Errorf("gVisor ended at once: %w", err)
	}
	if s.conn, err = e.connect(ctx, s); err != nil {
		return err
	}
	s.conn.key = start.Key
	return nil
}

// checkMember fails unless a process, which pidfd is of, is in a group. An id that
// was read from a file may be another process's by now, and pidfd then is of
// that one.
func checkMember(g *cgroup.Group, pid, pidfd int) error {
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	// The id is not given to another while its process is there.
	if !slices.Contains(pids, pid) || ended(pidfd) {
		return fmt.Errorf("process %d is none of the sandbox's", pid)
	}
	return nil
}

func newKey() string {
	var b [24]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// watchGVisor cuts the connections to the sandbox when it ends: nothing answers
// on them any more, not even that.
func (e *Engine) watchGVisor(s *shell) {
	if !s.behindGVisor() {
		return
	}
	fd, err := unix.PidfdOpen(s.pid, unix.PIDFD_NONBLOCK)
	if err != nil || ended(s.pidfd) {
		if err == nil {
			unix.Close(fd)
		}
		s.conns.close()
		return
	}
	s.death = os.NewFile(uintptr(fd), "pidfd")
	raw, err := s.death.SyscallConn()
	if err != nil {
		e.log.Error("watching a sandbox's process", "sandbox", s.id, "error", err)
		return
	}
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		// It fails when closeAll has closed the file.
		if err := raw.Read(func(fd uintptr) bool { return ended(int(fd)) }); err == nil {
			s.conns.close()
		}
	}()
}

// dialTCP connects to a port at the sandbox's address.
func (s *shell) dialTCP(ctx context.Context, port int) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if s.behindGVisor() {
		if s.conns.over() {
			return nil, errSandboxEnded
		}
		// A paused sandbox answers nothing, and has its connections when it goes
		// on.
		d.KeepAlive = -1
	}
	c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort(s.addr.String(), strconv.Itoa(port)))
	if tcp, ok := c.(*net.TCPConn); ok && s.behindGVisor() {
		return s.conns.keep(tcp)
	}
	return c, err
}

// conns are connections that end together. The zero value has none.
type conns struct {
	mu     sync.Mutex
	open   map[*net.TCPConn]struct{}
	closed bool
}

// errSandboxEnded is returned for a connection to a sandbox that is no more.
var errSandboxEnded = errors.New("the sandbox has ended")

// keep adds one.
func (c *conns) keep(tcp *net.TCPConn) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		tcp.Close()
		return nil, errSandboxEnded
	}
	if c.open == nil {
		c.open = make(map[*net.TCPConn]struct{})
	}
	c.open[tcp] = struct{}{}
	return &keptConn{TCPConn: tcp, all: c}, nil
}

// over reports whether they were closed.
func (c *conns) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// close closes them all, and those to come.
func (c *conns) close() {
	c.mu.Lock()
	open := c.open
	c.open, c.closed = nil, true
	c.mu.Unlock()
	for tcp := range open {
		tcp.Close()
	}
}

// keptConn has all methods of a TCP connection, CloseWrite and those that copy
// within the kernel among them.
type keptConn struct {
	*net.TCPConn
	all *conns
}

func (k *keptConn) Close() error {
	k.all.mu.Lock()
	delete(k.all.open, k.TCPConn)
	k.all.mu.Unlock()
	return k.TCPConn.Close()
}
