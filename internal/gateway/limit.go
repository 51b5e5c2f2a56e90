package gateway

import (
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// limits bound what goes on with one sandbox, so that one that is popular, or
// slow, does not take what the server has for all.
type limits struct {
	open  int
	rate  float64 // requests per second, 0 for no bound
	burst float64
	mu    sync.Mutex
	by    map[string]*usage
}

// usage is one sandbox's.
type usage struct {
	open int
	// left are requests that may come at once; it grows by the rate.
	left float64
	at   time.Time
}

func (l *limits) init(open int, rate float64) {
	l.open, l.rate, l.burst = open, rate, max(rate, 1)
	l.by = make(map[string]*usage)
}

// enter counts a request until leave is called.
func (l *limits) enter(id string) (leave func(), err error) {
	var now time.Time
	if l.rate > 0 {
		now = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.by[id]
	if u == nil {
		u = &usage{left: l.burst, at: now}
		l.by[id] = u
	}
	if u.open >= l.open {
		return nil, &Error{Status: http.StatusTooManyRequests, Code: sandbox.CodeCapacity, RetryAfter: time.Second,
			Message: fmt.Sprintf("Sandbox %q has %d open requests and connections, which is the limit (gateway.max_connections). Close some, or try again later.", id, l.open)}
	}
	if l.rate > 0 {
		u.refill(now, l)
		if u.left < 1 {
			wait := time.Duration(math.Ceil((1-u.left)/l.rate)) * time.Second
			return nil, &Error{Status: http.StatusTooManyRequests, Code: sandbox.CodeCapacity, RetryAfter: max(wait, time.Second),
				Message: fmt.Sprintf("Sandbox %q gets more than %g requests per second, which is the limit (gateway.requests_per_second). Send fewer.", id, l.rate)}
		}
		u.left--
	}
	u.open++
	return func() { l.leave(id, u) }, nil
}

func (l *limits) leave(id string, u *usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.open--; u.open == 0 && l.rate <= 0 {
		delete(l.by, id)
	}
}

func (u *usage) refill(now time.Time, l *limits) {
	u.left = min(l.burst, u.left+now.Sub(u.at).Seconds()*l.rate)
	u.at = now
}

// sweep forgets sandboxes that are as good as new.
func (l *limits) sweep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, u := range l.by {
		if u.open > 0 {
			continue
		}
		if u.refill(now, l); l.rate <= 0 || u.left >= l.burst {
			delete(l.by, id)
		}
	}
}
