package process

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// chunkSize is the default capacity of a Linux pipe (pipe(7)), so one read can
// empty it.
const chunkSize = 64 << 10

// chunks are shared by all pumps: a silent process costs no buffer.
var chunks = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// pump reads several pipes in one goroutine, in the order in which they became
// readable. That order is what is left of the order of writes to two pipes, and
// only an edge-triggered epoll of their own gives it: the kernel keeps such
// events in a queue, while Go's poller wakes goroutines in any order.
type pump struct {
	pipes []*Pipe
	sink  func(i int, b []byte)
	epoll *os.File
	raw   syscall.RawConn
	// ready are indexes of pipes that may have data, the earliest first.
	ready []int
	open  int
}

// PumpAll is Pipe.Pump for several pipes; i says which one bytes came from.
func PumpAll(pipes []*Pipe, sink func(i int, b []byte)) {
	p := &pump{pipes: pipes, sink: sink, open: len(pipes)}
	if err := p.start(); err != nil {
		// Out of descriptors or memory. The output can't be had; the writers
		// must not hang.
		for _, pipe := range pipes {
			pipe.finish()
		}
		return
	}
	defer p.epoll.Close()
	for p.open > 0 {
		p.poll(len(p.ready) == 0)
		if len(p.ready) == 0 {
			continue
		}
		i := p.ready[0]
		p.ready = p.ready[1:]
		p.read(i)
	}
}

func (p *pump) start() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	// Makes os.NewFile hand it to Go's poller, so that waiting takes no thread.
	_ = unix.SetNonblock(fd, true)
	p.epoll = os.NewFile(uintptr(fd), "epoll")
	if p.raw, err = p.epoll.SyscallConn(); err != nil {
		p.epoll.Close()
		return err
	}
	for i, pipe := range p.pipes {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(i)}
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, pipe.fd, &ev); err != nil {
			p.epoll.Close()
			return err
		}
	}
	return nil
}

// poll moves events to ready. It waits for one when wait is set.
func (p *pump) poll(wait bool) {
	var events [8]unix.EpollEvent
	n := 0
	err := p.raw.Read(func(fd uintptr) bool {
		for {
			var err error
			if n, err = unix.EpollWait(int(fd), events[:], 0); err != unix.EINTR {
				break
			}
		}
		return n > 0 || !wait
	})
	if err != nil {
		return
	}
	for _, e := range events[:max(n, 0)] {
		i := int(e.Fd)
		if e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			p.pipes[i].hungUp = true
		}
		if !slices.Contains(p.ready, i) {
			p.ready = append(p.ready, i)
		}
	}
}

// take reads into buf and counts what came, in one step: whoever looks finds the
// bytes either in the pipe or counted, and does not take it for settled.
func (p *Pipe) take(buf []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		n, err = syscall.Read(p.fd, buf)
		if err != syscall.EINTR {
			break
		}
	}
	if n > 0 {
		p.taken.Add(int64(n))
	}
	return n, err
}

// read takes one chunk from a pipe and gives it to the sink.
func (p *pump) read(i int) {
	pipe := p.pipes[i]
	if pipe.fd < 0 {
		return
	}
	buf := chunks.Get().(*[]byte)
	n, err := pipe.take(*buf)
	if n > 0 {
		p.sink(i, (*buf)[:n])
		pipe.given.Add(int64(n))
	}
	chunks.Put(buf)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return
	case err != nil || n == 0:
		p.open--
		pipe.finish()
		return
	}
	if n == chunkSize || pipe.tap || pipe.hungUp {
		// There may be more, or the end, for which no new edge would come. It
		// takes its turn behind the others.
		p.ready = append(p.ready, i)
	}
	select {
	case pipe.progress <- struct{}{}:
	default:
	}
}
