package session

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxWaiting bounds the runs that wait for one session.
	maxWaiting = 16
	// killRounds bounds how often what a run started is looked for, if it
	// starts more while it is being killed.
	killRounds = 20
	// silenceChecks is how often within silenceLimit a run is looked at that
	// does not report.
	silenceChecks = 8
)

// silenceLimit is how long a shell that has finished a run may take to report
// it. Traps of the user may run in between. Tests shorten it.
var silenceLimit = 10 * time.Second

// session is one session. Runs take turns.
type session struct {
	id     string
	dir    string
	guest  *guest.Guest
	procs  *process.Table
	states *budget

	// turn holds a token while a run is under way, which also owns serial and
	// last.
	turn chan struct{}
	// closed is closed when the session is deleted.
	closed chan struct{}
	// serial is that of the newest run.
	serial uint64
	// last is the exit code of the newest run.
	last int

	mu      sync.Mutex
	waiting int
	// shell is nil when the next run has to start one.
	shell *shell
	// state is that of the last finished run.
	state state
}

// acquire waits for the session's turn.
func (s *session) acquire(ctx context.Context) error {
	s.mu.Lock()
	if s.waiting >= maxWaiting {
		s.mu.Unlock()
		return web.Busy("%d runs wait for session %q already; runs of one session take turns", maxWaiting, s.id)
	}
	s.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}()
	select {
	case s.turn <- struct{}{}:
	case <-s.closed:
		return notFound(s.id)
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.isClosed() {
		s.release()
		return notFound(s.id)
	}
	return nil
}

func (s *session) release() { <-s.turn }

func (s *session) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// ready returns a shell that waits for orders. The caller has the turn.
func (s *session) ready() (*shell, error) {
	s.mu.Lock()
	sh := s.shell
	s.mu.Unlock()
	if sh != nil && !sh.ended() {
		return sh, nil
	}
	if sh != nil {
		// It was killed between two runs.
		s.drop(sh)
	}
	return s.start()
}

// drop forgets a shell that has ended.
func (s *session) drop(sh *shell) {
	sh.awaitState()
	sh.release()
	sh.discard()
	s.mu.Lock()
	s.shell = nil
	s.mu.Unlock()
}

// start makes a shell and gives it the last state. The caller has the turn, or
// nobody else knows the session yet.
func (s *session) start() (*shell, error) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	if st.cwd == "" {
		st.cwd = s.dir
	}
	sh, err := s.startWith(st)
	if err != nil && st.text != "" && !s.isClosed() {
		// A state can be such that no shell survives it. Better none than a
		// session that is of no use any more.
		s.forget()
		sh, err = s.startWith(state{cwd: st.cwd})
	}
	return sh, err
}

func (s *session) startWith(st state) (*shell, error) {
	dir := s.dir
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		dir = "/"
	}
	sh, err := startShell(s.guest, s.procs, dir, s.keep)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	closed := s.isClosed()
	if !closed {
		s.shell = sh
	}
	s.mu.Unlock()
	if closed {
		err = notFound(s.id)
	} else {
		err = sh.setUp(st)
	}
	if err != nil {
		sh.proc.SignalGroup(syscall.SIGKILL)
		s.drop(sh)
		return nil, err
	}
	return sh, nil
}

// forget drops the state but for the directory.
func (s *session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states.replace(len(s.state.text), 0)
	s.state.text = ""
}

// keep remembers a state, if there is room.
func (s *session) keep(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == "" || s.isClosed() || !s.states.replace(len(s.state.text), len(text)) {
		return
	}
	s.state.text = text
}

// run does one run and sends its events. The caller has the turn. The error is
// for a run that could not be begun.
func (s *session) run(ctx context.Context, stream *event.Stream, dir, text string, timeout time.Duration) error {
	sh, err := s.ready()
	if err != nil {
		return err
	}
	begun, since := time.Now(), process.Now()
	s.serial++
	if err := sh.run(s.serial, s.last, dir, text); err != nil {
		s.abort(sh, since, syscall.SIGKILL)
		return err
	}
	sh.attach(func(b []byte) { stream.Output(event.Stdout, b) })
	var expired <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		expired = timer.C
	}
	silence := time.NewTicker(silenceLimit / silenceChecks)
	defer silence.Stop()
	var silent time.Time
	for {
		select {
		case r := <-sh.results:
			if r.serial != s.serial {
				continue
			}
			s.finished(stream, sh, r, begun)
		case <-sh.proc.Done():
			s.exited(stream, sh, begun)
		case <-expired:
			s.abort(sh, since, syscall.SIGKILL)
			s.fail(stream, sh, fmt.Sprintf("timeout: the run was killed after %s; the session goes on with the state before it", timeout))
		case <-ctx.Done():
			stream.Close()
			s.abort(sh, since, syscall.SIGTERM)
		case <-stream.Gone():
			s.abort(sh, since, syscall.SIGTERM)
		case now := <-silence.C:
			if !sh.silent() {
				silent = time.Time{}
				continue
			}
			if silent.IsZero() {
				silent = now
			}
			if now.Sub(silent) < silenceLimit {
				continue
			}
			s.abort(sh, since, syscall.SIGKILL)
			s.fail(stream, sh, "the shell no longer does what execd tells it, because of what it was made to do; the session goes on with the state before this run")
		}
		return nil
	}
}

