package code

import (
	"context"
	"net/http"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
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
	// shell reports whether it reads code as a shell does, whose end can be what
	// the code wanted.
	shell() bool
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

// await returns when a backend has ended, or after a time.
func await(b backend, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-b.done():
	case <-timer.C:
	}
}

// choice is what is to run the code of a language.
type choice struct {
	// spec is a kernel, nil for the language's driver.
	spec *jupyter.Spec
	// server has the kernel; nil for one that execd starts.
	server *jupyter.Server
	// optional is set when the driver would do as well.
	optional bool
	// note, when not empty, is to be told to the user.
	note string
}

// start begins a backend. It does not wait until it is ready.
func (a *API) start(lang *language, c choice, dir string) (backend, error) {
	switch {
	case c.server != nil:
		return startRemote(c.server, c.spec, lang, a.waits, dir), nil
	case c.spec != nil:
		return startKernel(a.opts, a.waits, c.spec, dir)
	}
	return startDriver(a.opts, lang, dir)
}

// choose decides what runs the code of a language: a kernel of the Jupyter
// server that the environment names, ipykernel for Python, the language's
// driver, and at last any installed kernel of the language.
func (a *API) choose(ctx context.Context, lang *language, dir string) (choice, error) {
	in := a.kernels(dir)
	if lang.kernel == "" && in.env[kernelsVar] == kernelsOff {
		return choice{}, nil
	}
	program, lacks := lang.find(in.search, dir)
	c, err := a.onServer(ctx, in, lang, lacks != nil)
	if err != nil || c.spec != nil {
		return c, err
	}
	switch {
	case lang.kernel != "":
		if c.spec = in.named(lang.kernel); c.spec == nil {
			return c, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "the kernel %q of this context is no longer installed", lang.kernel)
		}
	case lacks != nil:
		c.spec = first(in.specs, lang.names()...)
	case lang == python:
		c.spec, c.optional = in.interpreter(program), true
	}
	return c, nil
}
