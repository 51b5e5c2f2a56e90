package schedule

import (
	"strings"
	"testing"
	"time"
)

func TestNext(t *testing.T) {
	// A Tuesday.
	now := time.Date(2030, 1, 1, 10, 20, 30, 0, time.FixedZone("elsewhere", 3600))
	for text, want := range map[string]string{
		"* * * * *":        "2030-01-01T09:21:00Z",
		"*/15 * * * *":     "2030-01-01T09:30:00Z",
		"0 3 * * *":        "2030-01-02T03:00:00Z",
		"0 3 * * sun":      "2030-01-06T03:00:00Z",
		"5,10 8-9 1 1,2 *": "2030-02-01T08:05:00Z",
		"0 0 29 2 *":       "2032-02-29T00:00:00Z",
		"@hourly":          "2030-01-01T10:00:00Z",
		"  @daily ":        "2030-01-02T00:00:00Z",
		"@every 90s":       "2030-01-01T09:22:00Z",
		"@every 1.9s":      "2030-01-01T09:20:31Z",
	} {
		s, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := s.Next(now).UTC().Format(time.RFC3339); got != want {
			t.Errorf("%q: next is %s, want %s", text, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":                              "empty",
		" \t":                           "empty",
		"* * * *":                       "five fields",
		"* * * * * *":                   "five fields",
		"60 * * * *":                    "five fields",
		"*/0 * * * *":                   "five fields",
		"often":                         "five fields",
		"@reboot":                       "five fields",
		"@every":                        "five fields",
		"@every 0s":                     "1s to",
		"@every 500ms":                  "1s to",
		"@every -1h":                    "1s to",
		"@every soon":                   "1s to",
		"@every 9000h":                  "1s to",
		"TZ=":                           "time zone",
		"CRON_TZ=Europe/Rome * * * * *": "time zone",
		"0 0 30 2 *":                    "never comes",
		strings.Repeat("*", 300):        "bytes long",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want something that says %q", text, err, says)
		}
	}
}

// FuzzParse: no text makes it panic, and whatever it accepts comes, later than
// now.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"* * * * *", "@every 1s", "TZ=", "0 0 29 2 *", "1-59/7 */2 ? jan-mar mon-fri", "@annually", "*/9223372036854775807 * * * *"} {
		f.Add(s)
	}
	now := time.Date(2030, 1, 1, 10, 20, 30, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if next := s.Next(now); !next.After(now) {
			t.Fatalf("%q: next after %s is %s", text, now, next)
		}
	})
}
