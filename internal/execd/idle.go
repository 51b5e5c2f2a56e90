package execd

import (
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// idleAfter is how long nothing must have happened before memory is given back.
// Long enough that a busy sandbox never pays for it.
const idleAfter = 2 * time.Second

// idler gives memory back to the kernel once requests have stopped coming. The
// zero value is ready for use.
type idler struct {
	mu    sync.Mutex
	timer *time.Timer
}

func (i *idler) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer != nil {
		i.timer.Stop()
	}
}

func (i *idler) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.timer == nil {
		i.timer = time.AfterFunc(idleAfter, i.trim)
		return
	}
	i.timer.Reset(idleAfter)
}

// trim runs once per pause. Long requests, like the engine's wait for the
// entrypoint's end, do not keep it from running: only new ones do.
func (i *idler) trim() {
	// The scheduler keeps up to 64 ended goroutines with their stacks for each
	// processor, and gives them up only with the processor.
	if n := runtime.GOMAXPROCS(0); n > 1 {
		runtime.GOMAXPROCS(1)
		defer runtime.GOMAXPROCS(n)
	}
	// What is in a sync.Pool survives one collection.
	runtime.GC()
	debug.FreeOSMemory()
}
