package server

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// The contract's numbers (OpenSandbox diagnostics API).
const (
	diagnosticLines  = 100
	diagnosticEvents = 50
	summaryLines     = 50
	summaryEvents    = 20
	maxTail          = 10_000
	maxEventLimit    = 500
	// sinceOtherwise is what an unreadable since means.
	sinceOtherwise = 10 * time.Minute
)

// diagnosticLogs is the contract's form of logs: JSON with a scope, and plain
// text without one, which is deprecated.
func (s *Server) diagnosticLogs(r *request) error {
	q, id, err := diagnosticRequest(r)
	if err != nil {
		return err
	}
	// Checked with a scope too, where it has no effect: what is wrong is said.
	tail, err := queryInt(q, "tail", 1, maxTail, diagnosticLines)
	if err != nil {
		return err
	}
	if !q.Has("scope") {
		return s.plainLogs(r, id, q, tail)
	}
	scope, err := queryScope(q, "container", "all")
	if err != nil {
		return err
	}
	text, truncated, err := s.lastLines(r, id, sandbox.LogOptions{Tail: diagnosticLines, Timestamps: true})
	if err != nil {
		return err
	}
	d := diagnostics(id, "logs", scope, text, truncated)
	if scope == "all" {
		d.Warnings = []string{"A sandbox has one log here, that of its entrypoint. It is all there is."}
	}
	writeJSON(r.w, http.StatusOK, d)
	return nil
}

// diagnosticRequest reads what all diagnostics routes take.
func diagnosticRequest(r *request) (q url.Values, id string, err error) {
	if q, err = r.query(); err != nil {
		return nil, "", err
	}
	id, err = r.sandboxID()
	return q, id, err
}

func queryScope(q url.Values, allowed ...string) (string, error) {
	scope := strings.ToLower(strings.TrimSpace(q.Get("scope")))
	if !slices.Contains(allowed, scope) {
		return "", invalid(codeScope, `scope is %s; it must be "%s".`, quote(q.Get("scope")), strings.Join(allowed, `" or "`))
	}
	return scope, nil
}

func diagnostics(id, kind, scope, text string, truncated bool) api.Diagnostics {
	length := len(text)
	return api.Diagnostics{
		SandboxID: id, Kind: kind, Scope: scope, Delivery: "inline",
		ContentType: textPlain, Content: &text, ContentLength: &length, Truncated: truncated,
	}
}

func (s *Server) plainLogs(r *request, id string, q url.Values, tail int) error {
	since, err := querySince(q)
	if err != nil {
		since = time.Now().Add(-sinceOtherwise)
	}
	text, _, err := s.lastLines(r, id, sandbox.LogOptions{Tail: tail, Since: since, Timestamps: true})
	if err != nil {
		return err
	}
	r.w.Header().Set("Deprecation", "true")
	writeText(r.w, http.StatusOK, text)
	return nil
}

// diagnosticEvents is the contract's form of events.
func (s *Server) diagnosticEvents(r *request) error {
	q, id, err := diagnosticRequest(r)
	if err != nil {
		return err
	}
	limit, err := queryInt(q, "limit", 1, maxEventLimit, diagnosticEvents)
	if err != nil {
		return err
	}
	scope := ""
	if q.Has("scope") {
		if scope, err = queryScope(q, "runtime", "all"); err != nil {
			return err
		}
		limit = diagnosticEvents
	}
	events, err := s.manager.Events(id)
	if err != nil {
		return err
	}
	text, left := eventsText(events, limit)
	if scope == "" {
		r.w.Header().Set("Deprecation", "true")
		writeText(r.w, http.StatusOK, text)
		return nil
	}
	d := diagnostics(id, "events", scope, text, left > 0)
	if scope == "all" {
		d.Warnings = append(d.Warnings, "A sandbox has one kind of events here. They are all there are.")
	}
	if left > 0 {
		d.Warnings = append(d.Warnings, fmt.Sprintf("%d older events were left out.", left))
	}
	writeJSON(r.w, http.StatusOK, d)
	return nil
}

// eventsText renders the newest events, and says how many there were before.
func eventsText(events sandbox.Events, limit int) (text string, left int64) {
	all := events.All()
	left = events.Dropped()
	if n := len(all) - limit; n > 0 {
		all, left = all[n:], left+int64(n)
	}
	var b strings.Builder
	for _, e := range all {
		fmt.Fprintf(&b, "%s  %-18s %s", instant(e.At).Format(time.RFC3339Nano), e.Kind, indent(e.Message))
		if e.Reason != "" {
			fmt.Fprintf(&b, " [%s]", e.Reason)
		}
		if e.Count > 1 {
			fmt.Fprintf(&b, " (%d times since %s)", e.Count, instant(e.FirstAt).Format(time.RFC3339Nano))
		}
		b.WriteByte('\n')
	}
	return b.String(), left
}

// indent keeps the lines of a message apart from the next event.
func indent(s string) string { return strings.ReplaceAll(s, "\n", "\n    ") }

// inspectSandbox describes a sandbox for people.
func (s *Server) inspectSandbox(r *request) error {
	sb, err := s.get(r)
	if err != nil {
		return err
	}
	writeText(r.w, http.StatusOK, describe(sb))
	return nil
}

// summarizeSandbox is all diagnostics in one text.
func (s *Server) summarizeSandbox(r *request) error {
	q, id, err := diagnosticRequest(r)
	if err != nil {
		return err
	}
	tail, err := queryInt(q, "tail", 1, maxTail, summaryLines)
	if err != nil {
		return err
	}
	limit, err := queryInt(q, "event_limit", 1, maxEventLimit, summaryEvents)
	if err != nil {
		return err
	}
	sb, err := s.manager.Get(id)
	if err != nil {
		return err
	}
	log, _, err := s.lastLines(r, id, sandbox.LogOptions{Tail: tail, Timestamps: true})
	if err != nil {
		return err
	}
	events, left := eventsText(sb.Events, limit)
	var b strings.Builder
	b.WriteString(describe(sb))
	b.WriteString("\nEvents:\n")
	if left > 0 {
		fmt.Fprintf(&b, "(%d older events were left out)\n", left)
	}
	b.WriteString(events)
	fmt.Fprintf(&b, "\nLog (the last %d lines):\n", tail)
	b.WriteString(log)
	writeText(r.w, http.StatusOK, b.String())
	return nil
}
