package process

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sweepTime bounds the killing of a lineage: one that keeps forking must not
	// hold a request for ever.
	sweepTime = 2 * time.Second
	// sweepWait is how long one round waits for the ends of those it killed.
	sweepWait = 100 * time.Millisecond
	// sweepWatched is of how many it waits for the end.
	sweepWatched = 64
)

// Lineage lists every process that p started, directly or not, wherever it has
// gone in the meantime: into a group or session of its own, or to execd as its
// parent. p itself is not among them, nor are those that have ended.
func (p *Process) Lineage() []Member {
	// Group and parents are told by p's number, which is its own until p is
	// collected. The mark tells for ever.
	held := p.held()
	all := processes()
	parents := make(map[int]int, len(all))
	for _, s := range all {
		parents[s.pid] = s.parent
	}
	held = held && p.held()
	var found []Member
	for _, s := range all {
		if s.pid == p.PID || s.dead || s.started < p.started {
			continue
		}
		below := held && (s.group == p.PID || descends(parents, s.pid, p.PID))
		if below || p.mark != 0 && markOf(s.pid) == p.mark {
			found = append(found, Member{PID: s.pid, started: s.started})
		}
	}
	return found
}

// held reports whether p has not been collected yet.
func (p *Process) held() bool {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.table.live[p.PID] == p
}

// KillAll kills p and its lineage, with SIGKILL, until nothing of it is left. It
// reports false, and kills nothing, when p had ended before: what a process
// leaves behind that ends by itself is meant to stay.
func (p *Process) KillAll() bool {
	// Before, because later the parents are not known any more.
	family := p.Lineage()
	if !p.SignalGroup(syscall.SIGKILL) {
		return false
	}
	p.sweep(family)
	return true
}

// StopAll ends p and its lineage: SIGTERM, and SIGKILL after Grace. It returns
// when p has ended; what else there is keeps the rest of the grace period. It
// does nothing when p has ended already, and returns in bounded time even if p is
// stuck in the kernel.
func (p *Process) StopAll() {
	family := p.Lineage()
	if !p.SignalGroup(syscall.SIGTERM) {
		return
	}
	Signal(outside(family, p.PID), syscall.SIGTERM)
	begun := time.Now()
	timer := time.NewTimer(Grace)
	defer timer.Stop()
	select {
	case <-p.done:
		time.AfterFunc(Grace-time.Since(begun), func() { p.sweep(family) })
		return
	case <-timer.C:
	}
	p.KillAll()
	timer.Reset(killWait)
	select {
	case <-p.done:
	case <-timer.C:
	}
}

// outside leaves out the members of a group.
func outside(members []Member, group int) []Member {
	var found []Member
	for _, m := range members {
		if pgid, err := unix.Getpgid(m.PID); err != nil || pgid != group {
			found = append(found, m)
		}
	}
	return found
}

// sweep kills family and what of the lineage has been started since it was
// listed, in rounds: who has been killed can't fork any more, so that each round
// finds less.
func (p *Process) sweep(family []Member) {
	end := time.Now().Add(sweepTime)
	p.KillRest()
	for {
		watched := kill(family)
		awaitEnds(watched, min(sweepWait, time.Until(end)))
		if family = p.Lineage(); len(family) == 0 || time.Now().After(end) {
			return
		}
	}
}

// kill sends SIGKILL, and returns descriptors of some that were sent it.
func kill(members []Member) (watched []int) {
	for _, m := range members {
		fd, err := m.open()
		if err != nil {
			continue
		}
		_ = send(m.PID, fd, syscall.SIGKILL)
		if fd >= 0 && len(watched) < sweepWatched {
			watched = append(watched, fd)
			continue
		}
		closeFD(fd)
	}
	return watched
}

// awaitEnds waits until all of the processes have ended, or time is up, and
// closes the descriptors.
func awaitEnds(watched []int, limit time.Duration) {
	end := time.Now().Add(limit)
	for _, fd := range watched {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if left := time.Until(end); left > 0 {
			_, _ = unix.Poll(poll, int(left.Milliseconds()))
		}
		closeFD(fd)
	}
}

// errGone is returned for a process that has ended.
var errGone = errors.New("the process has ended")

// open returns a descriptor for the process, which stays its own whatever its
// number means later; -1 on a kernel without such descriptors.
func (m Member) open() (fd int, err error) {
	fd, err = unix.PidfdOpen(m.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, errGone
	}
	if err != nil {
		fd = -1
	}
	// In this order: if this is the process now, it was when fd was opened.
	if s, ok := readStat(m.PID); !ok || s.started != m.started {
		closeFD(fd)
		return -1, errGone
	}
	return fd, nil
}

func send(pid, fd int, sig syscall.Signal) error {
	if fd >= 0 {
		return unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	return syscall.Kill(pid, sig)
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
