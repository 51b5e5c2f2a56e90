package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gpu"
	"github.com/paddock-sandbox/paddock/internal/engine/local/network"
	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// shell is a sandbox of this engine, claimed or not.
type shell struct {
	id    string
	index int
	addr  netip.Addr
	base  uint32
	group *cgroup.Group
	pid   int
	start uint64
	// pidfd refers to execd; -1 when there is none.
	pidfd int
	// mntns and userns are open until the claim, behind gVisor netns in place of
	// mntns; -1 otherwise.
	mntns, userns, netns int
	// conn is the kept connection to execd: pings, the claim, and from then
	// on the held request for the entrypoint's end.
	conn *execdConn
	// gpus are the sandbox's; nil without, and in an adopted sandbox.
	gpus *gpu.Grant
	// loop is the number of the loop device of a limited disk, nil without.
	loop *int
	// hookSeq is the number of the last run of a hook that was reported. Only
	// the watcher uses it once there is one.
	hookSeq int64
	// ooms is what the watcher knows of kills for memory; nil before it began.
	ooms *oomTrack
	// ownEnv are the variables of the request that trust would set.
	ownEnv map[string]string
	// untold is the policy for which programs still must be told to trust the
	// authority. Calls of the engine for the sandbox use it, which don't overlap.
	untold *policy.Policy
	// denied is the process that was last found behind a denial; 0 for none.
	denied atomic.Int64
	// token is what execd demands after the claim.
	token string
	// over is closed when nothing more is written to the log.
	over     chan struct{}
	overOnce sync.Once
	// isolation is the sandbox's isolated sessions.
	isolation isolation
	// kind is its wall; empty for a container.
	kind sandbox.Isolation
	// conns are the connections into a sandbox behind gVisor, and death tells of
	// its end.
	conns conns
	death *os.File
}

func newShell(id string) *shell {
	return &shell{id: id, index: -1, pidfd: -1, mntns: -1, userns: -1, netns: -1, over: make(chan struct{})}
}

// closeNamespaces drops the descriptors that only a claim needs.
func (s *shell) closeNamespaces() {
	for _, fd := range []*int{&s.mntns, &s.userns, &s.netns} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// end says that the entrypoint has ended or will not go on.
func (s *shell) end() { s.overOnce.Do(func() { close(s.over) }) }

// closeAll drops every descriptor.
func (s *shell) closeAll() {
	s.isolation.close()
	s.closeNamespaces()
	if s.conn != nil {
		s.conn.Close()
	}
	s.conns.close()
	if s.death != nil {
		s.death.Close()
	}
	if s.pidfd >= 0 {
		unix.Close(s.pidfd)
		s.pidfd = -1
	}
}

// makeShell makes a shell with that id, from nothing to an answering execd. If
// it fails, nothing is left.
func (e *Engine) makeShell(ctx context.Context, id string) (*shell, error) {
	return e.makeAny(ctx, id, "", e.buildShell)
}

// makeAny makes a shell of that kind.
func (e *Engine) makeAny(ctx context.Context, id string, kind sandbox.Isolation, build func(context.Context, *shell) error) (*shell, error) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.StartTimeout)
	defer cancel()
	for range 8 {
		s := newShell(id)
		s.kind = kind
		err := e.tryShell(ctx, s, build)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, network.ErrBusy) {
			return nil, err
		}
		// The kernel has not removed the index's last interface yet; the next
		// try has another index.
	}
	return nil, fmt.Errorf("making shell %s: no network interface name is free", id)
}

// tryShell builds the shell. If it fails, nothing is left.
func (e *Engine) tryShell(ctx context.Context, s *shell, build func(context.Context, *shell) error) error {
	err := build(ctx, s)
	if err == nil {
		return nil
	}
	if terr := e.dismantle(context.WithoutCancel(ctx), s, false); terr != nil {
		e.log.Error("taking a half-made shell apart", "sandbox", s.id, "error", terr)
	}
	return fmt.Errorf("making shell %s: %w", s.id, err)
}

