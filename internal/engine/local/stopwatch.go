package local

import "time"

// stopwatch measures the steps of a claim, for the log and the benchmarks.
type stopwatch struct {
	last  time.Time
	names []string
	took  []time.Duration
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

// done ends the step that began with the end of the one before.
func (w *stopwatch) done(name string) {
	now := time.Now()
	w.names = append(w.names, name)
	w.took = append(w.took, now.Sub(w.last))
	w.last = now
}

// attrs appends the steps to a log event's attributes, in microseconds.
func (w *stopwatch) attrs(args ...any) []any {
	for i, name := range w.names {
		args = append(args, name+"_us", w.took[i].Microseconds())
	}
	return args
}
