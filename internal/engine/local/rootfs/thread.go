package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	osthread "github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// errClosed is returned for work handed to a closed Threads.
var errClosed = errors.New("mount threads are closed")

// Threads is a fixed set of operating system threads that may change their
// mount namespace, root and fsuid. They are never given back to the Go
// scheduler, so no other goroutine can end up in a sandbox's namespace.
type Threads struct {
	scratch string
	byPath  bool
	work    chan func(*thread)
	stop    chan struct{}
	wg      sync.WaitGroup
}

// thread is one such thread. Its methods run on it only.
type thread struct {
	home int // the mount namespace where it belongs
	// scratch is where layers are attached when the kernel takes overlay
	// layers by path only; empty otherwise.
	scratch string
}

// NewThreads starts n threads. They need CAP_SYS_ADMIN. Kernels before 6.13
// take overlay layers by path only; there each thread has a mount namespace of
// its own, with a tmpfs on the existing directory scratch to attach layers in.
// byPath demands that way on any kernel.
func NewThreads(n int, scratch string, byPath bool) (*Threads, error) {
	t := &Threads{scratch: scratch, byPath: byPath || !layersByDescriptor(),
		work: make(chan func(*thread)), stop: make(chan struct{})}
	ready := make(chan error, n)
	for range n {
		t.wg.Add(1)
		go t.run(ready)
	}
	for range n {
		if err := <-ready; err != nil {
			t.Close()
			return nil, err
		}
	}
	return t, nil
}

func (t *Threads) run(ready chan<- error) {
	defer t.wg.Done()
	_ = osthread.Run(func() error {
		t.serve(ready)
		return nil
	})
}

// serve works until Close, on a thread that ends with it.
func (t *Threads) serve(ready chan<- error) {
	th, err := t.newThread()
	ready <- err
	if err != nil {
		return
	}
	defer unix.Close(th.home)
	for {
		select {
		case f := <-t.work:
			f(th)
			if th.home < 0 {
				// The way home was lost: this thread must not do anything
				// more. A new one takes its place.
				t.wg.Add(1)
				go t.run(make(chan error, 1))
				return
			}
		case <-t.stop:
			return
		}
	}
}

// layersByDescriptor reports whether overlayfs takes detached mounts as layers,
// by making an overlay of two empty directories. "lowerdir+" takes descriptors
// since Linux 6.13, but those of detached mounts only since a later one.
func layersByDescriptor() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	for range 2 {
		dir, err := os.MkdirTemp("", "paddock-probe-")
		if err != nil {
			return false
		}
		defer os.Remove(dir)
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		if unix.FsconfigSetFd(fs, "lowerdir+", fd) != nil {
			return false
		}
	}
	if unix.FsconfigCreate(fs) != nil {
		return false
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

func (t *Threads) newThread() (*thread, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unsharing a mount thread's root: %w", err)
	}
	// Overlayfs remembers the credentials of its mounter and needs them whole.
	if err := osthread.KeepCapabilities(); err != nil {
		return nil, err
	}
	th := &thread{}
	if t.byPath {
		if err := ownNamespace(t.scratch); err != nil {
			return nil, err
		}
		th.scratch = t.scratch
	}
	home, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a mount thread's namespace: %w", err)
	}
	th.home = home
	return th, nil
}

// ownNamespace gives the calling thread a mount namespace with an empty tmpfs
// on dir.
func ownNamespace(dir string) error {
	if err := osthread.OwnMounts(); err != nil {
		return err
	}
	if err := unix.Mount("paddock", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0711"); err != nil {
		return fmt.Errorf("mounting the scratch tmpfs: %w", err)
	}
	return nil
}

// do runs f on one of the threads and waits for it. Once f has begun it is not
// interrupted.
func (t *Threads) do(ctx context.Context, f func(*thread) error) error {
	done := make(chan error, 1)
	select {
	case t.work <- func(th *thread) { done <- f(th) }:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	case <-t.stop:
		return errClosed
	}
}

// Close ends the threads after the work that they are doing.
func (t *Threads) Close() {
	select {
	case <-t.stop:
	default:
		close(t.stop)
	}
	t.wg.Wait()
}

// as runs f with the given fsuid and fsgid.
func (th *thread) as(id uint32, f func() error) error {
	unix.SetfsuidRetUid(int(id))
	unix.SetfsgidRetGid(int(id))
	defer func() {
		unix.SetfsuidRetUid(0)
		unix.SetfsgidRetGid(0)
	}()
	return f()
}

// in runs f in the given mount namespace, with its root as root and working
// directory, and comes back.
func (th *thread) in(mntns int, f func() error) error {
	if err := unix.Setns(mntns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the mount namespace: %w", err)
	}
	ferr := f()
	if err := unix.Setns(th.home, unix.CLONE_NEWNS); err != nil {
		unix.Close(th.home)
		th.home = -1
		return errors.Join(ferr, fmt.Errorf("leaving the mount namespace: %w", err))
	}
	return ferr
}
