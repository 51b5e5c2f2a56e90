package local

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Back-off of the pool's makers after failures.
const (
	poolRetryMin = 100 * time.Millisecond
	poolRetryMax = 30 * time.Second
)

// pool keeps shells ready. A shell leaves it once, for one sandbox, and never
// comes back used.
type pool struct {
	e    *Engine
	size int

	mu       sync.Mutex
	wake     *sync.Cond
	ready    []*shell
	making   int
	reserved map[string]*shell
	closed   bool
	failing  time.Duration
	wg       sync.WaitGroup
}

func newPool(e *Engine, size int) *pool {
	p := &pool{e: e, size: size, reserved: map[string]*shell{}}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// start begins to fill the pool.
func (p *pool) start() {
	if p.size <= 0 {
		return
	}
	for range p.e.opts.PoolWorkers {
		p.wg.Add(1)
		go p.fill()
	}
}

func (p *pool) fill() {
	defer p.wg.Done()
	for p.next() {
		s, err := p.e.makeShell(p.e.ctx, uuid.NewString())
		wait := p.made(s, err)
		if wait == 0 {
			continue
		}
		select {
		case <-time.After(wait):
		case <-p.e.ctx.Done():
		}
	}
}

// next waits until a shell is wanted; false means that the pool is closed.
func (p *pool) next() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && len(p.ready)+p.making >= p.size {
		p.wake.Wait()
	}
	if p.closed {
		return false
	}
	p.making++
	return true
}

// made takes a maker's result and says how long it shall wait before the next
// try.
func (p *pool) made(s *shell, err error) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
	if err != nil {
		if p.closed {
			return 0
		}
		p.failing = min(max(2*p.failing, poolRetryMin), poolRetryMax)
		p.e.log.Error("making a shell for the pool", "error", err, "retry_in", p.failing)
		return p.failing
	}
	p.failing = 0
	p.ready = append(p.ready, s)
	return 0
}

// reserve puts a ready shell aside and returns its id.
func (p *pool) reserve() (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return "", false
	}
	s := p.ready[0]
	p.ready = p.ready[1:]
	p.reserved[s.id] = s
	p.wake.Broadcast()
	return s.id, true
}

// take hands out the reserved shell of that id; nil if there is none.
func (p *pool) take(id string) *shell {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.reserved[id]
	delete(p.reserved, id)
	return s
}

// close ends the makers and takes the shells apart.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.wake.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
	p.mu.Lock()
	left := p.ready
	for _, s := range p.reserved {
		left = append(left, s)
	}
	p.ready, p.reserved = nil, map[string]*shell{}
	p.mu.Unlock()
	for _, s := range left {
		if err := p.e.dismantle(context.Background(), s, false); err != nil {
			p.e.log.Error("taking a pooled shell apart", "sandbox", s.id, "error", err)
		}
	}
}
