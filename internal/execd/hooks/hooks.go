package hooks

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/schedule"
)

const (
	// keptRuns is how many ended runs are kept for the engine.
	keptRuns = 32
	// maxTold is how many of them one answer holds. With their output, every
	// byte of which may be written as six, they stay below what the engine
	// reads of an answer.
	maxTold = 8
	// maxWait is after how long the wall clock is looked at again.
	maxWait = time.Minute
	// missedAfter is how late a run may begin. A later one, because the
	// sandbox was paused when it was due, is left out.
	missedAfter = 30 * time.Second
)

// Config is what hooks run in.
type Config struct {
	Procs *process.Table
	// Log is the entrypoint's; nil drops what hooks print.
	Log   *entrylog.Writer
	Guest *guest.Guest
}

// Runner runs the hooks of one sandbox. Its methods may be called in parallel.
type Runner struct {
	cfg      Config
	preStart *hostapi.Hook
	periodic []periodic

	mu      sync.Mutex
	seq     int64
	runs    []hostapi.HookRun // the newest, oldest first
	changed chan struct{}     // closed when there are more; nil when nobody waits
}

type periodic struct {
	hostapi.Hook
	schedule *schedule.Schedule
}

// New checks the hooks of a claim. It starts nothing. preStart may be nil.
func New(cfg Config, preStart *hostapi.Hook, all []hostapi.Hook) (*Runner, error) {
	r := &Runner{cfg: cfg, preStart: preStart}
	if preStart != nil {
		if err := check(preStart); err != nil {
			return nil, fmt.Errorf("the preStart hook: %w", err)
		}
	}
	if len(all) > hostapi.MaxHooks {
		return nil, fmt.Errorf("there are %d periodic hooks; at most %d are allowed", len(all), hostapi.MaxHooks)
	}
	for _, h := range all {
		if err := check(&h); err != nil {
			return nil, fmt.Errorf("the periodic hook %q: %w", h.Name, err)
		}
		s, err := schedule.Parse(h.Schedule)
		if err != nil {
			return nil, fmt.Errorf("the schedule of the periodic hook %q: %w", h.Name, err)
		}
		r.periodic = append(r.periodic, periodic{Hook: h, schedule: s})
	}
	return r, nil
}

func check(h *hostapi.Hook) error {
	if len(h.Command) == 0 || h.Command[0] == "" {
		return errNoCommand
	}
	for i, arg := range h.Command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("command[%d] contains a NUL byte, which no program can be given", i)
		}
	}
	if h.TimeoutSeconds < 1 {
		return fmt.Errorf("its timeout is %d s; it must be at least 1", h.TimeoutSeconds)
	}
	return nil
}

func timeout(h *hostapi.Hook) time.Duration { return time.Duration(h.TimeoutSeconds) * time.Second }

// PreStart runs the preStart hook, if there is one, to its end and returns how
// long that took. Its error is for the sandbox's owner and has the end of the
// hook's output. It is killed when ctx ends.
func (r *Runner) PreStart(ctx context.Context) (time.Duration, error) {
	if r.preStart == nil {
		return 0, nil
	}
	o := r.run(ctx, r.preStart.Command, timeout(r.preStart))
	failure := o.failure(timeout(r.preStart))
	if failure == "" {
		return o.took, nil
	}
	message := "the preStart hook " + failure
	r.note(message)
	if o.tail != "" {
		message += "; its last output: " + o.tail
	}
	return o.took, fmt.Errorf("%s", message)
}

// note writes a line of execd's own to the log.
func (r *Runner) note(line string) {
	if r.cfg.Log != nil {
		r.cfg.Log.Write(entrylog.Stderr, []byte("["+printable(line)+"]\n"))
	}
}

// Start starts the schedules of the periodic hooks. They end, and what runs of
// them is killed, when over is closed.
func (r *Runner) Start(over <-chan struct{}) {
	if len(r.periodic) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-over
		cancel()
	}()
	for i := range r.periodic {
		go r.follow(ctx, &r.periodic[i])
	}
}

// follow runs one hook whenever it is due. What becomes due during a run is left
// out, so no hook ever runs twice at a time.
func (r *Runner) follow(ctx context.Context, p *periodic) {
	for {
		due := p.schedule.Next(time.Now())
		if !sleepUntil(ctx, due) {
			return
		}
		if missed(due, time.Now()) {
			continue
		}
		o := r.run(ctx, p.Command, timeout(&p.Hook))
		if ctx.Err() != nil {
			return
		}
		r.record(p, o)
	}
}

// missed reports whether it is too late for a run: the sandbox was paused when
// it was due.
func missed(due, now time.Time) bool { return now.Sub(due) > missedAfter }

// sleepUntil waits for a time of the wall clock, which may be set meanwhile. A
// zero time never comes. It answers false when ctx ended first.
func sleepUntil(ctx context.Context, due time.Time) bool {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := maxWait
		if !due.IsZero() {
			wait = min(wait, time.Until(due))
		}
		if wait <= 0 {
			return ctx.Err() == nil
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *Runner) record(p *periodic, o *outcome) {
	run := hostapi.HookRun{
		Name: p.Name, EndedAt: time.Now().UTC(), Millis: o.took.Milliseconds(),
		Code: o.exit.Code, Signal: int(o.exit.Signal), TimedOut: o.timedOut, Problem: o.problem,
	}
	if failure := o.failure(timeout(&p.Hook)); failure != "" {
		run.Output = o.tail
		r.note(fmt.Sprintf("the periodic hook %q %s", p.Name, failure))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	run.Seq = r.seq
	if len(r.runs) == keptRuns {
		r.runs = append(r.runs[:0], r.runs[1:]...)
	}
	r.runs = append(r.runs, run)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Ended returns the oldest kept runs with a higher number than after, and a
// channel that is closed when there are more.
func (r *Runner) Ended(after int64) (runs []hostapi.HookRun, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range r.runs {
		if run.Seq > after && len(runs) < maxTold {
			runs = append(runs, run)
		}
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return runs, r.changed
}
