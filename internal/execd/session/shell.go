package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

const (
	// shellWait bounds how long a shell may take for what should take it
	// milliseconds: to get ready, to take an order, to report.
	shellWait = 10 * time.Second
	// maxEarly bounds what is kept of output between runs, in bytes.
	maxEarly = 64 << 10
)

// noSerial is never reported. A shell's first report carries 0.
const noSerial = ^uint64(0)

// errOrder is why a run could not be given to the shell.
var errOrder = errors.New("the session's shell does not take orders")

// state is what a new shell is given to go on where the last one was.
type state struct {
	cwd string
	// text is shell code that restores the rest.
	text string
}

// shell is one running shell. It serves one run at a time.
type shell struct {
	proc *process.Process
	bash bool
	out  *process.Pipe
	// reports is read to its end even when the shell is gone.
	reports *process.Pipe
	orders  *os.File
	// text holds the run's text for bash.
	text *os.File
	// results delivers the newest report.
	results chan result
	// onState is told each state.
	onState func(text string)

	outMu sync.Mutex
	// sink is where output goes during a run; between runs, to early.
	sink  func([]byte)
	early []byte

	// expect is the serial of the last report, whose state comes with it. It
	// belongs to whoever has the session's turn.
	expect uint64

	stateMu sync.Mutex
	// stateOf is the serial of the last state that came.
	stateOf uint64
	// stateCame is closed and replaced with each state.
	stateCame chan struct{}
}

// findShell is replaced by tests, to use another shell than the first there is.
var findShell = command.Shell

// startShell starts a shell that is not set up yet.
func startShell(g *guest.Guest, procs *process.Table, dir string, onState func(string)) (*shell, error) {
	env, path := g.Environ(g.Identity, nil)
	file, err := findShell(path, dir)
	if err != nil {
		return nil, err
	}
	s := &shell{
		bash:      filepath.Base(file) == "bash",
		results:   make(chan result, 1),
		onState:   onState,
		stateOf:   noSerial,
		stateCame: make(chan struct{}),
	}
	spec := process.Spec{Path: file, Env: env, Dir: dir, Credential: command.Credential(g.Identity)}
	if err := s.launch(procs, spec); err != nil {
		return nil, fmt.Errorf("starting the session's shell: %w", process.ExplainExec(file, err))
	}
	reader := &reportReader{result: s.reported, state: s.stated}
	go s.out.Pump(s.output)
	go s.reports.Pump(reader.read)
	return s, nil
}

// launch makes the descriptors and starts the process.
func (s *shell) launch(procs *process.Table, spec process.Spec) (err error) {
	undo := []func(){}
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	orders, ordersEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer orders.Close()
	s.orders = ordersEnd
	undo = append(undo, s.release)
	out, outEnd, err := process.NewPipe()
	if err != nil {
		return err
	}
	defer outEnd.Close()
	undo = append(undo, out.Abandon)
	reports, reportsEnd, err := process.NewPipe()
	if err != nil {
		return err
	}
	defer reportsEnd.Close()
	undo = append(undo, reports.Abandon)
	s.out, s.reports = out, reports

	reportFD := shReportFD
	spec.Argv = []string{"sh", "-s"}
	if s.bash {
		reportFD = bashReportFD
		spec.Argv = []string{"bash", "--noprofile", "--norc", "-s"}
		if s.text, err = memoryFile(); err != nil {
			return err
		}
	}
	spec.Files = make([]*os.File, reportFD+1)
	spec.Files[0], spec.Files[1], spec.Files[2] = orders, outEnd, outEnd
	spec.Files[reportFD] = reportsEnd
	if s.bash {
		spec.Files[bashTextFD] = s.text
	}
	s.proc, err = procs.Start(spec)
	return err
}

func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("session", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "session"), nil
}

// release closes execd's ends of what the shell reads.
func (s *shell) release() {
	s.orders.Close()
	if s.text != nil {
		s.text.Close()
	}
}

