package code

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// startWait bounds how long a driver may take to get ready. The slowest,
	// one that is compiled first, takes some seconds.
	startWait = 60 * time.Second
	// interruptGrace is how long code may take to stop after an interrupt
	// before its driver is killed.
	interruptGrace = 5 * time.Second
	// askAgain is when what goes on is interrupted again.
	askAgain = 250 * time.Millisecond
	// killWait bounds the wait for a process after SIGKILL.
	killWait = 2 * time.Second
)

// kernelDied is the name of the error of a run whose driver ended.
const kernelDied = "KernelDied"

// codeContext is a context of the contract. Its methods may be called in
// parallel.
type codeContext struct {
	id   string
	lang *language
	dir  string
	// order is the rank among all contexts by age; set by the registry.
	order uint64
	api   *API

	// busy holds a token while a run is under way.
	busy chan struct{}

	mu sync.Mutex
	// closed is set when the context is deleted.
	closed bool
	// driver is nil when the next run has to start one.
	driver backend
	// plain is set when the language's own driver is to be used, because the
	// kernel could not be started. Only who has the context changes it.
	plain bool
	// optional says that of the driver (see choice).
	optional bool
	// note is what the next run is to tell first.
	note string
	// active is the run that is under way.
	active *run
	// runs numbers the runs, over all drivers.
	runs uint64
}

// run is one execution.
type run struct {
	n      uint64
	stream *event.Stream
	began  time.Time
	since  process.Stamp
	driver backend
	// reports are those of this run, in order.
	reports chan report
	// started is closed when the driver has begun with the code.
	started     chan struct{}
	startedOnce sync.Once
	// over is closed when the code has stopped, one way or the other.
	over chan struct{}
	// stop makes one interrupt of many.
	stop sync.Once
	// counted is set when the execution's number has been sent.
	counted bool

	mu sync.Mutex
	// verdict, when not empty, says why the driver had to be killed.
	verdict string
}

func newID() string {
	var b [16]byte
	// Never fails on Linux (crypto/rand).
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// newContext makes a context that nobody knows yet.
func (a *API) newContext(lang *language, cwd string) (*codeContext, error) {
	dir, err := command.Directory(a.opts.Guest(), cwd)
	if err != nil {
		return nil, err
	}
	return &codeContext{id: newID(), lang: lang, dir: dir, api: a, busy: make(chan struct{}, 1)}, nil
}

// acquire takes the context for one run.
func (c *codeContext) acquire() error {
	select {
	case c.busy <- struct{}{}:
		return nil
	default:
		return web.Errorf(http.StatusInternalServerError, web.CodeRuntime,
			"session is busy: context %q runs other code; wait for its end, stop it with DELETE /code?id=%s, or use another context", c.id, c.id)
	}
}

func (c *codeContext) release() { <-c.busy }

// warm starts the driver.
func (c *codeContext) warm(ctx context.Context) error {
	if err := c.acquire(); err != nil {
		return err
	}
	defer c.release()
	_, err := c.ready(ctx)
	return err
}

// ready returns a driver that waits for code. The caller has the context.
func (c *codeContext) ready(ctx context.Context) (backend, error) {
	d, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case <-d.readied():
		return d, nil
	case <-d.done():
		reason := d.failure()
		c.drop(d)
		if c.giveUp(fmt.Sprintf("%s could not be started: %s; this context works without it", d.title(), reason)) {
			return c.ready(ctx)
		}
		return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%s could not be started for %s: %s", d.title(), c.lang.name, reason)
	case <-timer.C:
		d.kill()
		c.drop(d)
		return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%s did not get ready for %s within %s", d.title(), c.lang.name, startWait)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// giveUp makes the context use the language's own driver if the kernel that
// failed was a choice. The note tells the user.
func (c *codeContext) giveUp(note string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.optional || c.plain {
		return false
	}
	c.plain, c.note = true, note
	return true
}

// current returns the driver, and starts one when there is none or it is dead.
func (c *codeContext) current(ctx context.Context) (backend, error) {
	d, err := c.living()
	if d != nil || err != nil {
		return d, err
	}
	var what choice
	if !c.plain {
		if what, err = c.api.choose(ctx, c.lang, c.dir); err != nil {
			return nil, err
		}
	}
	if d, err = c.api.start(c.lang, what, c.dir); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		d.kill()
		return nil, notFound(c.id)
	}
	c.driver, c.optional = d, what.optional
	if what.note != "" {
		c.note = what.note
	}
	return d, nil
}

// living returns the driver unless it is dead or there is none.
func (c *codeContext) living() (backend, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, notFound(c.id)
	}
	d := c.driver
	if d != nil && ended(d) {
		_, how := d.ending()
		c.driver, c.note = nil, fmt.Sprintf("the %s process of this context had ended (%s); this run starts a new one, without the earlier state", c.lang.name, how)
		return nil, nil
	}
	return d, nil
}

