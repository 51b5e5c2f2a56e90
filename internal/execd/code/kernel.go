package code

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

const (
	// infoEvery is when a kernel that has not answered is asked again. What it
	// published before it knew of the subscription is lost, so one question is
	// not enough.
	infoEvery = 500 * time.Millisecond
	// idleWait is how long nothing may come on the channel of outputs, after a
	// kernel said that a run is over, before the message that ends the outputs
	// counts as lost. Kernels drop messages when nobody reads fast enough.
	idleWait = 10 * time.Second
	// quitWait is how long a kernel may take to shut down.
	quitWait = time.Second
	// leaveWait is how long a kernel may take to end after code told it to, or
	// after it closed its connection.
	leaveWait = 2 * time.Second
	// drainWait bounds the wait for what a kernel sent before it ended.
	drainWait = time.Second
	// beatWait bounds the wait for a sign of life.
	beatWait = time.Second
)

// kernelWaits are how long a kernel is waited for, less in tests.
type kernelWaits struct {
	idle, leave time.Duration
}

var usualWaits = kernelWaits{idle: idleWait, leave: leaveWait}

// host is where a kernel lives. Its methods may be called in parallel.
type host interface {
	// title names the kernel in messages.
	title() string
	// connect connects to the kernel as soon as it accepts connections. session
	// names the client.
	connect(ctx context.Context, session string, h jupyter.Handler) (jupyter.Conn, error)
	// done is closed when the kernel has ended.
	done() <-chan struct{}
	// ending and failure are those of a backend.
	ending() (process.Exit, string)
	failure() string
	// byMessage reports whether an interrupt is a message to the kernel,
	// otherwise interrupt does it.
	byMessage() bool
	interrupt()
	// children are the processes that a run has started, nil if unknown.
	children(since process.Stamp) []process.Member
	// beat returns nil when the kernel gave a sign of life.
	beat(ctx context.Context) error
	// gentle reports whether kill lets an idle kernel clean up.
	gentle() bool
	// kill ends the kernel. It does not wait.
	kill()
}

// kernel is a backend that is a Jupyter kernel. What comes from it is turned
// into the reports of drivers.
type kernel struct {
	host    host
	waits   kernelWaits
	session string
	// cancel ends the wait for the kernel's start.
	cancel context.CancelFunc
	ready  chan struct{}
	// drained is closed when the kernel has ended and everything that it sent
	// was passed on.
	drained chan struct{}
	// first holds a token when a message came on the channel of outputs.
	first chan struct{}
	// info holds a token when the kernel answered a question about itself.
	info chan struct{}

	mu   sync.Mutex
	conn jupyter.Conn
	// broken says why the kernel had to be ended, nil for no reason.
	broken error
	// cur is the run that output belongs to; between runs it goes to early, by
	// stream.
	cur   *run
	early [2][]byte
	exec  *execution
	// asked is closed when the kernel has had an interrupt; nil for none.
	asked chan struct{}
}

// execution is what is known of the run that a kernel executes.
type execution struct {
	x  *run
	id string
	// replied and idle: the kernel said that it is done, and that all outputs
	// have come.
	replied, idle, finished bool
	// quiet ends the wait for idle.
	quiet *time.Timer
	count int64
	// failed is the error that the code ended with, nil for none.
	failed *report
	// pages are texts that are to be shown at the end.
	pages []string
	// leaving is set when the code told the kernel to end.
	leaving bool
}

// newKernel returns the backend of a kernel that is being started. setup is code
// that it runs first, empty for none.
func newKernel(h host, waits kernelWaits, setup string) *kernel {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	k := &kernel{
		host:  h,
		waits: waits, session: jupyter.NewID(), cancel: cancel,
		ready: make(chan struct{}), drained: make(chan struct{}), first: make(chan struct{}, 1), info: make(chan struct{}, 1),
	}
	go k.watch()
	go k.begin(ctx, setup)
	return k
}

