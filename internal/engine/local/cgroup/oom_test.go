package cgroup

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWatchOOM(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		if p.memory == nil {
			t.Skip("the hierarchy has no memory controller")
		}
		g, other := group(t, p, "a"), group(t, p, "b")
		woken := make(chan struct{}, 1)
		stop, err := g.WatchOOM(func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		stopOther, err := other.WatchOOM(func() { t.Error("a kill in one group woke another's watch") })
		if err != nil {
			t.Fatal(err)
		}
		if err := g.SetLimits(Limits{MemoryBytes: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		for want := int64(1); want <= 2; want++ {
			ctx := testContext(t)
			// While the memory of the last one is still being freed, there is none
			// for the arguments of the next.
			err := g.Start(command("allocate 256"))
			for errors.Is(err, unix.E2BIG) && ctx.Err() == nil {
				err = g.Start(command("allocate 256"))
			}
			if err != nil {
				t.Fatal(err)
			}
			// With v1 the wake may come before the kill.
			for n := int64(0); n < want; {
				select {
				case <-woken:
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
					t.Fatalf("%d kills, want %d", n, want)
				}
				if n, err = g.OOMKills(); err != nil {
					t.Fatal(err)
				}
			}
		}
		stopOther()
		stop()
		stop()

		// The group's end ends the watch; the watch's end can come later.
		stopOther, err = other.WatchOOM(func() {})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Remove(testContext(t)); err != nil {
			t.Fatal(err)
		}
		stopOther()
		if _, err := other.WatchOOM(func() {}); !gone(err) {
			t.Errorf("watching a group that is gone: %v", err)
		}
	})
}

// The v2 hierarchy of a hybrid machine has no memory controller, so the watch of
// its file is tried with one that it has.
func TestWatchOOMNamesTheFile(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		if p.unified == nil {
			t.Skip("no v2 hierarchy")
		}
		if p.memory != nil && p.memory.v2 {
			t.Skip("TestWatchOOM does it")
		}
		q := &Parent{name: p.name, unified: p.unified, memory: p.unified}
		defer func() {
			if q.events != nil {
				q.events.close()
			}
		}()
		g := &Group{p: q, id: group(t, p, "a").id}
		_, err := g.WatchOOM(func() {})
		if !gone(err) || !strings.Contains(err.Error(), "a/memory.events") {
			t.Errorf("got %v", err)
		}
	})
}
