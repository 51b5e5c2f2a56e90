package cli

import (
	"io"
	"sync"
)

// readSize is how much is asked of an input at once: what a pipe holds (pipe(7)).
const readSize = 64 << 10

// gatherer collects input while the piece before is on its way. One goroutine
// fills and one takes; memory is bounded by twice the size of a piece.
type gatherer struct {
	mu      sync.Mutex
	changed sync.Cond
	buf     []byte
	max     int
	err     error
	stopped bool
}

func newGatherer(size int) *gatherer {
	g := &gatherer{max: size}
	g.changed.L = &g.mu
	return g
}

// fill reads to the end of r, or until stop is called and r returns.
func (g *gatherer) fill(r io.Reader) {
	chunk := make([]byte, readSize)
	for {
		n, err := r.Read(chunk)
		g.mu.Lock()
		for len(g.buf)+n > g.max && !g.stopped {
			g.changed.Wait()
		}
		g.buf = append(g.buf, chunk[:n]...)
		g.err = err
		stopped := g.stopped
		g.changed.Broadcast()
		g.mu.Unlock()
		if err != nil || stopped {
			return
		}
	}
}

// take waits for input and returns all that there is; spare is a slice that the
// gatherer may use from now on. After the last input it returns the reader's
// error, which is io.EOF at a clean end.
func (g *gatherer) take(spare []byte) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.buf) == 0 && g.err == nil && !g.stopped {
		g.changed.Wait()
	}
	if len(g.buf) == 0 {
		if g.err == nil {
			return nil, io.ErrClosedPipe
		}
		return nil, g.err
	}
	piece := g.buf
	g.buf = spare[:0]
	g.changed.Broadcast()
	return piece, nil
}

// stop ends a fill that waits for room.
func (g *gatherer) stop() {
	g.mu.Lock()
	g.stopped = true
	g.changed.Broadcast()
	g.mu.Unlock()
}