// setUp is called once, before the first run. It returns when the shell has
// taken over the state.
func (s *shell) setUp(st state) error {
	var err error
	if s.bash {
		err = s.order(st.cwd, st.text, bashSetUp)
	} else {
		err = s.write(shSetUp(st))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errOrder, err)
	}
	timer := time.NewTimer(shellWait)
	defer timer.Stop()
	select {
	case <-s.results:
		return nil
	case <-s.proc.Done():
		return fmt.Errorf("the session's shell ended while it was set up: %s", s.proc.Exit())
	case <-timer.C:
		return fmt.Errorf("the session's shell did not get ready within %s", shellWait)
	}
}

// run starts a run. dir, when not empty, is where it begins; last is the exit
// code of the run before.
func (s *shell) run(serial uint64, last int, dir, text string) error {
	var err error
	if s.bash {
		err = s.order(dir, text, bashRun(serial, last, dir != ""))
	} else {
		err = s.write(shRun(serial, dir, text))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errOrder, err)
	}
	return nil
}

// order puts two strings where bash reads them and tells it to do so. The
// offset of the file is shared with the shell.
func (s *shell) order(dir, text, code string) error {
	if err := s.text.Truncate(0); err != nil {
		return err
	}
	if _, err := s.text.Seek(0, 0); err != nil {
		return err
	}
	if _, err := s.text.WriteString(dir + "\x00" + text + "\x00"); err != nil {
		return err
	}
	if _, err := s.text.Seek(0, 0); err != nil {
		return err
	}
	return s.write(code)
}

// write gives the shell an order. A shell that was stopped does not read.
func (s *shell) write(order string) error {
	if err := s.orders.SetWriteDeadline(time.Now().Add(shellWait)); err != nil {
		return err
	}
	_, err := s.orders.WriteString(order)
	return err
}

// silent reports whether bash has taken its last order. That is the one to
// report, since bash reads a pipe line by line: a run is over, and a report is
// there or will never come. Other shells read ahead, so nothing is known.
func (s *shell) silent() bool {
	if !s.bash {
		return false
	}
	conn, err := s.orders.SyscallConn()
	if err != nil {
		return false
	}
	left := 1
	_ = conn.Control(func(fd uintptr) {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			left = n
		}
	})
	return left == 0
}

// reported takes a report. Only the newest is of interest.
func (s *shell) reported(r result) {
	select {
	case <-s.results:
	default:
	}
	// The only sender has just made room.
	s.results <- r
}

func (s *shell) stated(serial uint64, text string) {
	s.onState(text)
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	s.stateOf = serial
	close(s.stateCame)
	s.stateCame = make(chan struct{})
}

// awaitState returns when the state of the last report has come, or can't come
// any more, or did not come for too long.
func (s *shell) awaitState() {
	timer := time.NewTimer(shellWait)
	defer timer.Stop()
	for {
		s.stateMu.Lock()
		there, came := s.stateOf == s.expect, s.stateCame
		s.stateMu.Unlock()
		if there {
			return
		}
		select {
		case <-came:
		case <-s.reports.EOF():
			return
		case <-timer.C:
			return
		}
	}
}

// output is the sink of the shell's output. The lock is held while the client
// takes it, so that every byte belongs to exactly one run.
func (s *shell) output(b []byte) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if s.sink != nil {
		s.sink(b)
		return
	}
	s.early = append(s.early, b...)
	if extra := len(s.early) - maxEarly; extra > 0 {
		s.early = append(s.early[:0], s.early[extra:]...)
	}
}

// attach directs output to sink, beginning with what came since the last run.
func (s *shell) attach(sink func([]byte)) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if len(s.early) > 0 {
		sink(s.early)
		s.early = nil
	}
	s.sink = sink
}

// detach keeps further output for the next run.
func (s *shell) detach() {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	s.sink = nil
}

// discard drops further output: there is no next run.
func (s *shell) discard() {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	s.sink, s.early = func([]byte) {}, nil
}

// ended reports whether the shell is gone.
func (s *shell) ended() bool {
	select {
	case <-s.proc.Done():
		return true
	default:
		return false
	}
}
