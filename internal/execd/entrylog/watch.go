package entrylog

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watcher says when one of the segments was written. A nil watcher never says
// anything.
type watcher struct {
	file   *os.File
	notify chan struct{}
	done   sync.WaitGroup
}

// newWatcher returns nil when the kernel has no instance left to give.
func newWatcher(paths [2]string) *watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "inotify"), notify: make(chan struct{}, 1)}
	for _, p := range paths {
		if _, err := unix.InotifyAddWatch(fd, p, unix.IN_MODIFY); err != nil {
			w.file.Close()
			return nil
		}
	}
	w.done.Go(w.run)
	return w
}

func (w *watcher) run() {
	// Which file it was does not matter; events are only drained.
	buf := make([]byte, 4096)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return
		}
		select {
		case w.notify <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) changed() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.notify
}

func (w *watcher) close() {
	if w == nil {
		return
	}
	w.file.Close()
	w.done.Wait()
}
