package sandbox

import (
	"sync"
	"time"
)

// admission counts what there is against what there may be. A create takes its
// places before it does any work, so that a burst is refused at the door and
// not half way.
type admission struct {
	mu                              sync.Mutex
	pending, live, records          int
	maxPending, maxLive, maxRecords int
}

// enter takes a pending, a live and a record place.
func (a *admission) enter() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.pending >= a.maxPending:
		err := Errorf(KindBusy, CodeCapacity, "%d sandboxes are being created, which is the limit. Try again in a second.", a.pending)
		err.RetryAfter = time.Second
		return err
	case a.maxLive > 0 && a.live >= a.maxLive:
		err := Errorf(KindBusy, CodeCapacity, "%d sandboxes exist, which is the limit. Delete some or try again later.", a.live)
		err.RetryAfter = 5 * time.Second
		return err
	case a.records >= a.maxRecords:
		err := Errorf(KindBusy, CodeCapacity, "%d records of sandboxes exist, which is the limit. Delete sandboxes that have ended.", a.records)
		err.RetryAfter = 30 * time.Second
		return err
	}
	a.pending++
	a.live++
	a.records++
	return nil
}

// adopt counts a recorded sandbox at start. What was promised before the
// restart is kept even beyond a limit that was lowered.
func (a *admission) adopt(pending, live bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pending {
		a.pending++
	}
	if live {
		a.live++
	}
	a.records++
}

func (a *admission) leavePending() {
	a.mu.Lock()
	a.pending--
	a.mu.Unlock()
}

func (a *admission) leaveLive() {
	a.mu.Lock()
	a.live--
	a.mu.Unlock()
}

func (a *admission) leaveRecord() {
	a.mu.Lock()
	a.records--
	a.mu.Unlock()
}
