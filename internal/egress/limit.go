package egress

import (
	"net/netip"
	"sync"
)

// limiter shares a number of slots between sources, of which each may hold only
// some. Safe for use in parallel; nothing waits.
type limiter struct {
	total, perSource int

	mu   sync.Mutex
	used int
	by   map[netip.Addr]int // only sources that hold a slot
}

func newLimiter(total, perSource int) *limiter {
	return &limiter{total: total, perSource: perSource, by: map[netip.Addr]int{}}
}

// take says whether the source got a slot, which it must give back.
func (l *limiter) take(src netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used >= l.total || l.by[src] >= l.perSource {
		return false
	}
	l.used++
	l.by[src]++
	return true
}

func (l *limiter) give(src netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	if l.by[src]--; l.by[src] == 0 {
		delete(l.by, src)
	}
}

func (l *limiter) inUse() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}
