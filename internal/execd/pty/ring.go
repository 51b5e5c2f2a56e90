package pty

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// ringSize is how much output a session keeps, in bytes (OpenSandbox
	// execd API).
	ringSize = 1 << 20
	// ringStart is what every session may have, even when the budget is spent.
	ringStart = 64 << 10
	// ringBudget bounds what the full-size rings of all sessions use together,
	// in bytes: execd's memory counts against the sandbox's limit.
	ringBudget = 64 << 20
)

// budget is the memory of full-size rings. The zero value is unspent.
type budget struct{ used atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.used.Add(n) > ringBudget {
		b.used.Add(-n)
		return false
	}
	return true
}

// ring keeps the newest output. It lives outside the heap: pages cost nothing
// until they are written to, and are given back at once. It has no lock of its
// own.
type ring struct {
	budget *budget
	buf    []byte
	// total counts all bytes ever written; [base, total) are kept. Offset o is
	// at o % len(buf).
	base, total int64
	freed       bool
}

// reserve makes room to keep n more bytes, as far as that is possible, and
// returns the ring's capacity; 0 when it was freed.
func (r *ring) reserve(n int) int64 {
	if r.freed {
		return 0
	}
	if r.buf == nil {
		r.buf = pages(ringStart)
	}
	if len(r.buf) == ringStart && r.total-r.base+int64(n) > ringStart && r.budget.take(ringSize) {
		old := *r
		r.buf = pages(ringSize)
		for at := old.base; at < old.total; {
			from := at % ringStart
			size := min(ringStart-from, old.total-at)
			r.put(at, old.buf[from:from+size])
			at += size
		}
		unpage(old.buf)
	}
	return int64(len(r.buf))
}

// write appends p; the oldest bytes go when the ring is full.
func (r *ring) write(p []byte) {
	if r.freed {
		return
	}
	size := r.reserve(len(p))
	at := r.total
	r.total += int64(len(p))
	if over := int64(len(p)) - size; over > 0 {
		p, at = p[over:], at+over
	}
	r.put(at, p)
	r.base = max(r.base, r.total-size)
}

// put stores p at an offset.
func (r *ring) put(at int64, p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[at%int64(len(r.buf)):], p)
		p, at = p[n:], at+int64(n)
	}
}

// read copies output from an offset, which must be in [base, total].
func (r *ring) read(at int64, p []byte) int {
	if r.freed || r.buf == nil {
		return 0
	}
	p = p[:min(int64(len(p)), r.total-at)]
	done := 0
	for done < len(p) {
		n := copy(p[done:], r.buf[at%int64(len(r.buf)):])
		done, at = done+n, at+int64(n)
	}
	return done
}

// free gives the memory back. Later writes are dropped.
func (r *ring) free() {
	if len(r.buf) == ringSize {
		r.budget.used.Add(-ringSize)
	}
	unpage(r.buf)
	r.buf, r.base, r.freed = nil, r.total, true
}

// pages returns zeroed memory that the garbage collector does not know.
func pages(size int) []byte {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, size)
	}
	return b
}

func unpage(b []byte) {
	if b != nil {
		// Fails for memory that came from the heap, which is freed without it.
		_ = unix.Munmap(b)
	}
}
