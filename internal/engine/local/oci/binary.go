package oci

import (
	"os"
	"sync"
	"syscall"
)

// binary is the file of an OCI runtime, to be started again and again.
//
// crun keeps containers from overwriting it through /proc/self/exe
// (CVE-2019-5736): unless it was started from a sealed file in memory, it opens
// itself in a way that can't be written to and starts a second time from there,
// which is half of the CPU time of a start with nothing to do. So it is started
// from a sealed file in memory at once, from the same one for all sandboxes.
type binary struct {
	path string
	// asIs starts the file itself.
	asIs bool

	mu     sync.Mutex
	sealed *os.File
	of     identity
}

// identity tells whether the file was replaced, as by an update of its package.
type identity struct {
	dev, ino, size uint64
	changed        syscall.Timespec
}

// open returns the sealed file, which has to stay open until the runtime is
// started; nil when the binary is to be started itself. It never fails: when no
// copy can be made, crun makes its own.
func (b *binary) open() *os.File {
	var st syscall.Stat_t
	if b.asIs || syscall.Stat(b.path, &st) != nil {
		return nil
	}
	now := identity{st.Dev, st.Ino, uint64(st.Size), st.Ctim}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sealed == nil || b.of != now {
		content, err := os.ReadFile(b.path)
		if err != nil {
			return nil
		}
		f, err := sealedFile("oci-runtime", content)
		if err != nil {
			return nil
		}
		// A start may still use the one before: it is closed when nobody has
		// it any more.
		b.sealed, b.of = f, now
	}
	return b.sealed
}

func (b *binary) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sealed == nil {
		return nil
	}
	err := b.sealed.Close()
	b.sealed = nil
	return err
}
