package hooks

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/schedule"
)

func TestSinkKeepsTheEnd(t *testing.T) {
	s := &sink{}
	for _, piece := range []string{strings.Repeat("a", 3*maxTail), "b", "", strings.Repeat("c", maxTail-2)} {
		s.write(0, []byte(piece))
	}
	if got, want := s.end(), "ab"+strings.Repeat("c", maxTail-2); got != want[1:] && got != want {
		t.Errorf("the end is %q", got)
	}
	s.write(1, []byte("late"))
	if got := s.end(); got != "" {
		t.Errorf("kept %q after the end", got)
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"plain\n", "\x1b[31mred\r", "\xff\xfe", "a\x00b\u0085c\td"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(c rune) bool { return unicode.IsControl(c) && c != '\n' }) {
			t.Errorf("%q became %q", s, got)
		}
	})
}

// An answer with the longest runs, of the bytes that take most room in JSON,
// fits into what the engine reads (64 KiB).
func TestAnswersAreBounded(t *testing.T) {
	r := &Runner{}
	p := &periodic{Hook: hostapi.Hook{Name: strings.Repeat("<", 64), TimeoutSeconds: 1}}
	for range 3 * keptRuns {
		r.record(p, &outcome{problem: shorten(strings.Repeat("<", 4096), maxProblem), exit: process.Exit{Code: -1}, tail: strings.Repeat("<", maxTail)})
	}
	runs, _ := r.Ended(0)
	if len(runs) != maxTold || runs[0].Seq != 2*keptRuns+1 {
		t.Fatalf("%d runs from %d", len(runs), runs[0].Seq)
	}
	b, err := json.Marshal(hostapi.ExitStatus{Running: true, Hooks: runs})
	if err != nil || len(b) > 60<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if runs, more := r.Ended(3 * keptRuns); len(runs) != 0 || more == nil {
		t.Errorf("%d runs behind the last", len(runs))
	}
}

func TestSleepUntil(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if !sleepUntil(ctx, time.Now().Add(-time.Hour)) || !sleepUntil(ctx, time.Now().Add(time.Millisecond)) {
		t.Error("what is due was not waited for")
	}
	cancel()
	if sleepUntil(ctx, time.Now().Add(time.Hour)) || sleepUntil(ctx, time.Time{}) || sleepUntil(ctx, time.Now()) {
		t.Error("it goes on after the end")
	}
}

// What was due while the sandbox stood still is left out; the next run is at
// the next time of the schedule.
func TestMissedRunsAreLeftOut(t *testing.T) {
	s, err := schedule.Parse("*/10 * * * *")
	if err != nil {
		t.Fatal(err)
	}
	due := s.Next(time.Date(2030, 1, 1, 10, 5, 0, 0, time.UTC))
	for late, want := range map[time.Duration]bool{-time.Second: false, 0: false, missedAfter: false, missedAfter + 1: true, time.Hour: true} {
		if missed(due, due.Add(late)) != want {
			t.Errorf("%s late: missed is %v", late, !want)
		}
	}
}
