package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
)

// Dial connects to a TCP port inside a sandbox. It waits while the sandbox is
// Pending or Resuming, so that nobody has to poll; when it failed the error says
// why.
func (m *Manager) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	if (port < 1 || port > 65535) && port != IsolatedPort {
		return nil, Errorf(KindInvalid, CodeInvalidPort, "port is %d; it must be between 1 and 65535.", port)
	}
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	s := e.load()
	if s.Status.State != Running {
		if s, err = m.await(ctx, e, settled); err != nil {
			return nil, err
		}
	}
	if err := reachable(s); err != nil {
		return nil, err
	}
	return m.engine.Dial(ctx, id, port)
}

func settled(s *Sandbox) bool {
	return s.Status.State != Pending && s.Status.State != Resuming
}

// reachable is nil for a sandbox that runs, else why it can't be reached.
func reachable(s *Sandbox) *Error {
	switch s.Status.State {
	case Running:
		return nil
	case Pausing, Paused:
		return Errorf(KindConflict, CodeNotRunning, "Sandbox %q is paused. Resume it first.", s.ID)
	case Stopping:
		return errStopping(s)
	case Failed:
		return Errorf(KindConflict, CodeNotRunning, "Sandbox %q failed (%s): %s", s.ID, s.Status.Reason, s.Status.Message)
	case Terminated:
		return Errorf(KindConflict, CodeNotRunning, "Sandbox %q has ended: %s", s.ID, s.Status.Message)
	default:
		return Errorf(KindConflict, CodeNotRunning, "Sandbox %q is %s.", s.ID, s.Status.State)
	}
}

// Logs returns what the entrypoint printed, also after it ended, until the
// record is removed. With Follow it waits for a Pending sandbox to start;
// without, such a sandbox's log is empty.
func (m *Manager) Logs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error) {
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	if opts.Tail < 0 {
		return nil, Errorf(KindInvalid, CodeInvalidParameter, "tail is %d; it must not be negative.", opts.Tail)
	}
	if opts.Follow {
		if _, err := m.await(ctx, e, func(s *Sandbox) bool { return s.Status.State != Pending }); err != nil {
			return nil, err
		}
	}
	r, err := m.engine.Logs(ctx, id, opts)
	if err != nil && isNotFound(err) {
		if _, gone := m.lookup(id); gone != nil {
			return nil, gone
		}
		// It exists but printed nothing yet, or nothing ever.
		return io.NopCloser(strings.NewReader("")), nil
	}
	return r, err
}

// Usage measures a running or paused sandbox from outside it.
func (m *Manager) Usage(ctx context.Context, id string) (*Usage, error) {
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	s := e.load()
	switch s.Status.State {
	case Running, Pausing, Paused, Resuming:
		return m.engine.Usage(ctx, id)
	}
	return nil, &Error{Kind: KindConflict, Code: CodeNotRunning,
		Message: fmt.Sprintf("Sandbox %q is %s and uses nothing that could be measured.", id, s.Status.State)}
}
