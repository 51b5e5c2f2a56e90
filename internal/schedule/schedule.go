package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// MaxLength bounds the text of a schedule, in bytes.
const MaxLength = 256

// maxEvery bounds @every: what happens less often than once a year is a
// mistake.
const maxEvery = 366 * 24 * time.Hour

// fields are minute, hour, day of month, month and day of week (crontab(5)).
var fields = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Schedule says when something is due. It may be used from any goroutine.
type Schedule struct {
	text  string
	next  cron.Schedule
	every time.Duration
}

// Parse reads a schedule. Its errors are for whoever wrote it.
func Parse(text string) (*Schedule, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return nil, errors.New("it is empty")
	case len(text) > MaxLength:
		return nil, fmt.Errorf("it is %d bytes long; at most %d are allowed", len(text), MaxLength)
	case strings.Contains(text, "="):
		// The parser's own syntax for time zones, which a sandbox may not have
		// and which it reads carelessly.
		return nil, errors.New("it names a time zone; schedules are in UTC")
	}
	s := &Schedule{text: text}
	if span, ok := strings.CutPrefix(text, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(span))
		if err != nil || d < time.Second || d > maxEvery {
			return nil, errors.New("@every needs a span from 1s to 8784h, such as \"@every 30s\" or \"@every 1h30m\"")
		}
		s.every = d.Truncate(time.Second)
		return s, nil
	}
	next, err := fields.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("it must have the five fields of cron (minute, hour, day of month, month, day of week), as in \"*/5 * * * *\", or be @hourly, @daily, @weekly, @monthly, @yearly or \"@every 30s\" (%w)", err)
	}
	s.next = next
	if s.Next(time.Unix(0, 0)).IsZero() {
		return nil, errors.New("it names a day that never comes")
	}
	return s, nil
}

// Next returns when something is due after now. Cron expressions are in UTC.
// The time is zero when that is more than five years away, which only a schedule
// that Parse refuses says.
func (s *Schedule) Next(now time.Time) time.Time {
	if s.every > 0 {
		return now.Add(s.every)
	}
	return s.next.Next(now.UTC())
}

// String returns the text that was parsed.
func (s *Schedule) String() string { return s.text }
