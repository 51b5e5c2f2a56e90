package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// OOMKills is how many processes of the group the kernel has killed because a
// memory limit was reached. Zero without a memory controller. The kernel counts
// before it sends the signal: who sees a victim's end sees it counted.
func (g *Group) OOMKills() (int64, error) {
	d := g.p.memory
	if d == nil {
		return 0, nil
	}
	if d.v2 {
		return d.field(g.id+"/memory.events", "oom_kill")
	}
	return d.field(g.id+"/memory.oom_control", "oom_kill")
}

// WatchOOM calls wake soon after each change of OOMKills, from a goroutine that
// serves all groups: it must not wait. It is called without a change, too; with
// v1 when the limit is reached, which is a moment before a process is chosen.
// Several changes may be one call. The watching ends with stop, which must be
// called before the Parent is closed, and with the group; a call of wake may
// be under way when stop returns. Without a memory controller nothing is
// watched and nothing fails.
func (g *Group) WatchOOM(wake func()) (stop func(), err error) {
	d := g.p.memory
	switch {
	case d == nil:
		return func() {}, nil
	case d.v2:
		// Changes of memory.events are file modifications, which the kernel
		// reports at most every 10 ms (Documentation/admin-guide/cgroup-v2.rst).
		w, err := g.p.watcher()
		if err != nil {
			return nil, err
		}
		return w.watch(filepath.Join(d.path, g.id, "memory.events"), wake)
	}
	o, err := g.p.oomWatcher()
	if err != nil {
		return nil, err
	}
	return o.watch(d, g.id, wake)
}

// oomWatcher returns the parent's watcher of v1 and makes it first if need be.
func (p *Parent) oomWatcher() (*oomWatcher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	if p.ooms == nil {
		o, err := newOOMWatcher()
		if err != nil {
			return nil, fmt.Errorf("watching for kills by memory: %w", err)
		}
		p.ooms = o
	}
	return p.ooms, nil
}

// oomWatcher waits for the event descriptors to which v1 reports that a group
// is out of memory (Documentation/admin-guide/cgroup-v1/memory.rst, "OOM
// Control"). One epoll instance and one goroutine serve all groups; the
// goroutine ends with close.
type oomWatcher struct {
	poll *os.File

	mu    sync.Mutex
	wakes map[int]func() // by event descriptor; nil once closed
}

func newOOMWatcher() (*oomWatcher, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// So that the runtime's poller takes it, and no thread waits for it.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	o := &oomWatcher{poll: os.NewFile(uintptr(fd), "epoll"), wakes: map[int]func(){}}
	go o.run()
	return o, nil
}

func (o *oomWatcher) watch(d *dir, group string, wake func()) (stop func(), err error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wakes == nil {
		unix.Close(event)
		return nil, os.ErrClosed
	}
	if err := o.add(d, group, event); err != nil {
		unix.Close(event)
		return nil, fmt.Errorf("watching for kills by memory: %w", err)
	}
	o.wakes[event] = wake
	return sync.OnceFunc(func() { o.unwatch(event) }), nil
}

// add has the kernel report to event, and event to the poller. Each report is
// an edge, so that nobody has to read the descriptor's count.
func (o *oomWatcher) add(d *dir, group string, event int) error {
	name := filepath.Join(group, "memory.oom_control")
	control, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	defer unix.Close(control)
	if err := d.write(filepath.Join(group, "cgroup.event_control"), fmt.Sprintf("%d %d", event, control)); err != nil {
		return err
	}
	raw, err := o.poll.SyscallConn()
	if err != nil {
		return err
	}
	var aerr error
	err = raw.Control(func(fd uintptr) {
		aerr = unix.EpollCtl(int(fd), unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(event)})
	})
	return errors.Join(err, os.NewSyscallError("epoll_ctl", aerr))
}

// unwatch closes the descriptor: kernel and poller forget it with that.
func (o *oomWatcher) unwatch(event int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.wakes[event]; ok {
		delete(o.wakes, event)
		unix.Close(event)
	}
}

func (o *oomWatcher) run() {
	raw, err := o.poll.SyscallConn()
	if err != nil {
		return // closed
	}
	events := make([]unix.EpollEvent, 64)
	for {
		var n int
		err := raw.Read(func(fd uintptr) bool {
			n, _ = retry(func() (int, error) { return unix.EpollWait(int(fd), events, 0) })
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, ev := range events[:n] {
			o.wake(int(ev.Fd))
		}
	}
}

// wake is for a number that may be another group's descriptor by now, which
// costs a look for nothing.
func (o *oomWatcher) wake(event int) {
	o.mu.Lock()
	wake := o.wakes[event]
	o.mu.Unlock()
	if wake != nil {
		wake()
	}
}

func (o *oomWatcher) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for event := range o.wakes {
		unix.Close(event)
	}
	o.wakes = nil
	o.poll.Close()
}
