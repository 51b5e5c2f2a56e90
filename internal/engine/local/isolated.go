package local

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
)

const (
	// maxIsolated bounds the sessions of one sandbox: each is an execd and a
	// shell, some 10 MiB of the sandbox's memory.
	maxIsolated = 16
	// isolatedTmp bounds the private /tmp of a session, and the copies that it
	// keeps in memory, in bytes each. They count against the sandbox's memory.
	isolatedTmp = 1 << 30
	// maxWalks bounds the diffs and commits that are at work in one sandbox: each
	// has some 300 descriptors open at most (maxDepth).
	maxWalks = 2
	// idleRecheck is when a session that could not be ended for being idle is
	// looked at again.
	idleRecheck = time.Minute
)

// isolation is the isolated sessions of one sandbox. The zero value has none.
type isolation struct {
	mu       sync.Mutex
	sessions map[string]*isolatedSession
	// making counts sessions that are being made; closing ends that.
	making int
	closed bool
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// walks are diffs and commits at work.
	walks turns
}

// isolatedSession is a container beside the sandbox's own, with its user and
// network namespaces and in its cgroup, and with a root of its own (rootfs.View).
//
// What is of it on the host: the run directory i/<short> in that of the sandbox,
// whose session.json comes first; its processes, in the sandbox's cgroup; and
// the copies of its overlays, in the sandbox's data. All of that goes with the
// sandbox.
type isolatedSession struct {
	record isolatedRecord
	dir    string
	// pidfd refers to the session's execd; -1 when that is known to have ended.
	pidfd int
	http  *http.Transport

	mu sync.Mutex
	// open counts requests that are served.
	open  int
	used  time.Time
	timer *time.Timer
	// applying is a commit's.
	applying turns
}

// isolatedRecord is session.json: what a restarted server must know.
type isolatedRecord struct {
	ID    string `json:"id"`
	Token string `json:"token"`
	// PID is 0 while the session is being made.
	PID       int               `json:"pid,omitempty"`
	PIDStart  uint64            `json:"pidStart,omitempty"`
	CreatedAt time.Time         `json:"createdAt"`
	LastRunAt time.Time         `json:"lastRunAt"`
	Settings  isolated.Settings `json:"settings"`
}

// short names a session's directories and its container.
func (r *isolatedRecord) short() string { return r.ID[:8] }

func (in *instance) isolatedDir(sandbox string) string {
	return filepath.Join(in.run(sandbox), "i")
}

func (is *isolatedSession) socket() string { return filepath.Join(is.dir, "s") }

// isolatedContainer is the name of a session's container for the OCI runtime.
func isolatedContainer(sandbox, short string) string { return sandbox + "." + short }

// newTransport keeps a few connections to the session's execd.
func (is *isolatedSession) newTransport() {
	d := net.Dialer{Timeout: dialTimeout}
	is.http = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", is.socket())
		},
		DisableCompression:     true,
		MaxIdleConns:           4,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: maxExecdAnswer,
	}
}

// alive reports whether the session's processes run.
func (is *isolatedSession) alive() bool {
	is.mu.Lock()
	defer is.mu.Unlock()
	return is.pidfd >= 0 && !ended(is.pidfd)
}

func (is *isolatedSession) status() string {
	if is.alive() {
		return isolated.Active
	}
	return isolated.Dead
}

// begin takes note of a request, and returns what is to be called at its end.
func (is *isolatedSession) begin() (done func()) {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.open++
	is.used = time.Now()
	return func() {
		is.mu.Lock()
		defer is.mu.Unlock()
		is.open--
		is.used = time.Now()
	}
}

