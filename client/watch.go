package client

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// watchedBody reads a run's stream and notices when it falls silent. execd
// sends a heartbeat every three seconds, so silence means that the connection
// is dead or that the sandbox is paused; a paused one is waited for.
type watchedBody struct {
	r io.Reader
	// reading is set while a Read waits for bytes. Between reads the caller is
	// busy with the output, and that is not the stream's silence.
	reading atomic.Bool
	alive   chan struct{}
	done    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// watch starts watching r. The caller calls stop, which waits for the watch to
// end; when the stream is given up cancel is called with the reason.
func (c *Client) watch(ctx context.Context, cancel context.CancelCauseFunc, id string, r io.Reader) *watchedBody {
	w := &watchedBody{r: r, alive: make(chan struct{}, 1), done: make(chan struct{})}
	ctx, stopChecks := context.WithCancel(ctx)
	w.wg.Go(func() {
		defer stopChecks()
		timer := time.NewTimer(c.streamIdle)
		defer timer.Stop()
		// A sandbox resumed a moment ago is Running and has not sent its next
		// heartbeat yet, so one silent check proves nothing.
		suspected := false
		for {
			select {
			case <-w.done:
				return
			case <-ctx.Done():
				return
			case <-w.alive:
				suspected = false
			case <-timer.C:
				if !w.reading.Load() {
					break
				}
				running, err := c.runs(ctx, id)
				if err == nil && running && suspected {
					err = fmt.Errorf("%w: no heartbeat for %s", ErrConnectionLost, 2*c.streamIdle)
				}
				if err != nil {
					cancel(err)
					return
				}
				suspected = running
			}
			timer.Reset(c.streamIdle)
		}
	})
	go func() { // a check in flight must not hold stop up
		<-w.done
		stopChecks()
	}()
	return w
}

// Read counts as a sign of life.
func (w *watchedBody) Read(p []byte) (int, error) {
	w.reading.Store(true)
	n, err := w.r.Read(p)
	w.reading.Store(false)
	if n > 0 {
		select {
		case w.alive <- struct{}{}:
		default:
		}
	}
	return n, err
}

func (w *watchedBody) stop() {
	w.once.Do(func() { close(w.done) })
	w.wg.Wait()
}

// runs reports whether the sandbox runs (true) or is frozen (false), and an
// error when its streams cannot come back to life.
func (c *Client) runs(ctx context.Context, id string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.streamIdle)
	defer cancel()
	sb, err := c.Get(ctx, id)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrConnectionLost, err)
	}
	switch sb.Status.State {
	case StatePausing, StatePaused, StateResuming:
		return false, nil
	case StateRunning:
		return true, nil
	}
	return false, fmt.Errorf("%w: sandbox %s is %s (%s)", ErrConnectionLost, id, sb.Status.State, Printable(sb.Status.Message))
}
