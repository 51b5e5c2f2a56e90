package code

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const interruptSignal = syscall.SIGINT

// maxSaid bounds what is kept of what a kernel's process prints by itself, in
// bytes. Its code's output comes as messages.
const maxSaid = 4 << 10

// localKernel is a kernel that execd has started.
type localKernel struct {
	spec *jupyter.Spec
	proc *process.Process
	conn *jupyter.Connection
	// out carries standard output and error.
	out *process.Pipe
	// over is closed when the process has ended and its files are deleted.
	over chan struct{}

	mu   sync.Mutex
	said []byte
}

// startKernel starts a kernel. It does not wait until it is ready.
func startKernel(o Options, waits kernelWaits, spec *jupyter.Spec, dir string) (backend, error) {
	l := &localKernel{spec: spec, over: make(chan struct{})}
	remove, err := l.launch(o, dir)
	if err != nil {
		return nil, err
	}
	go l.out.Pump(l.hear)
	go func() {
		defer close(l.over)
		<-l.proc.Done()
		remove()
	}()
	return newKernel(l, waits, ""), nil
}

// launch starts the process. remove deletes its files.
func (l *localKernel) launch(o Options, dir string) (remove func(), err error) {
	g := o.Guest()
	env, path := g.Environ(g.Identity, nil)
	look := func(name string) (string, error) { return process.Look(name, path, dir) }
	program, err := l.spec.Program(look)
	if err != nil {
		return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "the kernel %s can't be started: %v", l.spec.Name, err)
	}
	spec := process.Spec{Path: program, Dir: dir, Credential: command.Credential(g.Identity)}
	home, err := os.MkdirTemp("", "paddock-kernel-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(home)
		}
	}()
	file, err := l.address(home, spec.Credential)
	if err != nil {
		return nil, err
	}
	spec.Argv = l.spec.Command(file)
	spec.Env = l.spec.Environ(env, func(name string) string {
		for _, v := range env {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, end, err := process.NewPipe()
	if err != nil {
		return nil, err
	}
	defer end.Close()
	spec.Files = []*os.File{null, end, end}
	if l.proc, err = o.Table.Start(spec); err != nil {
		out.Abandon()
		return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "starting the kernel %s: %v", l.spec.Name, process.ExplainExec(program, err))
	}
	l.out = out
	return func() { os.RemoveAll(home) }, nil
}

// address decides where the kernel listens and writes that into a file in
// home, which becomes the kernel's own. ipykernel gets sockets in home, which
// nobody else can take or reach. Other kernels may know no others than ports.
func (l *localKernel) address(home string, cred *syscall.Credential) (file string, err error) {
	if l.spec.Python() {
		l.conn = jupyter.OverIPC(filepath.Join(home, "s"), l.spec.Name)
	} else if l.conn, err = jupyter.OverTCP(l.spec.Name); err != nil {
		return "", err
	}
	file = filepath.Join(home, "kernel.json")
	if err := os.WriteFile(file, l.conn.File(), 0o600); err != nil {
		return "", err
	}
	if cred == nil {
		return file, nil
	}
	for _, path := range []string{file, home} {
		if err := os.Lchown(path, int(cred.Uid), int(cred.Gid)); err != nil {
			return "", err
		}
	}
	return file, nil
}

// hear keeps the end of what the process prints.
func (l *localKernel) hear(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, b[max(0, len(b)-maxSaid):]...)
	if extra := len(l.said) - maxSaid; extra > 0 {
		l.said = append(l.said[:0], l.said[extra:]...)
	}
}

func (l *localKernel) title() string { return "the kernel " + l.spec.Name }

func (l *localKernel) connect(ctx context.Context, _ string, h jupyter.Handler) (jupyter.Conn, error) {
	return jupyter.Dial(ctx, l.conn, h)
}

func (l *localKernel) done() <-chan struct{} { return l.over }

func (l *localKernel) ending() (process.Exit, string) {
	exit := l.proc.Exit()
	return exit, exit.String()
}

func (l *localKernel) failure() string {
	stop := make(chan struct{})
	defer time.AfterFunc(killWait, func() { close(stop) }).Stop()
	l.out.Drain(stop)
	l.mu.Lock()
	said := strings.TrimSpace(strings.ToValidUTF8(string(l.said), "\ufffd"))
	l.mu.Unlock()
	text := l.proc.Exit().String()
	if said != "" {
		text += ": " + said
	}
	return text
}

func (l *localKernel) byMessage() bool { return l.spec.ByMessage() }

func (l *localKernel) interrupt() { l.proc.Signal(interruptSignal) }

func (l *localKernel) children(since process.Stamp) []process.Member { return l.proc.Family(since) }

func (l *localKernel) beat(ctx context.Context) error { return jupyter.Beat(ctx, l.conn) }

func (l *localKernel) gentle() bool { return false }

func (l *localKernel) kill() { l.proc.SignalGroup(syscall.SIGKILL) }