// drop forgets a driver.
func (c *codeContext) drop(d backend) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.driver == d {
		c.driver = nil
	}
}

// run answers POST /code.
func (c *codeContext) run(w http.ResponseWriter, r *http.Request, code string) error {
	if c.lang.shell && strings.ContainsRune(code, 0) {
		return web.BadBody("code contains a NUL byte, which no shell accepts")
	}
	if err := c.acquire(); err != nil {
		return err
	}
	d, err := c.ready(r.Context())
	if err != nil {
		c.release()
		return err
	}
	x := &run{
		stream:  openStream(w, c.id),
		began:   time.Now(),
		since:   process.Now(),
		driver:  d,
		reports: make(chan report),
		started: make(chan struct{}),
		over:    make(chan struct{}),
	}
	c.begin(x)
	if err := d.order(x.n, code); err != nil {
		// It ended, or no longer does what it was told.
		d.kill()
	}
	c.follow(r.Context(), x)
	return nil
}

// begin makes x the context's run.
func (c *codeContext) begin(x *run) {
	c.mu.Lock()
	c.runs++
	x.n = c.runs
	c.active = x
	note := c.note
	c.note = ""
	c.mu.Unlock()
	if note != "" {
		x.stream.Output(event.Stderr, fmt.Appendf(nil, "[%s]\n", note))
	}
	x.stream.Status("busy")
	x.driver.attach(x)
}

// follow passes on what the driver reports until the run is over, and ends the
// answer.
func (c *codeContext) follow(ctx context.Context, x *run) {
	gone, broken := ctx.Done(), x.stream.Gone()
	for {
		select {
		case rep := <-x.reports:
			if c.handle(x, rep) {
				return
			}
		case <-x.driver.done():
			c.died(x)
			return
		case <-gone:
			gone, broken = nil, nil
			x.stream.Close()
			go c.halt(x)
		case <-broken:
			gone, broken = nil, nil
			go c.halt(x)
		}
	}
}

// handle deals with one report. It is true when the run is over.
func (c *codeContext) handle(x *run, rep report) bool {
	switch rep.Kind {
	case reportBusy:
		x.startedOnce.Do(func() { close(x.started) })
	case reportOutput:
		x.stream.Output(rep.Name, []byte(rep.Value))
	case reportDisplay:
		x.driver.settle(x.stream.Gone())
		x.stream.Result(rep.Data)
		x.driver.acknowledge()
	case reportResult:
		x.driver.settle(x.stream.Gone())
		c.count(x, rep)
		x.stream.Result(rep.Data)
	case reportDone, reportError:
		x.driver.settle(x.stream.Gone())
		c.count(x, rep)
		if rep.Leaving {
			// The next run is not to meet a kernel that is about to end.
			await(x.driver, c.api.waits.leave)
		}
		c.over(x)
		x.stream.Status("idle")
		c.conclude(x, rep)
		return true
	}
	return false
}

func (c *codeContext) count(x *run, rep report) {
	if !x.counted && rep.Count > 0 {
		x.counted = true
		x.stream.Count(rep.Count)
	}
}

// conclude sends the terminal event.
func (c *codeContext) conclude(x *run, rep report) {
	switch {
	case rep.Kind == reportError:
		x.stream.Error(rep.Name, rep.Value, rep.Traceback...)
	case rep.Code != 0:
		x.stream.Error(event.ExecError, strconv.FormatInt(rep.Code, 10), fmt.Sprintf("exit status %d", rep.Code))
	default:
		x.stream.Complete(time.Since(x.began))
	}
}

