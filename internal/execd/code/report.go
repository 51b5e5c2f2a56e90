package code

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

const (
	// maxReport bounds one report, in bytes: a result, which becomes one
	// event, must stay below 4 MiB, the line limit of the Go SDK.
	maxReport = 4<<20 - 64<<10
	// maxErrorText and maxErrorLines bound an error.
	maxErrorText  = 64 << 10
	maxErrorLines = 500
	// keptBuffer is how much of a long report's memory is kept for the next.
	keptBuffer = 64 << 10
)

// Kinds of reports.
const (
	reportReady   = "ready"
	reportBusy    = "busy"
	reportDisplay = "display"
	reportResult  = "result"
	reportDone    = "done"
	reportError   = "error"
	// reportOutput is not for drivers, whose output comes through pipes: it is
	// a kernel's.
	reportOutput = "output"
)

// report is one line from a driver. Everything in it may be the work of the
// user's code.
type report struct {
	Kind string `json:"t"`
	// Run is the run's number.
	Run uint64 `json:"n"`
	// Count is the number of the execution as the user sees it.
	Count int64 `json:"count"`
	// Code is the exit status of a shell's run.
	Code int64 `json:"code"`
	// Data is a result by MIME type.
	Data map[string]json.RawMessage `json:"data"`
	// Name, Value and Traceback describe an error. Name and Value are the kind
	// and the text of output.
	Name      string   `json:"ename"`
	Value     string   `json:"evalue"`
	Traceback []string `json:"traceback"`
	// Leaving says that the code told its kernel to end.
	Leaving bool `json:"-"`
}

// parseReport is false for what is no report. What follows from one is bounded.
func parseReport(line []byte) (report, bool) {
	var rep report
	if json.Unmarshal(line, &rep) != nil {
		return report{}, false
	}
	switch rep.Kind {
	case reportDisplay, reportResult:
		if len(rep.Data) == 0 {
			return report{}, false
		}
	case reportError:
		rep.bound()
	case reportReady, reportBusy, reportDone:
	default:
		return report{}, false
	}
	return rep, true
}

// bound cuts an error to size.
func (r *report) bound() {
	if r.Name == "" {
		r.Name = "Error"
	}
	r.Name, r.Value = cut(r.Name, 1024), cut(r.Value, maxErrorText)
	if n := len(r.Traceback); n > maxErrorLines {
		// Both ends tell most: where it began, and what it was.
		short := append([]string{}, r.Traceback[:maxErrorLines/2]...)
		short = append(short, "[…]")
		r.Traceback = append(short, r.Traceback[n-maxErrorLines/2:]...)
	}
	left := 4 * maxErrorText
	for i, line := range r.Traceback {
		r.Traceback[i] = cut(line, max(min(left, maxErrorText), 80))
		left -= len(line)
	}
}

// cut shortens s to about n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// reportReader takes a driver's reports apart.
type reportReader struct {
	// take is called for every report.
	take func(report)
	// tooLong is called for every line that was too long for a report.
	tooLong func()

	line     []byte
	skipping bool
}

// feed is the sink of the reports' pipe.
func (r *reportReader) feed(b []byte) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte{'\n'})
		b = rest
		switch {
		case r.skipping:
		case len(r.line)+len(part) > maxReport:
			r.skipping, r.line = true, nil
		case ended && len(r.line) == 0:
			r.finish(part)
			continue
		default:
			r.line = append(r.line, part...)
		}
		if !ended {
			continue
		}
		if r.skipping {
			r.skipping = false
			r.tooLong()
			continue
		}
		r.finish(r.line)
		r.line = r.line[:0]
		if cap(r.line) > keptBuffer {
			r.line = nil
		}
	}
}

func (r *reportReader) finish(line []byte) {
	if rep, ok := parseReport(line); ok {
		r.take(rep)
	}
}
