package hooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

const (
	// maxLogged bounds what one run adds to the entrypoint's log, in bytes: a
	// talkative hook must not push the entrypoint's own output out of it.
	maxLogged = 256 << 10
	// maxTail is how much of the end of a run's output is kept, in bytes, to
	// explain its failure.
	maxTail = 512
	// maxProblem bounds the reason why a hook could not be started, in bytes.
	maxProblem = 256
)

// outcome is how a run ended.
type outcome struct {
	took     time.Duration
	exit     process.Exit
	timedOut bool
	// stopped means that the sandbox did not want it any more.
	stopped bool
	problem string
	// tail is the end of the output, as printable text.
	tail string
}

// failure says in words what went wrong, empty for a success.
func (o *outcome) failure(timeout time.Duration) string {
	switch {
	case o.problem != "":
		return "could not be started: " + o.problem
	case o.timedOut:
		return fmt.Sprintf("did not end within %s and was killed", timeout)
	case o.stopped:
		return "was broken off"
	case o.exit != process.Exit{}:
		return "failed: " + o.exit.String()
	}
	return ""
}

// run runs a command to its end, at most for the timeout and until ctx ends.
func (r *Runner) run(ctx context.Context, argv []string, timeout time.Duration) *outcome {
	began := time.Now()
	sink := &sink{log: r.cfg.Log}
	o := r.execute(ctx, argv, timeout, sink)
	o.took = time.Since(began)
	o.tail = sink.end()
	return o
}

func (r *Runner) execute(ctx context.Context, argv []string, timeout time.Duration, out *sink) *outcome {
	since := process.Now()
	proc, pipes, err := r.launch(argv)
	if err != nil {
		return &outcome{problem: shorten(err.Error(), maxProblem), exit: process.Exit{Code: -1}}
	}
	go process.PumpAll(pipes, out.write)
	o := &outcome{}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-proc.Done():
	case <-timer.C:
		o.timedOut = true
		end(proc, since)
	case <-ctx.Done():
		o.stopped = true
		end(proc, since)
	}
	var drains sync.WaitGroup
	for _, p := range pipes {
		drains.Go(func() { p.Drain(nil) })
	}
	drains.Wait()
	select {
	case <-proc.Done():
		o.exit = proc.Exit()
	default: // stuck in the kernel
		o.exit = process.Exit{Code: -1}
	}
	return o
}

// end kills a run and everything that it started. The family is looked up
// before: afterwards nobody knows whose children they were.
func end(proc *process.Process, since process.Stamp) {
	family := proc.Family(since)
	proc.Stop()
	proc.KillRest()
	process.Signal(family, syscall.SIGKILL)
}

// launch starts the program as the entrypoint would be started.
func (r *Runner) launch(argv []string) (*process.Process, []*process.Pipe, error) {
	g := r.cfg.Guest
	env, path := g.Environ(g.Identity, nil)
	file, err := process.Look(argv[0], path, g.Cwd)
	if err != nil {
		return nil, nil, fmt.Errorf("%q: %w", shorten(argv[0], maxProblem/2), err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	out, outEnd, err := process.NewPipe()
	if err != nil {
		return nil, nil, err
	}
	defer outEnd.Close()
	errs, errsEnd, err := process.NewPipe()
	if err != nil {
		out.Abandon()
		return nil, nil, err
	}
	defer errsEnd.Close()
	proc, err := r.cfg.Procs.Start(process.Spec{
		Path: file, Argv: argv, Env: env, Dir: g.Cwd,
		Files:      []*os.File{null, outEnd, errsEnd},
		Credential: command.Credential(g.Identity),
		NewSession: true,
	})
	if err != nil {
		out.Abandon()
		errs.Abandon()
		return nil, nil, process.ExplainExec(file, err)
	}
	return proc, []*process.Pipe{out, errs}, nil
}

// sink takes the output of one run.
type sink struct {
	log *entrylog.Writer

	mu     sync.Mutex
	logged int
	left   int64 // bytes that were not logged
	tail   []byte
	ended  bool
}

// write takes output of stream i, 0 for stdout. After the end of the run it may
// still be called, for processes that the hook left behind.
func (s *sink) write(i int, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.tail = append(s.tail, b[max(0, len(b)-maxTail):]...)
		s.tail = append(s.tail[:0], s.tail[max(0, len(s.tail)-maxTail):]...)
	}
	n := min(len(b), maxLogged-s.logged)
	s.logged += n
	s.left += int64(len(b) - n)
	if s.log != nil && n > 0 {
		s.log.Write([...]entrylog.Stream{entrylog.Stdout, entrylog.Stderr}[i], b[:n])
	}
}

// end returns the end of the output and says in the log what was left out.
func (s *sink) end() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.log != nil && s.left > 0 {
		s.log.Write(entrylog.Stderr, fmt.Appendf(nil, "\n[%d bytes of the hook's output were left out]\n", s.left))
	}
	tail := printable(string(s.tail))
	s.tail = nil
	return tail
}

// printable makes output that may hold anything safe for a message.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '\n':
			return c
		case c == '\t':
			return ' '
		case c < ' ', c >= 0x7f && c < 0xa0:
			return -1
		}
		return c
	}, s)
	return strings.TrimSpace(s)
}

// shorten cuts a text to n bytes.
func shorten(s string, n int) string {
	if len(s) <= n {
		return printable(s)
	}
	return printable(s[:n]) + "…"
}

// errNoCommand is the error of a hook without a program.
var errNoCommand = errors.New("it has no command")
