package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// strangerBatch is how many orphans are collected before starts get a turn, so
// that a storm of orphans never holds up a command for longer than that.
const strangerBatch = 128

// Grace is how long a process may take to end after SIGTERM (OpenSandbox execd API).
const Grace = 3 * time.Second

// killWait bounds the wait for a process after SIGKILL.
const killWait = 2 * time.Second

// Table starts processes and delivers each one's end once. The zero value is
// not usable; there may be one Table per program.
type Table struct {
	// starting is held for reading from before a fork until its pid is
	// registered, and for writing while pids that nobody knows are collected.
	starting sync.RWMutex

	// mu guards live and makes "is it still there" and "signal it" one step.
	mu   sync.Mutex
	live map[int]*Process

	marker marker
}

// NewTable returns a table. Run must be running for ends to be delivered.
func NewTable() *Table {
	return &Table{live: make(map[int]*Process)}
}

// Spec is what to run.
type Spec struct {
	// Path is the program file; it is not searched for.
	Path string
	Argv []string
	Env  []string
	Dir  string
	// Files become descriptors 0, 1, 2 and so on of the process; nil leaves
	// that number closed. Every other descriptor is closed.
	Files []*os.File
	// Credential is the identity; nil keeps that of execd.
	Credential *syscall.Credential
	// NewSession makes the process the leader of a new session, otherwise it
	// leads a new process group only.
	NewSession bool
	// Terminal makes descriptor 0, which must be a terminal, the controlling
	// one of the process's new session. It needs NewSession.
	Terminal bool
}

// Process is a started process, the leader of its own process group.
type Process struct {
	// PID is also the id of its process group.
	PID int

	table *Table
	done  chan struct{}
	exit  Exit
	// mark is that of all its descendants, 0 for none.
	mark mark
	// started is not after the start.
	started Stamp
}

// Exit is how a process ended.
type Exit struct {
	// Code is the exit code, -1 when a signal ended the process.
	Code int
	// Signal is the signal that ended it, 0 for none.
	Signal syscall.Signal
}

// String says it as a shell user would read it.
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("signal: %s", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Start runs a program. It returns when the program has replaced the forked
// child, so a failure of the exec is returned here.
func (t *Table) Start(spec Spec) (*Process, error) {
	files := make([]uintptr, len(spec.Files))
	for i, f := range spec.Files {
		files[i] = ^uintptr(0)
		if f != nil {
			files[i] = f.Fd()
		}
	}
	attr := &syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: files,
		Sys: &syscall.SysProcAttr{
			Setsid:     spec.NewSession,
			Setpgid:    !spec.NewSession,
			Setctty:    spec.Terminal,
			Credential: spec.Credential,
		},
	}
	t.starting.RLock()
	defer t.starting.RUnlock()
	p := &Process{table: t, done: make(chan struct{}), started: Now()}
	pid, mark, err := t.marker.during(func() (int, error) { return syscall.ForkExec(spec.Path, spec.Argv, attr) })
	if err != nil {
		return nil, err
	}
	p.PID, p.mark = pid, mark
	t.mu.Lock()
	t.live[pid] = p
	t.mu.Unlock()
	return p, nil
}

// Done is closed when the process has ended and was collected.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended. Valid after Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// SignalGroup sends sig to the process group. It reports false when the leader
// has already been collected, and then sends nothing: its number may belong to
// somebody else by now.
func (p *Process) SignalGroup(sig syscall.Signal) bool {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.table.live[p.PID] != p {
		return false
	}
	// ESRCH is impossible here: the leader exists, if only as a zombie.
	_ = syscall.Kill(-p.PID, sig)
	return true
}

// Signal sends sig to the leader alone, under the same rule as SignalGroup.
func (p *Process) Signal(sig syscall.Signal) bool {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.table.live[p.PID] != p {
		return false
	}
	_ = syscall.Kill(p.PID, sig)
	return true
}

// KillRest kills what is left of the group after its leader has ended. The
// kernel gives no new process the number of a group that still has members; the
// registry rules out that a newer process of this table took it over after the
// group had become empty.
func (p *Process) KillRest() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if q := p.table.live[p.PID]; q != nil && q != p {
		return
	}
	_ = syscall.Kill(-p.PID, syscall.SIGKILL)
}

// Stop ends the process: SIGTERM to its group, and SIGKILL after a grace period.
// It returns when the leader has ended; what else is in the group keeps the
// rest of the grace period. It returns in bounded time even if the leader is
// stuck in the kernel.
func (p *Process) Stop() {
	if !p.SignalGroup(syscall.SIGTERM) {
		return
	}
	begun := time.Now()
	timer := time.NewTimer(Grace)
	defer timer.Stop()
	select {
	case <-p.done:
		time.AfterFunc(Grace-time.Since(begun), p.KillRest)
		return
	case <-timer.C:
	}
	p.SignalGroup(syscall.SIGKILL)
	timer.Reset(killWait)
	select {
	case <-p.done:
	case <-timer.C:
	}
}

// Len is the number of processes that were started here and still run.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.live)
}

// Run collects ended children until ctx ends. It must be called once, before
// the first Start.
func (t *Table) Run(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		// First, because children may have ended before Notify.
		t.collect()
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// collect takes every child that has ended by now.
func (t *Table) collect() {
	for {
		pid, ok := peek()
		if !ok {
			return
		}
		t.mu.Lock()
		p := t.live[pid]
		t.mu.Unlock()
		if p == nil {
			t.collectStrangers()
			continue
		}
		t.take(pid)
	}
}

// collectStrangers takes a batch of dead children, known or not. With the lock
// held every child that was started here is registered.
func (t *Table) collectStrangers() {
	t.starting.Lock()
	defer t.starting.Unlock()
	for range strangerBatch {
		if !t.take(-1) {
			return
		}
	}
}

// take collects one dead child and tells its owner, if it has one. Collecting
// and forgetting are one step under mu, so that nobody signals a pid after the
// kernel may reuse it.
func (t *Table) take(which int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(which, &ws, syscall.WNOHANG, nil)
	for errors.Is(err, syscall.EINTR) {
		pid, err = syscall.Wait4(which, &ws, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	p := t.live[pid]
	if p == nil {
		return true
	}
	delete(t.live, pid)
	if ws.Signaled() {
		p.exit = Exit{Code: -1, Signal: ws.Signal()}
	} else {
		p.exit = Exit{Code: ws.ExitStatus()}
	}
	close(p.done)
	return true
}

// peek returns the pid of a dead child without collecting it.
func peek() (int, bool) {
	// The kernel writes a siginfo_t of 128 bytes. On 64-bit Linux si_pid is at
	// offset 16 for SIGCHLD (asm-generic/siginfo.h).
	var info [16]uint64
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		pid := int(int32(uint32(info[2])))
		return pid, err == nil && pid > 0
	}
}
