package thread

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread of its own, waits, and returns what f returns. The
// thread ends some time after, so f may change what can't be changed back, such
// as cgroups and namespaces. What f forks inherits it. The thread is never the
// process's main thread (see OnMain).
func Run(f func() error) error {
	done := make(chan error, 1)
	go run(f, done)
	return <-done
}

func run(f func() error, done chan<- error) {
	runtime.LockOSThread()
	if OnMain() {
		// While this goroutine keeps the main thread, another one can't get
		// it.
		defer runtime.UnlockOSThread()
		inner := make(chan error, 1)
		go run(f, inner)
		done <- <-inner
		return
	}
	// Never unlocked: the thread ends with this goroutine.
	done <- f()
}

// OnMain reports whether the caller is on the process's main thread. That one
// can't end before the process does: when a goroutine that is locked to it
// ends, the Go runtime parks it for ever, in whatever cgroups and namespaces it
// is. And it is the one that /proc/self shows.
func OnMain() bool { return unix.Gettid() == unix.Getpid() }

// KeepCapabilities has the calling thread keep its capabilities when its fsuid
// changes.
func KeepCapabilities() error {
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP, include/uapi/linux/securebits.h
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping a thread's capabilities: %w", err)
	}
	return nil
}

// OwnMounts gives the calling thread a mount namespace. Mounts and unmounts of
// the host still reach it, so that it pins nothing.
func OwnMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detaching the mount namespace: %w", err)
	}
	return nil
}
