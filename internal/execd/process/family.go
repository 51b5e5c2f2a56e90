package process

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of start times in /proc: USER_HZ is 100 on every
// architecture that paddock runs on (proc(5)).
const tick = 10 * time.Millisecond

// maxStat bounds one /proc/PID/stat. The kernel's is a few hundred bytes.
const maxStat = 4096

// Stamp is a point in time that start times of processes compare with.
type Stamp uint64

// Now returns the present.
func Now() Stamp {
	var ts unix.Timespec
	// CLOCK_BOOTTIME is always there since Linux 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Stamp(ts.Nano() / int64(tick))
}

// stat is a part of /proc/PID/stat.
type stat struct {
	pid, parent, group int
	started            Stamp
	// dead is set when it has ended and was not collected.
	dead bool
}

// Member is a process that Family found. It is identified by its start time as
// well, because pids are reused.
type Member struct {
	PID     int
	started Stamp
}

// Family lists the processes that p started, directly or not, at or after since:
// its descendants, and orphans that are still in its group. p is not among them.
func (p *Process) Family(since Stamp) []Member {
	all := processes()
	parents := make(map[int]int, len(all))
	for _, s := range all {
		parents[s.pid] = s.parent
	}
	var found []Member
	for _, s := range all {
		if s.pid == p.PID || s.started < since {
			continue
		}
		if s.group == p.PID || descends(parents, s.pid, p.PID) {
			found = append(found, Member{PID: s.pid, started: s.started})
		}
	}
	return found
}

// descends follows the parents of pid. The snapshot is not atomic and may hold
// a circle, so the steps are bounded.
func descends(parents map[int]int, pid, ancestor int) bool {
	for range len(parents) {
		pid = parents[pid]
		if pid == ancestor {
			return true
		}
		if pid <= 1 {
			return false
		}
	}
	return false
}

// Signal sends sig to the members that are still the same processes.
func Signal(members []Member, sig syscall.Signal) {
	for _, m := range members {
		fd, err := m.open()
		if err != nil {
			continue
		}
		_ = send(m.PID, fd, sig)
		closeFD(fd)
	}
}

func processes() []stat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	all := make([]stat, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, ok := readStat(pid); ok {
			all = append(all, s)
		}
	}
	return all
}

func readStat(pid int) (stat, bool) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	defer f.Close()
	var buf [maxStat]byte
	n, _ := f.Read(buf[:])
	return parseStat(buf[:n])
}

// parseStat reads the fields of proc(5). The program's name, in parentheses, is
// chosen by the process and may hold anything.
func parseStat(b []byte) (stat, bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return stat{}, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	if err != nil {
		return stat{}, false
	}
	// From field 3 on: state ppid pgrp ... starttime is field 22.
	fields := bytes.Fields(b[end+1:])
	if len(fields) < 20 {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	group, err2 := strconv.Atoi(string(fields[2]))
	started, err3 := strconv.ParseUint(string(fields[19]), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return stat{}, false
	}
	// The main thread of a process may end before the others do.
	state, threads := fields[0][0], string(fields[17])
	dead := (state == 'Z' || state == 'X') && (threads == "0" || threads == "1")
	return stat{pid: pid, parent: parent, group: group, started: Stamp(started), dead: dead}, true
}
