package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// killTimeout bounds the wait for the processes of a sandbox to be gone after
// SIGKILL. Only a process stuck in the kernel takes longer.
const killTimeout = 20 * time.Second

// Stop ends every process of the sandbox and frees what it holds.
func (e *Engine) Stop(ctx context.Context, id string) error {
	s := e.detach(id)
	if s == nil {
		s = e.pool.take(id)
	}
	if s == nil {
		s = e.reopen(id)
	}
	if s == nil {
		return e.dropData(id, true)
	}
	err := e.dismantle(ctx, s, true)
	e.images.Unhold(id)
	if err != nil {
		return &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeDeleteFailed,
			Message: fmt.Sprintf("Sandbox %q could not be stopped: %v", id, err), Err: err}
	}
	e.gpus.Give(id)
	return nil
}

// Remove does what Stop does and drops the logs.
func (e *Engine) Remove(ctx context.Context, id string) error {
	if err := e.Stop(ctx, id); err != nil {
		return err
	}
	return e.dropData(id, false)
}

// detach takes a sandbox out of the live ones.
func (e *Engine) detach(id string) *shell {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.live[id]
	delete(e.live, id)
	return s
}

// reopen finds a shell by its state on the host; nil if there is nothing.
func (e *Engine) reopen(id string) *shell {
	st, err := e.in.loadState(id)
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Stat(e.in.run(id)); serr != nil {
			return nil
		}
	}
	s := newShell(id)
	if err != nil {
		return s
	}
	s.index, s.base, s.loop, s.kind = st.Index, e.in.base(st.Index), st.Loop, st.Isolation
	if addr, err := e.network.Addr(st.Index); err == nil {
		s.addr = addr
	}
	if st.PID > 0 {
		s.pid, s.start = st.PID, st.PIDStart
		if fd, err := openProcess(st.PID, st.PIDStart); err == nil {
			s.pidfd = fd
		}
	}
	if g, err := e.parent(st.GPUs).Open(id); err == nil {
		s.group = g
	}
	return s
}

// dismantle takes a shell or sandbox apart, in the reverse order of its making,
// whatever was made of it. It is the only teardown there is: for a failed
// making, a stop, and what a dead server left. It is idempotent; what it could
// not do it reports, and a later call goes on. keepLogs keeps the log segments.
func (e *Engine) dismantle(ctx context.Context, s *shell, keepLogs bool) error {
	// Nothing may be started in the cgroup that is about to be emptied.
	s.isolation.close()
	e.discardDisk(s)
	if err := e.kill(ctx, s); err != nil {
		return err
	}
	s.end()
	s.closeAll()
	// Its address is another sandbox's soon.
	if err := e.dropPolicy(ctx, s); err != nil {
		return err
	}
	var errs []error
	if s.group != nil {
		errs = append(errs, s.group.Remove(ctx))
	}
	errs = append(errs, e.runtime.Forget(s.id))
	errs = append(errs, e.dropData(s.id, keepLogs))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The interface goes with the namespace; the index is free again when the
	// state that names it is gone.
	if err := os.RemoveAll(e.in.run(s.id)); err != nil {
		return err
	}
	if s.index >= 0 {
		e.indexes.give(s.index)
		s.index = -1
	}
	return nil
}

// kill ends every process of the shell and waits for that. execd is PID 1 of
// its namespace: its end is the end of all.
func (e *Engine) kill(ctx context.Context, s *shell) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if s.group != nil {
		if err := s.group.Kill(ctx); err != nil {
			return fmt.Errorf("killing the processes: %w", err)
		}
	}
	if s.pidfd < 0 {
		return nil
	}
	if err := endProcess(ctx, s.pidfd); err != nil {
		return fmt.Errorf("ending execd: %w", err)
	}
	return nil
}

// endProcess kills the process of a pidfd and waits until it has ended.
func endProcess(ctx context.Context, pidfd int) error {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing it: %w", err)
	}
	if err := awaitExit(ctx, pidfd); err != nil {
		return fmt.Errorf("waiting for its end: %w", err)
	}
	// As its parent (as PID 1 of a container, say) it is ours to reap; else
	// the answer is ECHILD.
	var info unix.Siginfo
	_ = unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED|unix.WNOHANG, nil)
	return nil
}

// awaitExit waits until the process of a pidfd has ended.
func awaitExit(ctx context.Context, pidfd int) error {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		// Short slices, because poll knows no context.
		n, err := unix.Poll(fds, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// dropData puts a sandbox's files on the trash; with keepLogs all but the log.
func (e *Engine) dropData(id string, keepLogs bool) error {
	dir := e.in.data(id)
	if !keepLogs {
		return e.trash.put(dir, id)
	}
	return errors.Join(
		e.trash.put(filepath.Join(dir, "upper"), id+".upper"),
		e.trash.put(filepath.Join(dir, "work"), id+".work"),
		e.trash.put(filepath.Join(dir, isolatedData), id+".isolated"),
		e.trash.put(e.diskFile(id), id+".disk"),
	)
}
