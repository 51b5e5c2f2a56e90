package local

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// syncTimeout bounds the sync before a pause. A sandbox that does not manage it
// is frozen all the same: nothing in memory is lost by freezing.
const syncTimeout = 3 * time.Second

// Pause freezes the sandbox.
func (e *Engine) Pause(ctx context.Context, id string) error {
	s, err := e.find(id)
	if err != nil {
		return err
	}
	if frozen, err := s.group.Frozen(); err == nil && frozen {
		return nil
	}
	if err := e.syncSandbox(ctx, s, syncTimeout); err != nil {
		e.log.Warn("pausing without a sync", "sandbox", id, "error", err)
	}
	if err := s.group.Freeze(ctx); err != nil {
		// Half frozen is worse than running.
		_ = s.group.Thaw(context.WithoutCancel(ctx))
		return &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodePauseFailed,
			Message: fmt.Sprintf("Sandbox %q could not be paused: %v", id, err), Err: err}
	}
	return nil
}

// Resume thaws the sandbox.
func (e *Engine) Resume(ctx context.Context, id string) error {
	s, err := e.find(id)
	if err != nil {
		return err
	}
	if err := s.group.Thaw(ctx); err != nil {
		return &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeResumeFailed,
			Message: fmt.Sprintf("Sandbox %q could not be resumed: %v", id, err), Err: err}
	}
	if s.untold != nil {
		e.trustAgain(ctx, s, s.untold)
	}
	return nil
}

// syncSandbox has execd write to disk what is in memory. Only the execd of a
// claimed sandbox does.
func (e *Engine) syncSandbox(ctx context.Context, s *shell, longest time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	conn, err := e.connect(ctx, s)
	if err != nil {
		return err
	}
	defer conn.Close()
	status, _, err := conn.call(ctx, http.MethodPost, hostapi.SyncPath, s.token, []byte{})
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("execd answered with status %d", status)
	}
	return err
}

// Usage reads the sandbox's cgroup.
func (e *Engine) Usage(_ context.Context, id string) (*sandbox.Usage, error) {
	s, err := e.find(id)
	if err != nil {
		return nil, err
	}
	u, err := s.group.Usage()
	if err != nil {
		return nil, err
	}
	return &sandbox.Usage{CPU: u.CPU, MemoryBytes: u.MemoryBytes, PIDs: u.PIDs}, nil
}
