package sandbox

import (
	"slices"
	"strings"
	"sync"
)

// index keeps the entries in the order of a list, so that no list has to sort.
// The slice is in reverse (oldest first): new sandboxes are appended, and only
// a page's worth is read from the end.
type index struct {
	mu sync.RWMutex
	by []*entry
}

// before orders by createdAt ascending, then id descending; the reverse of that
// is a list's order.
func before(a, b *entry) int {
	x, y := a.load(), b.load()
	if c := x.CreatedAt.Compare(y.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(b.id, a.id)
}

func (x *index) add(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := len(x.by); n == 0 || before(x.by[n-1], e) < 0 {
		x.by = append(x.by, e)
		return
	}
	i, _ := slices.BinarySearchFunc(x.by, e, before)
	x.by = slices.Insert(x.by, i, e)
}

func (x *index) remove(e *entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i, ok := slices.BinarySearchFunc(x.by, e, before); ok {
		x.by = slices.Delete(x.by, i, i+1)
	}
}

// all returns a copy of the whole index, oldest first.
func (x *index) all() []*entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.by)
}

// page returns a copy of entries [from, from+n) in a list's order, and how many
// there are in all.
func (x *index) page(from, n int) ([]*entry, int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	total := len(x.by)
	if from >= total {
		return nil, total
	}
	n = min(n, total-from)
	out := make([]*entry, n)
	for i := range out {
		out[i] = x.by[total-1-from-i]
	}
	return out, total
}
