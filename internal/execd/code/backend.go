package code

import (
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// backend is what runs the code of one context: a driver or a kernel. It serves
// one run at a time. Its methods may be called in parallel.
type backend interface {
	// title names it in messages.
	title() string
	// readied is closed when it takes orders.
	readied() <-chan struct{}
	// done is closed when it has ended and will not run anything any more.
	done() <-chan struct{}
	// ending says how it ended, also in words. Valid after done is closed.
	ending() (process.Exit, string)
	// failure explains the end of one that was never ready.
	failure() string
	// order gives it code to run as the run with that number.
	order(n uint64, code string) error
	// attach makes x the run that output and reports belong to. What was
	// printed since the last run is x's first output, as a terminal would show
	// it.
	attach(x *run)
	detach()
	// settle returns when everything printed so far was sent on, or stop is
	// closed.
	settle(stop <-chan struct{})
	// drain is settle for one that has ended.
	drain(stop <-chan struct{})
	// acknowledge lets the sender of a display go on. It never blocks.
	acknowledge()
	// interrupt asks a run to stop: the backend, unless it is to be spared, and
	// the processes that the run has started. It does nothing when the run is
	// over, and what it sends comes before any later order.
	interrupt(x *run, spare bool)
	// state says what else is known of one that can't be interrupted, as the
	// middle of a sentence, or nothing.
	state() string
	// quit lets it end by itself, for a bounded time, and returns when it has
	// ended or was killed.
	quit()
	// kill ends it. It does not wait.
	kill()
}

// ended reports whether a backend is gone.
func ended(b backend) bool {
	select {
	case <-b.done():
		return true
	default:
		return false
	}
}

// start begins a backend for a context. It does not wait until it is ready.
// optional is set when another start, for which plain is true, may succeed where
// this one fails.
func (a *API) start(lang *language, dir string, plain bool) (b backend, optional bool, err error) {
	if plain {
		b, err = startDriver(a.opts, lang, dir)
		return b, false, err
	}
	spec, optional, err := a.kernelOf(lang, dir)
	if err != nil {
		return nil, false, err
	}
	if spec == nil {
		b, err = startDriver(a.opts, lang, dir)
		return b, false, err
	}
	b, err = startKernel(a.opts, spec, dir)
	return b, optional, err
}
