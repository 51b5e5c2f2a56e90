package local

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// adoptIsolated finds the sessions of an adopted sandbox. Those that live go
// on; those whose processes have ended are dead, and keep their files until
// they are deleted; those that were being made are removed.
func (e *Engine) adoptIsolated(ctx context.Context, s *shell) {
	dirs, err := os.ReadDir(e.in.isolatedDir(s.id))
	if err != nil {
		return // there were none
	}
	var half []*isolatedSession
	for _, d := range dirs {
		is := e.reopenIsolated(s, d.Name())
		if is.record.PID == 0 {
			half = append(half, is)
			continue
		}
		s.isolation.put(is)
		e.watchIdle(s, is)
	}
	if err := e.killStrangers(s); err != nil {
		e.log.Error("looking for unfinished isolated sessions", "sandbox", s.id, "error", err)
	}
	for _, is := range half {
		if err := e.endIsolated(ctx, s, is); err != nil {
			e.log.Error("removing an unfinished isolated session", "sandbox", s.id, "error", err)
		}
	}
}

// reopenIsolated reads what is known of a session. What can't be read counts as
// unfinished.
func (e *Engine) reopenIsolated(s *shell, short string) *isolatedSession {
	is := &isolatedSession{pidfd: -1, dir: filepath.Join(e.in.isolatedDir(s.id), short)}
	b, err := os.ReadFile(filepath.Join(is.dir, "session.json"))
	if err == nil {
		err = json.Unmarshal(b, &is.record)
	}
	if err != nil || len(is.record.ID) < 8 || is.record.short() != short || !is.record.Settings.Completed() {
		is.record = isolatedRecord{ID: short + "-unreadable"}
		return is
	}
	is.used = is.record.LastRunAt
	is.newTransport()
	if is.record.PID > 0 {
		if fd, err := openProcess(is.record.PID, is.record.PIDStart); err == nil {
			is.pidfd = fd
		}
	}
	return is
}

// killStrangers kills what is in the sandbox's cgroup and neither in its PID
// namespace nor in that of a known session: a session that the server did not
// finish, or the OCI runtime at work on one.
func (e *Engine) killStrangers(s *shell) error {
	procs, err := s.group.Procs()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, pid := range append(s.isolation.pids(), s.pid) {
		if ns := pidNamespace(pid); ns != "" {
			known[ns] = true
		}
	}
	for _, pid := range procs {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if ns := pidNamespace(pid); ns != "" && !known[ns] {
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// pids are those of the execds of living sessions.
func (i *isolation) pids() []int {
	var pids []int
	for _, is := range i.all() {
		if is.alive() {
			pids = append(pids, is.record.PID)
		}
	}
	return pids
}

// pidNamespace names the PID namespace of a process; empty when it has ended.
func pidNamespace(pid int) string {
	ns, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
	if err != nil {
		return ""
	}
	return ns
}
