package command

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/history"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// startFailed is the recorded exit code of what could not be started
// (OpenSandbox execd API).
const startFailed = 255

// Command is one run. Its methods may be called in parallel.
type Command struct {
	ID      string
	Content string
	Started time.Time

	plan *plan
	ring *history.Ring
	// proc and pipes are nil when it could not be started.
	proc  *process.Process
	pipes []*process.Pipe
	// stream is nil for a background command.
	stream *event.Stream
	timer  *time.Timer
	// done is closed when the command has ended and its output was kept.
	done chan struct{}

	// killed is closed when the timeout has done its work; timedOut says whether
	// there was any.
	killed   chan struct{}
	timedOut atomic.Bool

	mu       sync.Mutex
	stopping chan struct{}
	outcome  outcome
}

// outcome is how a command ended. The zero value means that it has not.
type outcome struct {
	finished time.Time
	code     int
	// message is empty for exit code 0.
	message string
}

func newID() string {
	var b [16]byte
	// Never fails on Linux (crypto/rand).
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// start runs the program. On failure the command has ended.
func (c *Command) start(procs *process.Table) error {
	err := c.plan.err
	if err == nil {
		err = c.launch(procs)
	}
	if c.plan.script != nil {
		c.plan.script.Close()
	}
	if err != nil {
		c.finish(outcome{code: startFailed, message: err.Error()})
		return err
	}
	if c.plan.timeout > 0 {
		c.killed = make(chan struct{})
		c.timer = time.AfterFunc(c.plan.timeout, c.expire)
	}
	return nil
}

func (c *Command) launch(procs *process.Table) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	out, outEnd, err := process.NewPipe()
	if err != nil {
		return err
	}
	defer outEnd.Close()
	c.pipes = []*process.Pipe{out}
	errEnd := outEnd
	if !c.plan.background {
		// A background command's two streams share a pipe, and are kept in
		// exact order.
		var second *process.Pipe
		if second, errEnd, err = process.NewPipe(); err != nil {
			out.Abandon()
			return err
		}
		defer errEnd.Close()
		c.pipes = append(c.pipes, second)
	}
	c.plan.spec.Files = []*os.File{null, outEnd, errEnd}
	if c.plan.script != nil {
		c.plan.spec.Files = append(c.plan.spec.Files, c.plan.script)
	}
	c.proc, err = procs.Start(c.plan.spec)
	if err != nil {
		for _, p := range c.pipes {
			p.Abandon()
		}
		c.pipes = nil
		return process.ExplainExec(c.plan.spec.Path, err)
	}
	return nil
}

// pump starts the reader of the output. It ends with the last process that
// holds the pipes, which may be long after the command.
func (c *Command) pump() {
	ring, stream := c.ring, c.stream
	kinds := [...]string{event.Stdout, event.Stderr}
	go process.PumpAll(c.pipes, func(i int, b []byte) {
		ring.Write(b)
		if stream != nil {
			stream.Output(kinds[i], b)
		}
	})
}

// await returns when the command has ended and its output was dealt with. When
// gone is closed it stops the command first.
func (c *Command) await(gone <-chan struct{}) {
	var broken <-chan struct{}
	if c.stream != nil {
		broken = c.stream.Gone()
	}
	select {
	case <-c.proc.Done():
	case <-gone:
		c.stream.Close()
		c.Stop()
	case <-broken:
		c.Stop()
	}
	<-c.proc.Done()
	expired := c.expired()
	var drains sync.WaitGroup
	for _, p := range c.pipes {
		drains.Go(func() { p.Drain(broken) })
	}
	drains.Wait()
	exit := c.proc.Exit()
	o := outcome{code: exit.Code}
	switch {
	case expired:
		o.code, o.message = -1, "timeout: the command was killed after "+c.plan.timeout.String()
	case exit != process.Exit{}:
		o.message = exit.String()
	}
	c.finish(o)
}

// report sends the terminal event.
func (c *Command) report() {
	c.mu.Lock()
	o := c.outcome
	c.mu.Unlock()
	if o.message == "" {
		c.stream.Complete(o.finished.Sub(c.Started))
		return
	}
	c.stream.Error(event.ExecError, strconv.Itoa(o.code), o.message)
}

func (c *Command) finish(o outcome) {
	o.finished = time.Now()
	c.mu.Lock()
	c.outcome = o
	c.mu.Unlock()
	close(c.done)
}

// ended reports whether the command is over.
func (c *Command) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// expire is the timeout. It kills all that the command has started, daemons
// included: a command that takes too long has gone wrong as a whole.
func (c *Command) expire() {
	// False when the command ended just now.
	c.timedOut.Store(c.proc.KillAll())
	close(c.killed)
}

// expired waits for the timeout, if that is about to end the command, and
// reports whether it did.
func (c *Command) expired() bool {
	if c.timer == nil || c.timer.Stop() {
		return false
	}
	<-c.killed
	return c.timedOut.Load()
}

// Stop ends the command with all that it has started: SIGTERM, and SIGKILL after
// a grace period. It returns when the command's process has ended; the others
// keep the rest of the grace period. Parallel calls share one attempt.
func (c *Command) Stop() {
	c.mu.Lock()
	if stopping := c.stopping; stopping != nil {
		c.mu.Unlock()
		<-stopping
		return
	}
	stopping := make(chan struct{})
	c.stopping = stopping
	c.mu.Unlock()
	defer close(stopping)
	c.proc.StopAll()
}
