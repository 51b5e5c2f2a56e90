package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/uuid"

	"github.com/paddock-sandbox/paddock/internal/rmtree"
)

// trash removes directories in the background: a sandbox may hold a million
// files, and nobody shall wait for them. What is in the trash directory when
// the server starts is removed then.
type trash struct {
	e      *Engine
	mu     sync.Mutex
	wake   *sync.Cond
	queue  []string
	closed bool
	wg     sync.WaitGroup
	// turn is held by who removes: a tree is removed by one at a time.
	turn chan struct{}
	// ctx ends with close. It may take long to remove a tree, and the next
	// start removes what is left of it.
	ctx  context.Context
	stop context.CancelFunc
}

func newTrash(e *Engine) *trash {
	t := &trash{e: e, turn: make(chan struct{}, 1)}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.wake = sync.NewCond(&t.mu)
	if left, err := os.ReadDir(e.in.trashDir()); err == nil {
		for _, d := range left {
			t.queue = append(t.queue, filepath.Join(e.in.trashDir(), d.Name()))
		}
	}
	t.wg.Add(1)
	go t.run()
	return t
}

// put moves a directory to the trash. A missing one is fine.
func (t *trash) put(dir, name string) error {
	target := filepath.Join(t.e.in.trashDir(), name+"."+uuid.NewString()[:8])
	if err := os.Rename(dir, target); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	t.mu.Lock()
	t.queue = append(t.queue, target)
	t.wake.Signal()
	t.mu.Unlock()
	return nil
}

func (t *trash) run() {
	defer t.wg.Done()
	for {
		t.mu.Lock()
		for len(t.queue) == 0 && !t.closed {
			t.wake.Wait()
		}
		if t.closed {
			t.mu.Unlock()
			return
		}
		dir := t.queue[0]
		t.queue = t.queue[1:]
		t.mu.Unlock()
		if err := t.remove(t.ctx, dir); err != nil && t.ctx.Err() == nil {
			t.e.log.Error("emptying the trash", "path", dir, "error", err)
		}
	}
}

// remove removes a tree of the trash. Nothing runs any more in there, and what
// did has made the tree as it liked.
func (t *trash) remove(ctx context.Context, dir string) error {
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-t.turn }()
	return rmtree.Remove(ctx, dir)
}

// drain waits until the trash is empty or ctx ends.
func (t *trash) drain(ctx context.Context) error {
	for {
		left, err := os.ReadDir(t.e.in.trashDir())
		if err != nil || len(left) == 0 {
			return err
		}
		for _, d := range left {
			if err := t.remove(ctx, filepath.Join(t.e.in.trashDir(), d.Name())); err != nil {
				return err
			}
		}
	}
}

// close ends the removing; the next start continues it.
func (t *trash) close() {
	t.stop()
	t.mu.Lock()
	t.closed = true
	t.wake.Signal()
	t.mu.Unlock()
	t.wg.Wait()
}