// watch closes the connection when the kernel has ended. What it sent before is
// read until the end, or for a bounded time: its children may have its sockets.
func (k *kernel) watch() {
	defer close(k.drained)
	<-k.done()
	k.cancel()
	k.mu.Lock()
	conn := k.conn
	k.mu.Unlock()
	if conn == nil {
		return
	}
	defer conn.Close()
	timer := time.NewTimer(drainWait)
	defer timer.Stop()
	select {
	case <-conn.Done():
	case <-timer.C:
	}
}

// begin waits until the kernel answers.
func (k *kernel) begin(ctx context.Context, setup string) {
	defer k.cancel()
	conn, err := k.host.connect(ctx, k.session, jupyter.Handler{Message: k.message, Skipped: k.skipped, Broken: k.lose})
	if err != nil {
		k.fail(err)
		return
	}
	k.mu.Lock()
	k.conn = conn
	k.mu.Unlock()
	if ended(k) {
		// Too late for the goroutine that closes it.
		conn.Close()
		return
	}
	if err = k.greet(ctx); err == nil && setup != "" {
		// Runs come after it, whether it works or not.
		err = k.send(jupyter.Shell, "execute_request", executeRequest{Code: setup, Silent: true})
	}
	if err != nil {
		k.fail(err)
		return
	}
	k.mu.Lock()
	k.early = [2][]byte{}
	k.mu.Unlock()
	close(k.ready)
}

// greet asks the kernel about itself until it has answered on both channels
// that a run needs.
func (k *kernel) greet(ctx context.Context) error {
	ticker := time.NewTicker(infoEvery)
	defer ticker.Stop()
	first, info := k.first, k.info
	for ask := true; first != nil || info != nil; {
		if ask {
			if err := k.send(jupyter.Shell, "kernel_info_request", struct{}{}); err != nil {
				return err
			}
		}
		ask = false
		select {
		case <-first:
			first = nil
		case <-info:
			info = nil
		case <-ticker.C:
			ask = true
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer: %w", k.title(), ctx.Err())
		}
	}
	return nil
}

func (k *kernel) send(channel jupyter.Channel, kind string, content any) error {
	m, err := jupyter.NewMessage(k.session, channel, kind, content)
	if err != nil {
		return err
	}
	return k.post(m)
}

func (k *kernel) post(m *jupyter.Message) error {
	k.mu.Lock()
	conn := k.conn
	k.mu.Unlock()
	if conn == nil {
		return errors.New("there is no connection to the kernel")
	}
	return conn.Send(m)
}

// lose ends a kernel that can't be spoken to any more. Most often it is about to
// end by itself, and how is of interest.
func (k *kernel) lose(err error) {
	await(k, k.waits.leave)
	k.fail(err)
}

// fail ends a kernel that can't be spoken to.
func (k *kernel) fail(err error) {
	k.mu.Lock()
	if k.broken == nil && !ended(k) {
		k.broken = err
	}
	k.mu.Unlock()
	k.host.kill()
}

func (k *kernel) title() string               { return k.host.title() }
func (k *kernel) readied() <-chan struct{}    { return k.ready }
func (k *kernel) done() <-chan struct{}       { return k.host.done() }
func (k *kernel) settle(stop <-chan struct{}) {}
func (k *kernel) shell() bool                 { return false }
func (k *kernel) acknowledge()                {}
func (k *kernel) kill()                       { k.host.kill() }

func (k *kernel) drain(stop <-chan struct{}) {
	select {
	case <-k.drained:
	case <-stop:
	}
}

func (k *kernel) ending() (process.Exit, string) {
	exit, text := k.host.ending()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		text = k.broken.Error()
	}
	return exit, text
}

func (k *kernel) failure() string {
	text := k.host.failure()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		text = k.broken.Error() + "; " + text
	}
	return text
}

// executeRequest is the content of a request to run code. What is asked for by
// the code is never allowed, and an error ends nothing but its own run.
type executeRequest struct {
	Code        string   `json:"code"`
	Silent      bool     `json:"silent"`
	Store       bool     `json:"store_history"`
	Expressions struct{} `json:"user_expressions"`
	Stdin       bool     `json:"allow_stdin"`
	Stop        bool     `json:"stop_on_error"`
}

