package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// await returns when what the group's cgroup.events says satisfies done.
func (p *Parent) await(ctx context.Context, id string, done func(events []byte) bool) error {
	name := filepath.Join(id, "cgroup.events")
	b, err := p.unified.read(name)
	if err != nil || done(b) {
		return err
	}
	w, err := p.watcher()
	if err != nil {
		return err
	}
	// Changes in quick succession are one.
	changed := make(chan struct{}, 1)
	stop, err := w.watch(filepath.Join(p.unified.path, name), func() {
		select {
		case changed <- struct{}{}:
		default: // a change is waiting to be seen already
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	for {
		// Read after the watch began, so that no change is missed.
		b, err := p.unified.read(name)
		if err != nil || done(b) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watcher returns the parent's watcher and makes it first if need be.
func (p *Parent) watcher() (*watcher, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	if p.events == nil {
		w, err := newWatcher()
		if err != nil {
			return nil, fmt.Errorf("watching cgroup events: %w", err)
		}
		p.events = w
	}
	return p.events, nil
}

// watcher tells of changes of files. The kernel reports a change of a
// cgroup.events file as a modification (Documentation/admin-guide/
// cgroup-v2.rst). One inotify instance serves all groups, since a user may have
// only 128. Its goroutine ends with close.
type watcher struct {
	f *os.File

	mu    sync.Mutex
	waits map[int32]map[*wait]struct{} // by watch descriptor
}

// wait is one who waits for changes of a file.
type wait struct{ wake func() }

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), waits: map[int32]map[*wait]struct{}{}}
	go w.run()
	return w, nil
}

// watch has wake called after each change of the file, and for nothing at times.
// wake must not wait, nor call the watcher. stop must be called.
func (w *watcher) watch(path string, wake func()) (stop func(), err error) {
	c := &wait{wake}
	w.mu.Lock()
	defer w.mu.Unlock()
	var added int
	err = w.control(func(fd int) (err error) {
		// For a file that is watched already the same descriptor comes back.
		added, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	wd := int32(added)
	if w.waits[wd] == nil {
		w.waits[wd] = map[*wait]struct{}{}
	}
	w.waits[wd][c] = struct{}{}
	return func() { w.unwatch(wd, c) }, nil
}

func (w *watcher) unwatch(wd int32, c *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waits[wd], c)
	if m, ok := w.waits[wd]; ok && len(m) == 0 {
		delete(w.waits, wd)
		// It fails only when the file, and its watch with it, is gone.
		_ = w.control(func(fd int) error {
			_, err := unix.InotifyRmWatch(fd, uint32(wd))
			return err
		})
	}
}

// control runs f with the descriptor, which stays open meanwhile.
func (w *watcher) control(f func(fd int) error) error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func (w *watcher) run() {
	buf := make([]byte, 16*1024)
	for {
		n, err := w.f.Read(buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // closed
		}
		w.dispatch(buf[:n])
	}
}

// dispatch reads inotify(7) events: watch descriptor, mask, cookie, length of
// the name that follows.
func (w *watcher) dispatch(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for wd := range w.waits {
				w.wake(wd)
			}
			continue
		}
		w.wake(wd)
		if mask&unix.IN_IGNORED != 0 {
			delete(w.waits, wd)
		}
	}
}

func (w *watcher) wake(wd int32) {
	for c := range w.waits[wd] {
		c.wake()
	}
}

func (w *watcher) close() { w.f.Close() }