// over takes x out of the context, which is free then: a client that has seen
// the last event may send the next run at once.
func (c *codeContext) over(x *run) {
	x.driver.detach()
	c.mu.Lock()
	c.active = nil
	c.mu.Unlock()
	close(x.over)
	c.release()
}

// died ends a run whose driver has ended.
func (c *codeContext) died(x *run) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		x.driver.drain(x.stream.Gone())
	}()
	for rest := true; rest; {
		select {
		case rep := <-x.reports:
			if c.handle(x, rep) {
				// It had ended the run before.
				return
			}
		case <-drained:
			rest = false
		}
	}
	exit, how := x.driver.ending()
	c.drop(x.driver)
	c.over(x)
	x.mu.Lock()
	verdict := x.verdict
	x.mu.Unlock()
	if x.driver.shell() && verdict == "" && exit.Signal == 0 {
		// The code said exit.
		x.stream.Output(event.Stderr, []byte("[the shell of this context has ended; the next run starts a new one]\n"))
		x.stream.Status("idle")
		c.conclude(x, report{Kind: reportDone, Code: int64(exit.Code)})
		return
	}
	if verdict == "" {
		verdict = fmt.Sprintf("the %s process ended during the run (%s)", c.lang.name, how)
		if exit.Signal == 9 {
			verdict += "; a frequent cause is the memory limit"
		}
	}
	x.stream.Status("idle")
	text := verdict + ". The state of the context is lost; the next run starts a new process."
	x.stream.Error(kernelDied, text, text)
}

// errNotStopped is why an interrupt failed.
var errNotStopped = errors.New("the code has not stopped: its process can't be killed at the moment")

// interrupt stops the run that is under way, if there is one, and returns when
// it has stopped.
func (c *codeContext) interrupt(ctx context.Context) error {
	c.mu.Lock()
	x := c.active
	c.mu.Unlock()
	if x == nil {
		return nil
	}
	go c.halt(x)
	timer := time.NewTimer(c.api.grace + 2*killWait)
	defer timer.Stop()
	select {
	case <-x.over:
		return nil
	case <-timer.C:
		return errNotStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// halt interrupts a run, and kills its driver when that does not stop it. It
// returns in bounded time.
func (c *codeContext) halt(x *run) {
	x.stop.Do(func() {
		deadline := time.NewTimer(c.api.grace)
		defer deadline.Stop()
		if c.ask(x, deadline.C) {
			return
		}
		x.doom(fmt.Sprintf("the code did not stop within %s of the interrupt%s, so its %s process was killed", c.api.grace, x.driver.state(), c.lang.name))
		x.driver.kill()
	})
}

// ask interrupts a run until it is over, which it reports, or the deadline has
// come.
func (c *codeContext) ask(x *run, deadline <-chan time.Time) bool {
	select {
	case <-x.started:
	case <-x.over:
		return true
	case <-deadline:
		return false
	}
	x.driver.interrupt(x, false)
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		select {
		case <-x.over:
			return true
		case <-ticker.C:
			// A process that has just been forked may not notice the signal, and
			// one that starts another just when it is interrupted may wait for
			// that: shells do. The other drivers notice every signal, and what
			// the code does about one, cleaning up for instance, is not to be
			// interrupted by another.
			x.driver.interrupt(x, !x.driver.shell())
		case <-deadline:
			return false
		}
	}
}

// doom says why the driver is about to be killed.
func (x *run) doom(verdict string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.verdict = verdict
}

// close ends the context with its driver, which gets time to clean up when it
// is idle. It is called once, after the context was taken out of the registry.
func (c *codeContext) close() {
	c.mu.Lock()
	c.closed = true
	d, x := c.driver, c.active
	c.mu.Unlock()
	if d == nil {
		return
	}
	if x == nil {
		d.quit()
		return
	}
	x.doom("the context was deleted")
	d.kill()
	await(d, killWait)
}
