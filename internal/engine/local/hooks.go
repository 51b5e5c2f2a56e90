package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// hookPause is how long the engine waits between two questions for runs of
// hooks, so that an execd that is not what it was can't keep it busy.
const hookPause = 200 * time.Millisecond

// addHooks hands the hooks of a spec over with the claim.
func addHooks(c *hostapi.Claim, l *sandbox.Lifecycle) {
	if l == nil {
		return
	}
	if h := l.PreStart; h != nil {
		c.PreStart = &hostapi.Hook{Command: h.Command, TimeoutSeconds: int(h.Timeout / time.Second)}
	}
	for _, h := range l.Periodic {
		c.Periodic = append(c.Periodic, hostapi.Hook{
			Name: h.Name, Schedule: h.Schedule, Command: h.Command, TimeoutSeconds: int(h.Timeout / time.Second),
		})
	}
}

// handOver makes the claim, which ends when the preStart hook has.
func handOver(ctx context.Context, s *shell, req sandbox.CreateRequest, c *hostapi.Claim) error {
	if c.PreStart == nil {
		_, err := s.conn.claim(ctx, c)
		return err
	}
	limit := req.Spec.Lifecycle.PreStart.Timeout
	note(req, sandbox.EventPreStartRunning, "The preStart hook runs, for at most %s.", limit)
	if req.Progress != nil {
		req.Progress(fmt.Sprintf("The preStart hook runs, for at most %s.", limit))
	}
	result, err := s.conn.claim(ctx, c)
	if err == nil {
		note(req, sandbox.EventPreStartSucceeded, "The preStart hook ended well after %s.", time.Duration(result.PreStartMillis)*time.Millisecond)
		return nil
	}
	var refused *claimError
	if errors.As(err, &refused) && refused.answer.Code == hostapi.CodePreStartFailed {
		if n, gerr := s.group.OOMKills(); gerr == nil && n > 0 {
			refused.answer.Message += " (The memory limit was reached and the kernel killed something.)"
		}
	}
	return err
}

func note(req sandbox.CreateRequest, kind sandbox.EventKind, format string, args ...any) {
	if req.Note != nil {
		req.Note(kind, fmt.Sprintf(format, args...))
	}
}

func preStartError(refused *claimError) error {
	return &sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeStartFailed, Reason: sandbox.ReasonPreStartFailed,
		Message: "The sandbox was not started: " + refused.answer.Message}
}

// HookRuns delivers how periodic hooks ended.
func (e *Engine) HookRuns() <-chan sandbox.HookRun { return e.hooks }

// reportHooks passes runs of hooks on. It answers false when the engine closes.
func (e *Engine) reportHooks(s *shell, runs []hostapi.HookRun) bool {
	for _, r := range runs {
		if r.Seq <= s.hookSeq {
			continue
		}
		s.hookSeq = r.Seq
		run := sandbox.HookRun{
			ID: s.id, Seq: r.Seq, Name: r.Name, EndedAt: r.EndedAt, Took: time.Duration(r.Millis) * time.Millisecond,
			Code: r.Code, Signal: r.Signal, TimedOut: r.TimedOut, Problem: r.Problem, Output: r.Output,
		}
		select {
		case e.hooks <- run:
		case <-e.ctx.Done():
			return false
		}
	}
	select {
	case <-time.After(hookPause):
		return true
	case <-e.ctx.Done():
		return false
	}
}
