package process

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Output of a command that goes on after its process ended, because a child
// inherited the pipe, is waited for until it was quiet for quietTime, and for
// at most drainTime.
const (
	quietTime = 100 * time.Millisecond
	drainTime = 2 * time.Second
)

// Pipe carries one output stream of a process. It is read until every process
// that holds the other end has closed it, so a daemon that a command left
// behind is never hit by SIGPIPE nor blocked.
type Pipe struct {
	// mu guards fd against use after close; -1 when closed.
	mu sync.Mutex
	fd int
	// tap is set for a terminal, which gives its data in pieces: that a read
	// was short does not mean that there is no more.
	tap bool
	// hungUp is set when the last writer has gone. Only the pump uses it.
	hungUp bool
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
	p = &Pipe{fd: fds[0], progress: make(chan struct{}, 1), eof: make(chan struct{})}
	return p, os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// NewTap returns a pipe that reads what is written to a terminal. fd is a
// descriptor of the terminal's master side and becomes the pipe's own; it must
// not block.
func NewTap(fd int) *Pipe {
	return &Pipe{fd: fd, tap: true, progress: make(chan struct{}, 1), eof: make(chan struct{})}
}

// Abandon closes a pipe that nobody pumps.
func (p *Pipe) Abandon() { p.close() }

func (p *Pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		syscall.Close(p.fd)
		p.fd = -1
	}
}

// finish closes the pipe after its last byte was given to the sink.
func (p *Pipe) finish() {
	p.close()
	close(p.eof)
}

// Pump gives everything that comes through the pipe to sink, in order, until
// the end. The slice is valid during the call only. A sink that blocks blocks
// the writer, which is how back-pressure reaches the process.
func (p *Pipe) Pump(sink func([]byte)) {
	PumpAll([]*Pipe{p}, func(_ int, b []byte) { sink(b) })
}

// EOF is closed when the last writer has gone and the sink has had everything.
func (p *Pipe) EOF() <-chan struct{} { return p.eof }

// Drain is called after the process has ended. It returns when the sink has
// had everything that was written until then, and either the end of the stream
// came, or nothing more came for a short time, or a bounded time has passed.
// It gives up waiting when stop is closed.
func (p *Pipe) Drain(stop <-chan struct{}) {
	p.await(stop, true)
}

// Settle returns when the sink has had everything that was written until now,
// or stop is closed.
func (p *Pipe) Settle(stop <-chan struct{}) {
	p.await(stop, false)
}

func (p *Pipe) await(stop <-chan struct{}, quietToo bool) {
	goal := int64(p.pending()) + p.taken.Load()
	// The pump may have moved bytes between the two reads above, so that the
	// goal is too high. Having been empty once is as good as reaching it.
	reached := func() bool { return p.given.Load() >= goal || p.empty() }
	settled := reached()
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	deadline := time.NewTimer(drainTime)
	defer deadline.Stop()
	overdue := false
	for {
		if settled = settled || reached(); settled && (overdue || !quietToo) {
			return
		}
		select {
		case <-p.eof:
			return
		case <-stop:
			return
		case <-p.progress:
			quiet.Reset(quietTime)
		case <-quiet.C:
			// A sink that is held up by a slow client is not quiet.
			if settled = settled || reached(); settled && p.empty() {
				return
			}
			quiet.Reset(quietTime)
		case <-deadline.C:
			overdue = true
		}
	}
}

// empty reports whether the sink has had all that was ever written.
func (p *Pipe) empty() bool {
	return p.pending() == 0 && p.given.Load() == p.taken.Load()
}

// pending is the number of bytes in the kernel's buffer.
func (p *Pipe) pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return 0
	}
	n, _ := unix.IoctlGetInt(p.fd, unix.TIOCINQ)
	return n
}
