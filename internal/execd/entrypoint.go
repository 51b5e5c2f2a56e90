package execd

import (
	"os"
	"sync"

	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// entryLog is the part of *entrylog.Writer that an entrypoint needs.
type entryLog = *entrylog.Writer

// entrypoint is the program that the sandbox was made for.
type entrypoint struct {
	proc *process.Process
	// logged is closed when it has ended and its log is complete.
	logged chan struct{}
}

// newEntrypoint starts the program with its output going to log, which may be
// nil. It is a function of its own so that descriptors are closed on every way
// out.
func newEntrypoint(procs *process.Table, log entryLog, spec process.Spec) (*entrypoint, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, outEnd, err := process.NewPipe()
	if err != nil {
		return nil, err
	}
	defer outEnd.Close()
	errs, errsEnd, err := process.NewPipe()
	if err != nil {
		out.Abandon()
		return nil, err
	}
	defer errsEnd.Close()
	spec.Files = []*os.File{null, outEnd, errsEnd}
	proc, err := procs.Start(spec)
	if err != nil {
		out.Abandon()
		errs.Abandon()
		return nil, err
	}
	e := &entrypoint{proc: proc, logged: make(chan struct{})}
	streams := [...]entrylog.Stream{entrylog.Stdout, entrylog.Stderr}
	go process.PumpAll([]*process.Pipe{out, errs}, func(i int, b []byte) {
		if log != nil {
			log.Write(streams[i], b)
		}
	})
	go e.await(out, errs)
	return e, nil
}

// await closes logged. Children of the entrypoint that keep its output open
// delay that for a short, bounded time only.
func (e *entrypoint) await(pipes ...*process.Pipe) {
	<-e.proc.Done()
	var drains sync.WaitGroup
	for _, p := range pipes {
		drains.Go(func() { p.Drain(nil) })
	}
	drains.Wait()
	close(e.logged)
}