func (e *Engine) buildShell(ctx context.Context, s *shell) error {
	steps := newStopwatch()
	st, err := e.beginShell(s)
	if err != nil {
		return err
	}
	steps.done("disk and cgroup")
	if err := e.startExecd(ctx, s); err != nil {
		return err
	}
	steps.done("runtime")
	st.PID, st.PIDStart = s.pid, s.start
	if err := e.in.saveState(st); err != nil {
		return err
	}
	netns, err := openNamespaces(s)
	if err != nil {
		return err
	}
	defer unix.Close(netns)
	if s.addr, err = e.network.Attach(ctx, netns, s.index, e.in.alias(s.id)); err != nil {
		return err
	}
	steps.done("network")
	// The OCI runtime returns before execd has been exec'ed.
	if s.conn, err = dialExecd(ctx, e.in.socket(s.id)); err != nil {
		return err
	}
	if err := s.conn.ping(ctx); err != nil {
		return fmt.Errorf("waiting for execd: %w", err)
	}
	steps.done("execd")
	e.log.Debug("made a shell", steps.attrs("sandbox", s.id)...)
	st.Phase = phaseShell
	return e.in.saveState(st)
}

// beginShell makes what is there before any process: the record of the shell,
// its directories and its cgroup.
func (e *Engine) beginShell(s *shell) (*state, error) {
	var err error
	if s.index, err = e.indexes.take(); err != nil {
		return nil, err
	}
	s.base = e.in.base(s.index)
	if err := os.Mkdir(e.in.run(s.id), 0o700); err != nil {
		return nil, err
	}
	s.gpus = e.gpus.Of(s.id)
	st := &state{ID: s.id, Index: s.index, Phase: phaseMaking, GPUs: s.gpuNames(), Isolation: s.kind}
	if err := e.in.saveState(st); err != nil {
		return nil, err
	}
	if err := e.prepareDisk(s); err != nil {
		return nil, err
	}
	s.group, err = e.makeGroup(s)
	return st, err
}

// prepareDisk makes the shell's directories: its writable layer and the log's.
func (e *Engine) prepareDisk(s *shell) error {
	dir := e.in.data(s.id)
	// A server that died in the middle of a create left these behind.
	if err := e.dropData(s.id, false); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "logs"), 0o755); err != nil {
		return err
	}
	return e.writeLayer(s, dir)
}

// startExecd runs the OCI runtime with the listener and the log segments.
func (e *Engine) startExecd(ctx context.Context, s *shell) error {
	files, err := execdFiles(e.in.socket(s.id), e.logFile(s.id, 0), e.logFile(s.id, 1))
	defer closeFiles(files)
	if err != nil {
		return err
	}
	start := &oci.Start{Shell: e.ociShell(s), Bundle: e.in.run(s.id), Files: files, Begin: s.group.StartHere}
	if s.pid, err = e.runtime.Run(ctx, start); err != nil {
		return err
	}
	if s.start, err = processStart(s.pid); err != nil {
		return fmt.Errorf("execd ended at once: %w", err)
	}
	if s.pidfd, err = openProcess(s.pid, s.start); err != nil {
		return fmt.Errorf("execd ended at once: %w", err)
	}
	return nil
}

// execdFiles are what an execd inherits: its listener and the segments of its log.
// It returns what it opened also with an error.
func execdFiles(socket string, logs ...string) ([]*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return nil, err
	}
	files := []*os.File{f}
	for _, path := range logs {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (e *Engine) logFile(id string, segment int) string {
	return filepath.Join(e.in.data(id), "logs", strconv.Itoa(segment))
}

func (e *Engine) ociShell(s *shell) *oci.Shell {
	return &oci.Shell{ID: s.id, Root: e.rootDir(), Base: s.base, MaxFiles: e.maxFiles}
}

// openNamespaces opens the shell's mount and user namespaces, kept in s, and
// its network namespace, and makes sure that they are of the process that the
// pidfd refers to.
func openNamespaces(s *shell) (netns int, err error) {
	open := func(name string) (int, error) {
		return unix.Open("/proc/"+strconv.Itoa(s.pid)+"/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if s.mntns, err = open("mnt"); err != nil {
		return -1, fmt.Errorf("opening the shell's namespaces: %w", err)
	}
	if s.userns, err = open("user"); err != nil {
		return -1, fmt.Errorf("opening the shell's namespaces: %w", err)
	}
	if netns, err = open("net"); err != nil {
		return -1, fmt.Errorf("opening the shell's namespaces: %w", err)
	}
	if err := unix.PidfdSendSignal(s.pidfd, 0, nil, 0); err != nil {
		unix.Close(netns)
		return -1, fmt.Errorf("execd ended at once: %w", err)
	}
	return netns, nil
}
