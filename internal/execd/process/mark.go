package process

import (
	"bytes"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A mark is put on every process that a Table starts, and the kernel passes it on
// to all descendants, so that they can be told apart for as long as they live. A
// daemon that has left its group, its session and its parents can't be found in
// any other way that works without a cgroup for each command.
//
// The mark is the soft limit RLIMIT_RTTIME: fork and exec keep it, /proc shows it
// to everyone, and it means nothing to a process without real-time scheduling
// (getrlimit(2)). A program may change it, as it may leave the group; who wants to
// stay behind can.
type mark uint64

// firstMark is in microseconds of uninterrupted real-time work: half an hour
// short of 13 days, which nothing will ever do.
const firstMark = 1 << 40

// marker gives out marks. The zero value is ready for use.
type marker struct {
	mu   sync.Mutex
	last mark
	// unable is set when the kernel has refused, as gVisor's may.
	unable bool
}

// during runs start, which forks, with a new mark on this process, and takes the
// mark off again. Forks are one after another in any case (syscall.ForkLock).
// The mark is 0 where marks can't be had.
func (m *marker) during(start func() (int, error)) (pid int, given mark, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var before unix.Rlimit
	if m.unable || unix.Prlimit(0, unix.RLIMIT_RTTIME, nil, &before) != nil {
		m.unable = true
		pid, err = start()
		return pid, 0, err
	}
	m.last = max(m.last, firstMark) + 1
	if err := unix.Prlimit(0, unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: uint64(m.last), Max: before.Max}, nil); err != nil {
		m.unable = true
		pid, err := start()
		return pid, 0, err
	}
	pid, err = start()
	// It was like that before, so it is allowed.
	_ = unix.Prlimit(0, unix.RLIMIT_RTTIME, &before, nil)
	return pid, m.last, err
}

// maxLimits bounds one /proc/PID/limits. The kernel's has 17 lines of 80 bytes.
const maxLimits = 4096

// markOf reads the mark of a process, 0 for none.
func markOf(pid int) mark {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0
	}
	defer f.Close()
	var buf [maxLimits]byte
	n, _ := f.Read(buf[:])
	return parseMark(buf[:n])
}

// parseMark reads the soft limit of the line for RLIMIT_RTTIME (proc(5)).
func parseMark(limits []byte) mark {
	_, rest, ok := bytes.Cut(limits, []byte("\nMax realtime timeout "))
	if !ok {
		return 0
	}
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil || n <= firstMark {
		return 0
	}
	return mark(n)
}