// order implements backend. attach was called before.
func (k *kernel) order(n uint64, code string) error {
	m, err := jupyter.NewMessage(k.session, jupyter.Shell, "execute_request", executeRequest{Code: code, Store: true})
	if err != nil {
		return err
	}
	k.mu.Lock()
	if asked := k.asked; asked != nil {
		k.mu.Unlock()
		timer := time.NewTimer(askWait)
		defer timer.Stop()
		select {
		case <-asked:
		case <-k.done():
		case <-timer.C:
		}
		k.mu.Lock()
	}
	if k.cur == nil || k.cur.n != n {
		k.mu.Unlock()
		return errors.New("the run is over")
	}
	k.exec = &execution{x: k.cur, id: m.Header.ID}
	k.mu.Unlock()
	return k.post(m)
}

func (k *kernel) attach(x *run) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, kind := range []string{event.Stdout, event.Stderr} {
		if len(k.early[i]) > 0 {
			x.stream.Output(kind, k.early[i])
			k.early[i] = nil
		}
	}
	k.cur = x
}

func (k *kernel) detach() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cur = nil
	if e := k.exec; e != nil && e.quiet != nil {
		e.quiet.Stop()
	}
	k.exec = nil
}

// interrupt implements backend.
func (k *kernel) interrupt(x *run, spare bool) {
	family := k.host.children(x.since)
	k.mu.Lock()
	if k.cur != x {
		k.mu.Unlock()
		return
	}
	process.Signal(family, interruptSignal)
	if !spare && k.asked == nil {
		k.asked = make(chan struct{})
	}
	k.mu.Unlock()
	switch {
	case spare:
	case !k.host.byMessage():
		k.host.interrupt()
		k.interrupted()
	case k.send(jupyter.Control, "interrupt_request", struct{}{}) != nil:
		k.interrupted()
	}
}

// interrupted lets the next order go out: an interrupt has come before it.
func (k *kernel) interrupted() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asked != nil {
		close(k.asked)
		k.asked = nil
	}
}

// quit implements backend.
func (k *kernel) quit() {
	if !ended(k) && !k.host.gentle() && k.send(jupyter.Control, "shutdown_request", map[string]bool{"restart": false}) == nil {
		await(k, quitWait)
	}
	k.kill()
	await(k, killWait)
}

// state implements backend.
func (k *kernel) state() string {
	ctx, cancel := context.WithTimeout(context.Background(), beatWait)
	defer cancel()
	if k.host.beat(ctx) != nil {
		return " and gave no sign of life"
	}
	return ""
}

// emit gives a report to its run. Reports are taken one after another, so their
// order is that of the events.
func emit(x *run, rep report) {
	rep.Run = x.n
	select {
	case x.reports <- rep:
	case <-x.over:
	}
}

// print is output of the kernel.
func (k *kernel) print(kind, text string) {
	if text == "" {
		return
	}
	k.mu.Lock()
	x := k.cur
	if x == nil {
		i := 0
		if kind == event.Stderr {
			i = 1
		}
		k.early[i] = append(k.early[i], text[max(0, len(text)-maxEarly):]...)
		if extra := len(k.early[i]) - maxEarly; extra > 0 {
			k.early[i] = append(k.early[i][:0], k.early[i][extra:]...)
		}
	}
	k.mu.Unlock()
	if x != nil {
		emit(x, report{Kind: reportOutput, Name: kind, Value: text})
	}
}

// skipped tells that a message was too long.
func (k *kernel) skipped(channel jupyter.Channel, size int64) {
	k.print(event.Stderr, fmt.Sprintf("[a message of %d bytes from the kernel was left out; at most %d are taken]\n", size, jupyter.MaxMessage))
	if channel == jupyter.Shell {
		// It was the answer to the run, for nothing else is asked.
		k.update(func(e *execution) { e.replied = true })
	}
}

// tell is a note to the user for a run.
func tell(x *run, format string, args ...any) {
	emit(x, report{Kind: reportOutput, Name: event.Stderr, Value: "[" + fmt.Sprintf(format, args...) + "]\n"})
}

// decodeContent reads a message's content; what does not fit is dropped.
func decodeContent(m *jupyter.Message, v any) bool { return json.Unmarshal(m.Content, v) == nil }
