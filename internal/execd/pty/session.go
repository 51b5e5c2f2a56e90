package pty

import (
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxBehind is how far a client may be behind before the program is slowed
	// down, in bytes. Small enough that Ctrl-C shows soon.
	maxBehind = 128 << 10
	// maxReplay keeps a replay message within 1 MiB, which is what some client
	// libraries take at most.
	maxReplay = ringSize - replayHeader
	// maxRuns bounds the changes between stdout and stderr that a client is
	// behind.
	maxRuns = 4096
	// hangupGrace is how long a program may take to end after its terminal is
	// gone.
	hangupGrace = time.Second
	// killWait bounds the wait for a program after SIGKILL.
	killWait = 2 * time.Second
)

// session is one terminal or pair of pipes, and its program.
type session struct {
	id    string
	plan  *plan
	procs *process.Table

	// closed is closed when the session is deleted.
	closed chan struct{}
	// room has an element when the output may have got room.
	room chan struct{}

	mu   sync.Mutex
	ring ring
	// holder is the client that owns the session; nil when there is none.
	holder *client
	// proc is nil until the first client connects.
	proc *process.Process
	// tty is nil in pipe mode.
	tty *terminal
	in  *input
	// ended is set when the program has ended and its output is in the ring.
	ended   bool
	deleted bool
}

func newSession(id string, p *plan, procs *process.Table, b *budget) *session {
	return &session{
		id: id, plan: p, procs: procs, ring: ring{budget: b},
		closed: make(chan struct{}), room: make(chan struct{}, 1),
	}
}

// status is what GET /pty/{id} shows.
type status struct {
	ID      string `json:"session_id"`
	Running bool   `json:"running"`
	Offset  int64  `json:"output_offset"`
}

func (s *session) status() status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return status{ID: s.id, Running: s.running(), Offset: s.ring.total}
}

// running reports whether the program was started and has not ended. The caller
// holds mu.
func (s *session) running() bool {
	if s.proc == nil {
		return false
	}
	select {
	case <-s.proc.Done():
		return false
	default:
		return true
	}
}

// spent reports whether nothing would be lost but old output if the session
// were deleted.
func (s *session) spent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended && s.holder == nil
}

// hold makes c the session's client if there is none.
func (s *session) hold(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return notFound(s.id)
	}
	if s.holder != nil {
		return web.Errorf(http.StatusConflict, codeAlreadyConnected,
			"another client is connected to pty session %q; take it over with ?takeover=1, or wait until it leaves", s.id)
	}
	s.holder = c
	return nil
}

// takeOver makes c the session's client in any case.
func (s *session) takeOver(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.holder; old != nil && old != c {
		close(old.evicted)
	}
	s.holder = c
	s.signalRoom()
}

// release ends c's hold.
func (s *session) release(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holder == c {
		s.holder = nil
		s.signalRoom()
	}
}

// attach starts the program when that has not been done, and makes c see the
// output from offset since on, or from the oldest that is kept. It reports
// false when c has lost the session meanwhile.
func (s *session) attach(c *client, terminal bool, since int64) (ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted || s.holder != c {
		return false, nil
	}
	if s.proc == nil {
		if err := s.start(terminal); err != nil {
			return true, err
		}
	}
	c.terminal = s.tty != nil
	c.cursor = min(max(since, s.ring.base, s.ring.total-maxReplay), s.ring.total)
	c.live = s.ring.total
	c.attached = true
	return true, nil
}

// news is what there is for a client.
type news int

const (
	newsNone news = iota
	newsOutput
	newsExit
	newsTakenOver
	newsGone
)

// next tells c what is new and copies output to buf. What prefix says the
// output is: replay, stdout or stderr.
func (s *session) next(c *client, buf []byte) (what news, prefix byte, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleted:
		return newsGone, 0, 0
	case s.holder != c:
		return newsTakenOver, 0, 0
	case c.cursor < s.ring.total:
		prefix, end := c.upcoming(s.ring.total)
		n := s.ring.read(c.cursor, buf[:min(int64(len(buf)), end-c.cursor)])
		c.advance(int64(n))
		s.signalRoom()
		return newsOutput, prefix, n
	case s.ended:
		return newsExit, 0, 0
	}
	return newsNone, 0, 0
}

