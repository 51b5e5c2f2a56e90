package pty

import (
	"os"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// start starts the program. The caller holds mu.
func (s *session) start(terminal bool) error {
	spec, err := s.plan.spec(terminal)
	if err != nil {
		return err
	}
	if terminal {
		return s.startTerminal(spec)
	}
	return s.startPipes(spec)
}

func (s *session) startTerminal(spec process.Spec) error {
	tty, slave, err := openTerminal(s.plan.size, s.plan.identity.UID)
	if err != nil {
		return err
	}
	defer slave.Close()
	fd, err := tty.tap()
	if err != nil {
		tty.f.Close()
		return err
	}
	out := process.NewTap(fd)
	spec.Files = []*os.File{slave, slave, slave}
	proc, err := s.procs.Start(spec)
	if err != nil {
		out.Abandon()
		tty.f.Close()
		return process.ExplainExec(spec.Path, err)
	}
	s.tty = tty
	s.run(proc, newInput(tty.f, true, s.inputFailed), out)
	return nil
}

func (s *session) startPipes(spec process.Spec) error {
	stdin, stdinEnd, err := inputPipe()
	if err != nil {
		return err
	}
	defer stdinEnd.Close()
	outs := make([]*process.Pipe, 0, 2)
	spec.Files = []*os.File{stdinEnd}
	abandon := func() {
		stdin.Close()
		for _, p := range outs {
			p.Abandon()
		}
	}
	for range 2 {
		p, w, err := process.NewPipe()
		if err != nil {
			abandon()
			return err
		}
		defer w.Close()
		outs = append(outs, p)
		spec.Files = append(spec.Files, w)
	}
	proc, err := s.procs.Start(spec)
	if err != nil {
		abandon()
		return process.ExplainExec(spec.Path, err)
	}
	s.run(proc, newInput(stdin, false, s.inputFailed), outs...)
	return nil
}

// inputPipe returns the end of a pipe that execd writes to, and the one to give
// to the program.
func inputPipe() (w, r *os.File, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// Only our end: programs expect a blocking stdin.
	_ = syscall.SetNonblock(fds[1], true)
	return os.NewFile(uintptr(fds[1]), "stdin"), os.NewFile(uintptr(fds[0]), "stdin"), nil
}

// run begins to serve a started program. The caller holds mu.
func (s *session) run(proc *process.Process, in *input, outs ...*process.Pipe) {
	s.proc, s.in = proc, in
	prefixes := [...]byte{prefixStdout, prefixStderr}
	go process.PumpAll(outs, func(i int, b []byte) { s.output(prefixes[i], b) })
	go s.await(proc, outs)
}
