package history

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Limits, in bytes.
const (
	// MaxOutput is what is kept of one command.
	MaxOutput = 16 << 20
	// MaxTotal is what is kept of all.
	MaxTotal = 256 << 20
	// minOutput is what each command may keep even when the budget is used up.
	minOutput = 64 << 10
	// maxInMemory is what is kept of a command when no directory accepts a
	// file, because the sandbox's filesystems are read-only: memory is dearer.
	maxInMemory = 256 << 10
	// growStep is how much of the budget a ring takes at a time.
	growStep = 256 << 10
)

// Dirs are tried in order for the files.
var Dirs = []string{"/tmp", "/var/tmp", "/"}

// Budget is shared by rings. The zero value is a full one.
type Budget struct {
	used atomic.Int64
	// Max is MaxTotal when 0.
	Max int64
}

func (b *Budget) take(n int64) bool {
	limit := b.Max
	if limit == 0 {
		limit = MaxTotal
	}
	if b.used.Add(n) > limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// Used is how much of the budget is taken, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

// Ring keeps the newest output of one command. Its methods may be called in
// parallel.
type Ring struct {
	mu     sync.Mutex
	budget *Budget
	// fd is -1 while there is no file. It is a bare descriptor because there may
	// be hundreds of rings, and an os.File is four objects on the heap.
	fd     int
	closed bool
	// failed is set when no file could be made.
	failed bool
	// total counts bytes ever written; [base, total) are kept. Offset o is at
	// o % size in the file.
	total, base int64
	// size is the ring's capacity. It may grow until the first wrap.
	size, max int64
	charged   int64
}

// NewRing returns an empty ring. The file is made by the first Write, and stays
// until Close.
func NewRing(b *Budget) *Ring { return &Ring{budget: b, fd: -1} }

// Write appends output. It never fails: what can't be kept, because the disk is
// full, is not kept, but counts in offsets.
func (r *Ring) Write(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.fd < 0 && !r.failed {
		r.open()
	}
	if r.failed {
		r.lose(len(p))
		return
	}
	for len(p) > 0 {
		r.grow(int64(len(p)))
		at := r.total % r.size
		n := min(int64(len(p)), r.size-at)
		if !writeAt(r.fd, p[:n], at) {
			r.lose(len(p))
			return
		}
		r.total += n
		r.base = max(r.base, r.total-r.size)
		p = p[n:]
	}
}

// lose counts bytes that were not kept. What is kept must be one range that
// ends at total, so what came before goes as well.
func (r *Ring) lose(n int) {
	r.total += int64(n)
	r.base = r.total
}

func (r *Ring) open() {
	r.max = MaxOutput
	r.fd = tempFile()
	if r.fd < 0 {
		r.fd, r.max = memFile(), maxInMemory
	}
	if r.fd < 0 {
		r.failed = true
		return
	}
	r.size = minOutput
}

// grow makes room for n more bytes, while the ring has not wrapped yet: after
// that the size is part of where each byte lies.
func (r *Ring) grow(n int64) {
	want := min(r.total+n, r.max)
	if r.total > r.size || want <= r.size {
		return
	}
	step := min((want-r.size+growStep-1)/growStep*growStep, r.max-r.size)
	if r.budget.take(step) {
		r.size += step
		r.charged += step
	}
}

// Range says which offsets are kept: [base, total).
func (r *Ring) Range() (base, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base, r.total
}

// ReadAt reads what is kept at offset off. It returns io.EOF when off is not
// kept (any more).
func (r *Ring) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < r.base || off >= r.total || r.closed || r.fd < 0 {
		return 0, io.EOF
	}
	at := off % r.size
	n := min(int64(len(p)), r.total-off, r.size-at)
	for {
		got, err := unix.Pread(r.fd, p[:n], at)
		if err == unix.EINTR {
			continue
		}
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF // nobody shortens it
		}
		return max(got, 0), err
	}
}

// writeAt reports whether all could be written.
func writeAt(fd int, p []byte, at int64) bool {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		p, at = p[n:], at+int64(n)
	}
	return true
}

// Close frees the space. What is written later is dropped.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.closed = true
	r.base = r.total
	r.budget.used.Add(-r.charged)
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
}

// tempFile returns a file without a name, -1 when there is no place for one.
func tempFile() int {
	for _, dir := range Dirs {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return fd
		}
	}
	// Not every filesystem knows O_TMPFILE.
	for _, dir := range Dirs {
		name := filepath.Join(dir, fmt.Sprintf(".execd-%d-%s", os.Getpid(), strconv.FormatInt(serial.Add(1), 36)))
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			// Nothing else opens it: the name is new, and gone at once.
			_ = os.Remove(name)
			return fd
		}
	}
	return -1
}

var serial atomic.Int64

func memFile() int {
	fd, err := unix.MemfdCreate("history", unix.MFD_CLOEXEC)
	if err != nil {
		return -1
	}
	return fd
}