// idleLeft is how long the session may still be idle; ok is false when that is
// for ever.
func (is *isolatedSession) idleLeft() (left time.Duration, ok bool) {
	limit := is.record.Settings.Idle()
	if limit == 0 {
		return 0, false
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.open > 0 {
		return limit, true
	}
	return max(0, limit-time.Since(is.used)), true
}

// remaining is idleLeft as the contract has it.
func (is *isolatedSession) remaining() *int64 {
	left, ok := is.idleLeft()
	if !ok {
		return nil
	}
	seconds := int64((left + time.Second - 1) / time.Second)
	return &seconds
}

// watchIdle ends the session when it has been idle for too long.
func (e *Engine) watchIdle(s *shell, is *isolatedSession) {
	left, ok := is.idleLeft()
	if !ok {
		return
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	is.timer = time.AfterFunc(left, func() { e.endIdle(s, is) })
}

// endIdle is called when the session may have been idle for too long.
func (e *Engine) endIdle(s *shell, is *isolatedSession) {
	again := func(after time.Duration) {
		is.mu.Lock()
		defer is.mu.Unlock()
		is.timer.Reset(max(after, time.Second))
	}
	if e.ctx.Err() != nil || s.isolation.find(is.record.ID) != is {
		return
	}
	if left, _ := is.idleLeft(); left > 0 {
		again(left)
		return
	}
	if frozen, err := s.group.Frozen(); err != nil || frozen || e.isolatedBusy(is) {
		again(idleRecheck)
		return
	}
	if s.isolation.take(is.record.ID) != is {
		return
	}
	if err := e.endIsolated(e.ctx, s, is); err != nil {
		e.log.Error("ending an idle isolated session", "sandbox", s.id, "error", err)
		if s.isolation.giveBack(is) {
			again(idleRecheck)
		}
	}
}

// find returns a session, or nil.
func (i *isolation) find(id string) *isolatedSession {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.sessions[id]
}

// take removes a session from the list, so that it is ended once.
func (i *isolation) take(id string) *isolatedSession {
	i.mu.Lock()
	defer i.mu.Unlock()
	is := i.sessions[id]
	delete(i.sessions, id)
	return is
}

// giveBack puts a session back that was taken and could not be ended, so that it
// can be tried again. It reports false when the sandbox itself ends.
func (i *isolation) giveBack(is *isolatedSession) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		is.drop()
		return false
	}
	i.sessions[is.record.ID] = is
	return true
}

// all returns the sessions.
func (i *isolation) all() []*isolatedSession {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := make([]*isolatedSession, 0, len(i.sessions))
	for _, is := range i.sessions {
		list = append(list, is)
	}
	return list
}

func (i *isolation) put(is *isolatedSession) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sessions == nil {
		i.sessions = make(map[string]*isolatedSession)
	}
	i.sessions[is.record.ID] = is
}

// enter makes room for a session that will be made. The context ends with the
// sandbox; leave must be called.
func (i *isolation) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, nil, errIsolatedEnding
	case len(i.sessions)+i.making >= maxIsolated:
		return nil, nil, errIsolatedFull
	}
	if i.ctx == nil {
		i.ctx, i.cancel = context.WithCancel(context.Background())
	}
	i.making++
	i.wg.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(i.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		i.mu.Lock()
		i.making--
		i.mu.Unlock()
		i.wg.Done()
	}, nil
}

// close ends the making of sessions, waits for that, and drops what the server
// holds of the made ones. Their processes end with the sandbox's cgroup.
func (i *isolation) close() {
	i.mu.Lock()
	i.closed = true
	if i.cancel != nil {
		i.cancel()
	}
	i.mu.Unlock()
	i.wg.Wait()
	for _, is := range i.all() {
		if i.take(is.record.ID) == is {
			is.drop()
		}
	}
}

// turns lets a number of requests do something at a time, and the others wait.
// The zero value is ready.
type turns struct {
	once  sync.Once
	taken chan struct{}
}

// take waits for one of limit turns, which is the same in every call, but not
// longer than ctx. leave must be called.
func (t *turns) take(ctx context.Context, limit int) (leave func(), err error) {
	t.once.Do(func() { t.taken = make(chan struct{}, limit) })
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// drop closes what the server holds of a session.
func (is *isolatedSession) drop() {
	if is.http != nil {
		is.http.CloseIdleConnections()
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	if is.timer != nil {
		is.timer.Stop()
	}
	if is.pidfd >= 0 {
		unix.Close(is.pidfd)
		is.pidfd = -1
	}
}

var (
	errIsolatedEnding = errors.New("the sandbox is being stopped")
	errIsolatedFull   = errors.New("this sandbox has " + strconv.Itoa(maxIsolated) + " isolated sessions, which is the limit; delete one first")
)
