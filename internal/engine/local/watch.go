package local

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Reconnecting to an execd that lives but whose connection ended.
const (
	watchRetryMin = 50 * time.Millisecond
	watchRetryMax = 5 * time.Second
)

// watch waits for the entrypoint's end and reports it once. It ends with the
// sandbox or the engine.
func (e *Engine) watch(s *shell) {
	e.watchGVisor(s)
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		exit, ok := e.awaitEnd(s)
		s.end()
		if ok {
			select {
			case e.exits <- exit:
			case <-e.ctx.Done():
			}
		}
	}()
}

// awaitEnd returns false when the sandbox was taken away meanwhile.
func (e *Engine) awaitEnd(s *shell) (sandbox.Exit, bool) {
	ooms, err := trackOOM(s.group, e.opts.oomSettle)
	if err != nil && e.owns(s) {
		e.log.Warn("kills by memory that a sandbox outlives go unnoticed; an end by SIGKILL after one will be explained with it", "sandbox", s.id, "error", err)
	}
	defer ooms.end()
	e.mu.Lock()
	s.ooms = ooms
	e.mu.Unlock()
	retry := watchRetryMin
	conn := s.conn
	for {
		var err error
		if conn != nil {
			status, aerr := conn.awaitExit(s.token, s.hookSeq)
			if aerr == nil && status.Running {
				if !e.reportHooks(s, status.Hooks) {
					return sandbox.Exit{}, false
				}
				continue
			}
			if aerr == nil {
				return explainExit(s, ooms, status.Code, status.Signal), e.owns(s)
			}
			conn.Close()
			err = aerr
		}
		if !e.owns(s) {
			return sandbox.Exit{}, false
		}
		if ended(s.pidfd) {
			exit := explainExit(s, ooms, -1, 0)
			exit.ExecdLost = true
			return exit, e.owns(s)
		}
		if err != nil {
			e.log.Warn("lost the connection to execd, connecting again", "sandbox", s.id, "error", err)
		}
		select {
		case <-time.After(retry):
		case <-e.ctx.Done():
			return sandbox.Exit{}, false
		}
		retry = min(2*retry, watchRetryMax)
		if conn, err = e.reconnect(s); err != nil {
			conn = nil
		}
	}
}

// reconnect replaces the shell's connection, unless the shell is gone.
func (e *Engine) reconnect(s *shell) (*execdConn, error) {
	ctx, cancel := context.WithTimeout(e.ctx, watchRetryMax)
	defer cancel()
	conn, err := e.connect(ctx, s)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.live[s.id] != s {
		conn.Close()
		return nil, errExecdLost
	}
	s.conn = conn
	return conn, nil
}

// owns reports whether s is still the sandbox of its id.
func (e *Engine) owns(s *shell) bool {
	if e.ctx.Err() != nil {
		return false
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.live[s.id] == s
}

// ended reports whether the process of a pidfd has ended.
func ended(pidfd int) bool {
	if pidfd < 0 {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}