// finished ends a run that came to its end, with the shell alive.
func (s *session) finished(stream *event.Stream, sh *shell, r result, begun time.Time) {
	sh.expect = r.serial
	s.mu.Lock()
	if r.cwd != "" {
		s.state.cwd = r.cwd
	}
	s.mu.Unlock()
	sh.out.Settle(stream.Gone())
	sh.detach()
	code, err := strconv.Atoi(r.code)
	if err != nil {
		code = -1
	}
	s.end(stream, process.Exit{Code: code}, begun)
}

// exited ends a run in which the shell ended, by exit or a signal.
func (s *session) exited(stream *event.Stream, sh *shell, begun time.Time) {
	sh.out.Drain(stream.Gone())
	s.drop(sh)
	if s.isClosed() {
		stream.Error(event.ExecError, "-1", "the session was deleted while the command ran")
		return
	}
	s.end(stream, sh.proc.Exit(), begun)
}

func (s *session) end(stream *event.Stream, exit process.Exit, begun time.Time) {
	s.last = min(max(exit.Code, 0), 255)
	if exit.Signal != 0 {
		// As a shell reports a command that a signal ended.
		s.last = 128 + int(exit.Signal)
	}
	if exit == (process.Exit{}) {
		stream.Complete(time.Since(begun))
		return
	}
	stream.Error(event.ExecError, strconv.Itoa(exit.Code), exit.String())
}

// fail ends a run whose shell had to be killed.
func (s *session) fail(stream *event.Stream, sh *shell, why string) {
	s.last = 128 + int(syscall.SIGKILL)
	stream.Error(event.ExecError, "-1", why)
}

// abort ends the shell and what it started since the given time. The shell is
// stopped first, so that it does not go on with the next line of the run.
func (s *session) abort(sh *shell, since process.Stamp, sig syscall.Signal) {
	// It may have had no time yet for more than the last report.
	sh.awaitState()
	sh.proc.Signal(syscall.SIGSTOP)
	family := sh.proc.Family(since)
	process.Signal(family, sig)
	if sig != syscall.SIGKILL {
		if len(family) > 0 {
			time.AfterFunc(process.Grace, func() { process.Signal(family, syscall.SIGKILL) })
		}
	} else {
		for range killRounds {
			if family = sh.proc.Family(since); len(family) == 0 {
				break
			}
			process.Signal(family, syscall.SIGKILL)
		}
	}
	sh.proc.Signal(syscall.SIGKILL)
	timer := time.NewTimer(shellWait)
	defer timer.Stop()
	select {
	case <-sh.proc.Done():
	case <-timer.C:
		// Stuck in the kernel. It ends when the kernel lets go of it.
	}
	sh.out.Settle(nil)
	s.drop(sh)
}

// close ends the session and everything that its shell started and still holds.
// It is called once.
func (s *session) close() {
	close(s.closed)
	s.mu.Lock()
	sh := s.shell
	s.mu.Unlock()
	s.forget()
	if sh == nil {
		return
	}
	// Jobs of "set -m" have groups of their own.
	family := sh.proc.Family(0)
	process.Signal(family, syscall.SIGTERM)
	sh.proc.Stop()
	time.AfterFunc(process.Grace, func() { process.Signal(family, syscall.SIGKILL) })
	// A run that is under way sees the shell end and lets go of it.
	timer := time.NewTimer(shellWait)
	defer timer.Stop()
	select {
	case s.turn <- struct{}{}:
	case <-timer.C:
		return
	}
	defer s.release()
	s.mu.Lock()
	dropped := s.shell != sh
	s.mu.Unlock()
	if !dropped {
		s.drop(sh)
	}
}