// output is where the program's output goes. It waits while the client is too
// far behind.
func (s *session) output(stream byte, p []byte) {
	for len(p) > 0 {
		s.mu.Lock()
		n := s.accept(stream, p)
		s.mu.Unlock()
		p = p[n:]
		if len(p) == 0 {
			return
		}
		select {
		case <-s.room:
		case <-s.closed:
			return
		}
	}
}

// accept puts as much of p into the ring as may be and returns how much. The
// caller holds mu.
func (s *session) accept(stream byte, p []byte) int {
	limit := s.ring.reserve(len(p))
	c := s.holder
	if c == nil || !c.attached || s.deleted {
		s.ring.write(p)
		return len(p)
	}
	room := min(limit, maxBehind) - (s.ring.total - c.cursor)
	n := int(max(0, min(room, int64(len(p)))))
	if n == 0 || !c.note(stream, s.ring.total+int64(n)) {
		return 0
	}
	s.ring.write(p[:n])
	c.poke()
	return n
}

// signalRoom wakes the output. The caller holds mu or needs no more than a
// hint.
func (s *session) signalRoom() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// await ends the session's program's life: it returns when the program has
// ended and its output was dealt with.
func (s *session) await(proc *process.Process, outputs []*process.Pipe) {
	<-proc.Done()
	var drains sync.WaitGroup
	for _, p := range outputs {
		drains.Go(func() { p.Drain(s.closed) })
	}
	drains.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.in.close()
	if s.tty != nil {
		// Hangs up what else has the terminal open.
		s.tty.f.Close()
	}
	if s.holder != nil {
		s.holder.poke()
	}
}

// inputFailed tells the client that the program does not read any more.
func (s *session) inputFailed(err error) {
	s.mu.Lock()
	c, terminal := s.holder, s.tty != nil
	s.mu.Unlock()
	// A terminal fails only because it is about to end.
	if c != nil && !terminal {
		c.reply(errorFrame(codeStdinFailed, "the program's input can't be written, and what is sent from now on is dropped: "+err.Error()))
	}
}

// resize changes the terminal's size; pipes have none.
func (s *session) resize(to size) {
	s.mu.Lock()
	tty := s.tty
	s.mu.Unlock()
	if tty != nil {
		// Fails when the terminal was closed meanwhile.
		_ = tty.resize(to)
	}
}

// signal sends a signal to the program. In a terminal, where a shell puts each
// job into a group of its own, those that ask a program to stop go to the job
// in the foreground, as a key would send them.
func (s *session) signal(sig syscall.Signal) {
	s.mu.Lock()
	proc, tty := s.proc, s.tty
	s.mu.Unlock()
	if proc == nil {
		return
	}
	if tty != nil && (sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGTERM) && tty.signal(sig) {
		return
	}
	proc.SignalGroup(sig)
}

// close deletes the session. Its program and what that has started are told
// that the terminal is gone. What ignores that on purpose runs on, but the
// program itself is killed. It is called once and returns in bounded time.
func (s *session) close() {
	s.mu.Lock()
	s.deleted = true
	close(s.closed)
	proc := s.proc
	if s.holder != nil {
		s.holder.poke()
	}
	s.ring.free()
	running := s.running()
	s.mu.Unlock()
	if !running {
		return
	}
	// Before the leader ends: its jobs have groups of their own.
	family := proc.Family(0)
	proc.SignalGroup(syscall.SIGHUP)
	// A stopped program would not hear of it.
	proc.SignalGroup(syscall.SIGCONT)
	process.Signal(family, syscall.SIGHUP)
	process.Signal(family, syscall.SIGCONT)
	timer := time.NewTimer(hangupGrace)
	defer timer.Stop()
	select {
	case <-proc.Done():
		return
	case <-timer.C:
	}
	proc.SignalGroup(syscall.SIGKILL)
	timer.Reset(killWait)
	select {
	case <-proc.Done():
	case <-timer.C:
	}
}
