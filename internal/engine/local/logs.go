package local

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Logs reads the segments that execd writes.
func (e *Engine) Logs(ctx context.Context, id string, opts sandbox.LogOptions) (io.ReadCloser, error) {
	over := closedChan
	if s, err := e.find(id); err == nil {
		over = s.over
	}
	r, err := entrylog.Open(ctx, [2]string{e.logFile(id, 0), e.logFile(id, 1)}, entrylog.Options{
		Tail: opts.Tail, Since: opts.Since, Timestamps: opts.Timestamps, Follow: opts.Follow, Ended: over,
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.ErrNotFound(id)
	}
	return r, err
}

// closedChan is the end of every sandbox that does not run.
var closedChan = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
