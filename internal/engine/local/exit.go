package local

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// oomSettle is how long after the kernel killed something for memory an end of
// the entrypoint may still be its doing. It covers the freeing of the largest
// memories, which comes before a process has ended, and the moment in which a
// script says with its own end that a part of it was killed.
const oomSettle = 5 * time.Second

// oomTrack knows which kills for memory the entrypoint of a sandbox has
// outlived, so that a signal hours after one is not taken for another. The
// kernel tells neither the victim nor its parent; its log does, but is not
// there to be read on each host.
//
// Nothing runs while there are no kills. What a sandbox outlived before the
// server started is outlived again oomSettle after that.
type oomTrack struct {
	group  *cgroup.Group
	settle time.Duration

	mu sync.Mutex
	// seen was counted at least settle before survived becomes it.
	seen, survived int64
	// news is set when there may be more than seen, or soon: the kernel may
	// report a kill before it counts it.
	news  bool
	timer *time.Timer // not nil while a look is due
	over  bool
	stop  func()
}

// trackOOM begins to watch the group. The error says that kills which the
// entrypoint outlives won't be noticed; the track is of use all the same.
func trackOOM(g *cgroup.Group, settle time.Duration) (*oomTrack, error) {
	t := &oomTrack{group: g, settle: settle}
	if g == nil {
		return t, nil
	}
	stop, err := g.WatchOOM(t.wake)
	if err != nil {
		return t, err
	}
	t.mu.Lock()
	t.stop = stop
	t.mu.Unlock()
	// For kills before the watch began.
	if n, err := g.OOMKills(); err == nil && n > 0 {
		t.wake()
	}
	return t, nil
}

// wake has the count looked at, once things have settled.
func (t *oomTrack) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.news = true
	if t.timer == nil && !t.over {
		t.timer = time.AfterFunc(t.settle, t.look)
	}
}

// look takes kills as outlived that were counted by the look before.
func (t *oomTrack) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	news := t.news
	t.news = false
	n, err := t.group.OOMKills()
	if err != nil {
		// The group is gone, and the sandbox with it.
		t.timer = nil
		return
	}
	t.survived = t.seen
	if n > t.seen || news {
		t.seen = n
		t.timer.Reset(t.settle)
		return
	}
	t.timer = nil
}

// killed reports whether the kernel has killed something for memory that the
// entrypoint has not outlived for long.
func (t *oomTrack) killed() bool {
	if t.group == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.group.OOMKills()
	return err == nil && n > t.survived
}

// end ends the watch. Idempotent.
func (t *oomTrack) end() {
	t.mu.Lock()
	t.over = true
	stop := t.stop
	t.stop = nil
	if t.timer != nil {
		t.timer.Stop()
	}
	t.mu.Unlock()
	// Without the lock: a wake that waits for it may be under way.
	if stop != nil {
		stop()
	}
}

// explainExit adds what only the host knows.
func explainExit(s *shell, ooms *oomTrack, code, signal int) sandbox.Exit {
	exit := sandbox.Exit{ID: s.id, Code: code, Signal: signal}
	// 128 and the signal is how a shell ends whose command was killed.
	if signal == int(unix.SIGKILL) || code == 128+int(unix.SIGKILL) || code < 0 && signal == 0 {
		exit.OutOfMemory = ooms.killed()
	}
	return exit
}
