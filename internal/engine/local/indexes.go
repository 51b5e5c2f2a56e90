package local

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/engine/local/network"
)

// indexes hands out sandbox indexes, the longest unused first, so that the
// kernel has had time to remove what an earlier holder left. One that was given
// back is free again when the connections of its address are forgotten: what their
// other sides still send would reach the next sandbox.
type indexes struct {
	// forget makes the kernel forget the connections of these indexes.
	forget func(map[int]bool) error
	// wake has something when indexes were given back.
	wake chan struct{}

	reclaiming sync.Mutex // held while connections are being forgotten
	mu         sync.Mutex
	free       []int
	used       map[int]bool
	given      []int
}

func newIndexes(forget func(map[int]bool) error) *indexes {
	x := &indexes{forget: forget, wake: make(chan struct{}, 1)}
	x.fill(nil)
	return x
}

func (x *indexes) fill(taken map[int]bool) {
	x.free, x.used = nil, map[int]bool{}
	for i := range maxIndex {
		if taken[i] {
			x.used[i] = true
		} else {
			x.free = append(x.free, i)
		}
	}
}

// reserve begins anew with these taken; nothing else may use x meanwhile.
func (x *indexes) reserve(taken map[int]bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fill(taken)
	free := make(map[int]bool, len(x.free))
	for _, i := range x.free {
		free[i] = true
	}
	return x.forget(free)
}

// errNoIndex is returned when every address of the slot is in use.
var errNoIndex = errors.New("every sandbox address of this instance is in use")

func (x *indexes) take() (int, error) {
	for {
		x.mu.Lock()
		if len(x.free) > 0 {
			i := x.free[0]
			x.free = x.free[1:]
			x.used[i] = true
			x.mu.Unlock()
			return i, nil
		}
		none := len(x.given) == 0
		x.mu.Unlock()
		if none {
			return 0, errNoIndex
		}
		if err := x.reclaim(); err != nil {
			return 0, err
		}
	}
}

func (x *indexes) give(i int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.used[i] {
		return
	}
	delete(x.used, i)
	x.given = append(x.given, i)
	x.awake()
}

func (x *indexes) awake() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// left is how many are free, or will be.
func (x *indexes) left() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.free) + len(x.given)
}

// reclaim frees what was given back. After an error it is still to be done.
func (x *indexes) reclaim() error {
	x.reclaiming.Lock()
	defer x.reclaiming.Unlock()
	x.mu.Lock()
	given := x.given
	x.given = nil
	x.mu.Unlock()
	if len(given) == 0 {
		return nil
	}
	set := make(map[int]bool, len(given))
	for _, i := range given {
		set[i] = true
	}
	err := x.forget(set)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.given = append(given, x.given...)
		x.awake()
		return err
	}
	x.free = append(x.free, given...)
	return nil
}

// reclaimDelay is how long indexes that were given back are collected: the kernel
// goes through all connections of the host to forget some, however many those are.
const reclaimDelay = 2 * time.Second

// reclaimIndexes frees the indexes that were given back until the engine closes.
func (e *Engine) reclaimIndexes() {
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.indexes.wake:
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(reclaimDelay):
		}
		if err := e.indexes.reclaim(); err != nil {
			e.log.Error("addresses of sandboxes that have ended can't be used again yet", "error", err)
		}
	}
}

// forgetFlows makes the kernel forget the connections of sandboxes that have ended.
func (e *Engine) forgetFlows(ended map[int]bool) error {
	addrs := make(map[netip.Addr]bool, len(ended))
	for i := range ended {
		a, err := network.AddrOf(e.in.subnet, i)
		if err != nil {
			return fmt.Errorf("forgetting connections: %w", err)
		}
		addrs[a] = true
	}
	return e.network.ForgetFlows(func(a netip.Addr) bool { return addrs[a] })
}
