package image

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// flights are the pulls under way. Everyone who wants the same image with the
// same login waits for one pull.
type flights struct {
	mu   sync.Mutex
	byID map[string]*flight
	work sync.WaitGroup
}

// flight is one pull. It ends when it is done or when nobody waits for it.
type flight struct {
	cancel  context.CancelFunc
	meter   *meter
	waiters int
	done    chan struct{}
	// img and err are valid once done is closed.
	img *Image
	err error
}

// progressInterval is the time between two calls of a progress function.
const progressInterval = 200 * time.Millisecond

// join waits for the flight with this id, starting it with run if there is
// none. progress, which may be nil, is called from the calling goroutine.
func (f *flights) join(ctx, base context.Context, id string, run func(context.Context, *meter) (*Image, error), progress func(Progress)) (*Image, error) {
	fl, err := f.enter(base, id, run)
	if err != nil {
		return nil, err
	}
	defer f.leave(id, fl)

	var ticks <-chan time.Time
	if progress != nil {
		ticker := time.NewTicker(progressInterval)
		defer ticker.Stop()
		ticks = ticker.C
	}
	var last Progress
	report := func() {
		if p := fl.meter.progress(); p != last && progress != nil {
			last = p
			progress(p)
		}
	}
	report()
	for {
		select {
		case <-fl.done:
			if fl.err == nil {
				report()
			}
			return fl.img, fl.err
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for an image to be pulled: %w", context.Cause(ctx))
		case <-ticks:
			report()
		}
	}
}

func (f *flights) enter(base context.Context, id string, run func(context.Context, *meter) (*Image, error)) (*flight, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if base.Err() != nil {
		return nil, errClosed
	}
	if fl := f.byID[id]; fl != nil {
		fl.waiters++
		return fl, nil
	}
	ctx, cancel := context.WithCancel(base)
	fl := &flight{cancel: cancel, meter: &meter{}, waiters: 1, done: make(chan struct{})}
	if f.byID == nil {
		f.byID = make(map[string]*flight)
	}
	f.byID[id] = fl
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		defer cancel()
		fl.img, fl.err = run(ctx, fl.meter)
		f.mu.Lock()
		f.forget(id, fl)
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl, nil
}

// leave cancels the flight when its last waiter goes. Whoever comes later
// starts a new one, which waits for this one's locks.
func (f *flights) leave(id string, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		f.forget(id, fl)
		fl.cancel()
	}
}

func (f *flights) forget(id string, fl *flight) {
	if f.byID[id] == fl {
		delete(f.byID, id)
	}
}

// wait waits for all flights to end. base must be cancelled.
func (f *flights) wait() {
	// Whoever enters does so under mu and sees the cancelled base, so that no
	// flight starts after this.
	f.mu.Lock()
	f.mu.Unlock() //nolint:staticcheck // the critical section is the point
	f.work.Wait()
}

// meter collects the progress of one pull from its goroutines.
type meter struct {
	mu                   sync.Mutex
	phase                string
	layers               int
	downloaded, unpacked int
	bytes, totalBytes    int64
}

func (m *meter) setPhase(phase string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase = phase
}

func (m *meter) begin(layers int, totalBytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase, m.layers, m.totalBytes = PhaseDownloading, layers, totalBytes
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += n
}

func (m *meter) layerDownloaded() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.downloaded++; m.downloaded == m.layers {
		m.phase = PhaseUnpacking
	}
}

func (m *meter) layerUnpacked() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unpacked++
}

func (m *meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{Phase: m.phase, LayersTotal: m.layers, LayersDone: m.unpacked, BytesDone: m.bytes, BytesTotal: m.totalBytes}
	if p.Phase == PhaseDownloading {
		p.LayersDone = m.downloaded
	}
	return p
}
