package process

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chunkSize is the default capacity of a Linux pipe (pipe(7)), so one read can
// empty it.
const chunkSize = 64 << 10

// Output of a command that goes on after its process ended, because a child
// inherited the pipe, is waited for until it was quiet for quietTime, and for
// at most drainTime.
const (
	quietTime = 100 * time.Millisecond
	drainTime = 2 * time.Second
)

// chunks are shared by all pipes: a silent process costs no buffer.
var chunks = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// Pipe carries one output stream of a process. Its reader goes on until every
// process that holds the other end has closed it, so a daemon that a command
// left behind is never hit by SIGPIPE nor blocked.
type Pipe struct {
	r   *os.File
	raw syscall.RawConn
	// taken counts bytes read from the pipe, given those that the sink has
	// dealt with.
	taken, given atomic.Int64
	progress     chan struct{}
	eof          chan struct{}
}

// NewPipe returns a pipe and the end to give to the process. The caller closes
// w once the process was started, or both ends (Abandon) if it was not.
func NewPipe() (p *Pipe, w *os.File, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	// Only our end: the flag belongs to the open file, and programs expect a
	// blocking stdout.
	_ = syscall.SetNonblock(fds[0], true)
	r := os.NewFile(uintptr(fds[0]), "pipe")
	raw, err := r.SyscallConn()
	if err != nil {
		r.Close()
		syscall.Close(fds[1])
		return nil, nil, err
	}
	p = &Pipe{r: r, raw: raw, progress: make(chan struct{}, 1), eof: make(chan struct{})}
	return p, os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// Abandon closes a pipe whose Pump was never started.
func (p *Pipe) Abandon() { p.r.Close() }

// Pump gives everything that comes through the pipe to sink, in order, until
// the end. The slice is valid during the call only. A sink that blocks blocks
// the writer, which is how back-pressure reaches the process.
func (p *Pipe) Pump(sink func([]byte)) {
	defer close(p.eof)
	defer p.r.Close()
	for {
		buf, n, err := p.read()
		if n > 0 {
			p.taken.Add(int64(n))
			sink((*buf)[:n])
			p.given.Add(int64(n))
		}
		if buf != nil {
			chunks.Put(buf)
		}
		if err != nil {
			return
		}
		select {
		case p.progress <- struct{}{}:
		default:
		}
	}
}

// read waits for data and takes a buffer only when there is some.
func (p *Pipe) read() (buf *[]byte, n int, err error) {
	waitErr := p.raw.Read(func(fd uintptr) bool {
		buf = chunks.Get().(*[]byte)
		for {
			n, err = syscall.Read(int(fd), *buf)
			if err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			chunks.Put(buf)
			buf, n, err = nil, 0, nil
			return false
		}
		return true
	})
	switch {
	case waitErr != nil:
		return buf, max(n, 0), waitErr
	case err != nil:
		return buf, 0, err
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}

// EOF is closed when the last writer has gone and the sink has had everything.
func (p *Pipe) EOF() <-chan struct{} { return p.eof }

// Drain is called after the process has ended. It returns when the sink has
// had everything that was written until then, and either the end of the stream
// came, or nothing more came for a short time, or a bounded time has passed.
// It gives up waiting when stop is closed.
func (p *Pipe) Drain(stop <-chan struct{}) {
	goal := int64(p.pending()) + p.taken.Load()
	deadline := time.NewTimer(drainTime)
	defer deadline.Stop()
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	overdue, settled := false, false
	for {
		select {
		case <-p.eof:
			return
		case <-stop:
			return
		case <-p.progress:
			quiet.Reset(quietTime)
		case <-quiet.C:
			// A sink that is held up by a slow client is not quiet.
			if settled = settled || p.empty(); settled && p.empty() {
				return
			}
			quiet.Reset(quietTime)
		case <-deadline.C:
			overdue = true
		}
		if settled = settled || p.given.Load() >= goal || p.empty(); settled && overdue {
			return
		}
	}
}

// Settle returns when the sink has had everything that was written until now,
// or stop is closed.
func (p *Pipe) Settle(stop <-chan struct{}) {
	goal := int64(p.pending()) + p.taken.Load()
	// The pump may have moved bytes between the two reads above, so that the
	// goal is too high; emptiness is as good.
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for p.given.Load() < goal && !p.empty() {
		select {
		case <-p.eof:
			return
		case <-stop:
			return
		case <-p.progress:
		case <-again.C:
		}
	}
}

// empty reports whether the sink has had all that was ever written.
func (p *Pipe) empty() bool {
	return p.pending() == 0 && p.given.Load() == p.taken.Load()
}

// pending is the number of bytes in the kernel's buffer.
func (p *Pipe) pending() int {
	n := 0
	_ = p.raw.Control(func(fd uintptr) {
		n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return n
}
