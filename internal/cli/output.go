package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// json prints a value for programs.
func (a *app) json(v any) error {
	enc := json.NewEncoder(a.streams.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// nonNil makes an empty list of none, which is "[]" and not "null" in JSON.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// table prints rows under headings.
func (a *app) table(headings []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.streams.Out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(headings, "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = sanitize(row[i])
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// ago words the age of something.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return strings.TrimSpace(humanize.RelTime(t, now, "ago", "from now"))
}

// until words the time left.
func until(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	left := t.Sub(now).Round(time.Second)
	if left <= 0 {
		return "now"
	}
	return "in " + left.String()
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// shortDigest cuts a digest as other tools show it.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok || len(hex) < 12 {
		return d
	}
	return hex[:12]
}
