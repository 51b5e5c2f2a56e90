package test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// envTrace tells this test binary to be a tracer: "PID STEP".
const envTrace = "PADDOCK_TEST_TRACE"

// stepCalls are the system calls by which a server changes the host: names,
// mounts, namespaces, processes, messages to the kernel and to execd, and what
// its database makes durable. Writes into files are not among them, since each
// lies between two of these.
var stepCalls = map[uint64]string{
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_MKNODAT: "mknodat", unix.SYS_FCHOWNAT: "fchownat",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_FSOPEN: "fsopen", unix.SYS_FSMOUNT: "fsmount", unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_PIVOT_ROOT: "pivot_root",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3",
	unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_CONNECT: "connect",
	unix.SYS_KILL: "kill", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
}

// TestTracer is no test: it is what traceServer starts. A process of its own
// waits for the stops of the server, so that the waits for its own children do
// not meet them.
func TestTracer(t *testing.T) {
	order := os.Getenv(envTrace)
	if order == "" {
		t.Skip("only run by traceServer")
	}
	var pid, step int
	if _, err := fmt.Sscan(order, &pid, &step); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	tr := tracer{pid: pid, step: step, threads: map[int]bool{}}
	if err := tr.attach(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("tracing")
	go func() {
		// The end of the input means that the operation is over.
		bufio.NewReader(os.Stdin).ReadByte()
		if tr.counted.Load() >= int64(tr.step) && tr.step > 0 {
			return // the server is dying
		}
		fmt.Println("steps", tr.counted.Load())
		os.Exit(0) // which lets go of the server
	}()
	if err := tr.run(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("killed", tr.at)
}

// tracer stops a process at each of its system calls and kills it at the entry
// of one of them.
type tracer struct {
	pid, step int
	threads   map[int]bool
	counted   atomic.Int64
	at        string
}

const traceOptions = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE

// attach seizes all threads, those included that are made meanwhile.
func (tr *tracer) attach() error {
	for again := true; again; {
		again = false
		dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", tr.pid))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			tid, _ := strconv.Atoi(filepath.Base(dir))
			if tr.threads[tid] {
				continue
			}
			again = true
			if err := ptrace(unix.PTRACE_SEIZE, tid, 0, traceOptions); err != nil {
				if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) {
					tr.threads[tid] = true // has ended, or its maker was traced already
					continue
				}
				return fmt.Errorf("tracing thread %d: %w", tid, err)
			}
			tr.threads[tid] = true
			if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// run goes from stop to stop until the process has ended.
func (tr *tracer) run() error {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return err
		case !status.Stopped():
			continue // a thread has ended
		}
		signal := uintptr(0)
		switch event := int(status >> 16); {
		case status.StopSignal() == unix.SIGTRAP|0x80: // PTRACE_O_TRACESYSGOOD
			tr.call(tid)
		case event == unix.PTRACE_EVENT_STOP && status.StopSignal() != unix.SIGTRAP:
			_ = ptrace(unix.PTRACE_LISTEN, tid, 0, 0) // it was stopped by a signal
			continue
		case event == 0:
			signal = uintptr(status.StopSignal())
		}
		if err := ptrace(unix.PTRACE_SYSCALL, tid, 0, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("resuming thread %d: %w", tid, err)
		}
	}
}

// syscallInfo is the kernel's struct ptrace_syscall_info (ptrace(2)) at the entry
// of a call.
type syscallInfo struct {
	Op     uint8
	_      uint8
	_      uint16
	Arch   uint32
	IP, SP uint64
	Number uint64
	Args   [6]uint64
}

// call looks at a thread at the entry or the exit of a system call.
func (tr *tracer) call(tid int) {
	var info syscallInfo
	err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)))
	if err != nil || info.Op != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return
	}
	name, counts := stepCalls[info.Number]
	if counts && tr.counted.Add(1) == int64(tr.step) {
		tr.at = name
		_ = unix.Kill(tr.pid, unix.SIGKILL)
	}
}

// traceServer has the server killed at the given step of what it does from now
// on. The returned function ends the tracing; it returns the name of the system
// call at which the server was killed, or how many steps there were.
func traceServer(t *testing.T, s *harness.Server, step int) (end func() (at string, steps int)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestTracer$")
	cmd.Env = append(os.Environ(), envTrace+"="+fmt.Sprintf("%d %d", s.PID(), step))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(stdout)
	if !out.Scan() || out.Text() != "tracing" {
		cancel()
		_ = cmd.Wait()
		harness.Require(t, false, "ptrace: "+out.Text())
	}
	return func() (at string, steps int) {
		defer cancel()
		stdin.Close()
		for out.Scan() {
			if rest, ok := strings.CutPrefix(out.Text(), "killed "); ok {
				at = rest
			}
			if rest, ok := strings.CutPrefix(out.Text(), "steps "); ok {
				steps, _ = strconv.Atoi(rest)
			}
		}
		_ = cmd.Wait()
		return at, steps
	}
}
