package code

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/event"
)

// message takes what a kernel sends. It is called in parallel for different
// channels, and in order for each.
func (k *kernel) message(m *jupyter.Message) {
	switch m.Channel {
	case jupyter.IOPub:
		token(k.first)
		k.published(m)
	case jupyter.Shell:
		switch m.Header.Type {
		case "kernel_info_reply":
			token(k.info)
		case "execute_reply":
			k.replied(m)
		}
	case jupyter.Control:
		if m.Header.Type == "interrupt_reply" {
			k.interrupted()
		}
	case jupyter.Stdin:
		if m.Header.Type == "input_request" {
			k.refuseInput(m)
		}
	}
}

// token puts one into c unless there is one.
func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// executing returns the run that a message belongs to, nil for none.
func (k *kernel) executing(m *jupyter.Message) *run {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.exec; e != nil && m.Parent == e.id {
		return e.x
	}
	return nil
}

// published takes a message of the channel of outputs.
func (k *kernel) published(m *jupyter.Message) {
	if m.Header.Type == "stream" {
		// That of a thread or a process which an earlier run has left behind is
		// shown, too.
		var out struct {
			Name string `json:"name"`
			Text string `json:"text"`
		}
		if decodeContent(m, &out) {
			k.print(streamKind(out.Name), out.Text)
		}
		k.waitLonger()
		return
	}
	x := k.executing(m)
	if m.Header.Type == "status" {
		k.status(m, x)
	}
	if x == nil {
		return
	}
	switch m.Header.Type {
	case "execute_input":
		var in struct {
			Count int64 `json:"execution_count"`
		}
		if decodeContent(m, &in) {
			k.update(func(e *execution) { e.count = in.Count })
		}
	case "display_data", "update_display_data":
		k.show(m, x, reportDisplay)
	case "execute_result":
		k.show(m, x, reportResult)
	case "error":
		if rep, ok := errorReport(m); ok {
			k.update(func(e *execution) { e.failed = &rep })
		}
	}
	k.waitLonger()
}

func streamKind(name string) string {
	if name == event.Stderr {
		return event.Stderr
	}
	return event.Stdout
}

// status takes a change of the kernel's state, in the run x or in none.
func (k *kernel) status(m *jupyter.Message, x *run) {
	var s struct {
		State string `json:"execution_state"`
	}
	if !decodeContent(m, &s) {
		return
	}
	switch {
	case s.State == "restarting" || s.State == "autorestarting" || s.State == "dead":
		// A server says that of a kernel that has ended. It starts it anew, but
		// without the state; a context does that itself, and says so.
		k.fail(errors.New("the Jupyter server says that it died"))
	case x == nil:
	case s.State == "busy":
		emit(x, report{Kind: reportBusy})
	case s.State == "idle":
		k.update(func(e *execution) { e.idle = true })
	}
}

// show passes a bundle of representations on.
func (k *kernel) show(m *jupyter.Message, x *run, kind string) {
	var out struct {
		Data  map[string]json.RawMessage `json:"data"`
		Count int64                      `json:"execution_count"`
	}
	if !decodeContent(m, &out) {
		return
	}
	for _, left := range fit(out.Data) {
		tell(x, "the result of type %s was left out: it has %d bytes, and all types of a result together may have %d", cut(left.kind, 100), left.size, maxReport)
	}
	if len(out.Data) == 0 {
		return
	}
	emit(x, report{Kind: kind, Data: out.Data, Count: out.Count})
}

// leftOut is a representation that did not fit into an event.
type leftOut struct {
	kind string
	size int
}

// fit removes the largest representations until the rest fits into an event.
func fit(data map[string]json.RawMessage) []leftOut {
	total := 0
	kinds := make([]string, 0, len(data))
	for kind, value := range data {
		kinds = append(kinds, kind)
		total += len(kind) + len(value)
	}
	slices.SortFunc(kinds, func(a, b string) int { return len(data[b]) - len(data[a]) })
	var out []leftOut
	for _, kind := range kinds {
		if total <= maxReport {
			break
		}
		total -= len(kind) + len(data[kind])
		out = append(out, leftOut{kind, len(data[kind])})
		delete(data, kind)
	}
	return out
}

// errorReport reads an error, which is part of two kinds of messages.
func errorReport(m *jupyter.Message) (report, bool) {
	rep := report{Kind: reportError}
	var e struct {
		Name      string   `json:"ename"`
		Value     string   `json:"evalue"`
		Traceback []string `json:"traceback"`
	}
	if !decodeContent(m, &e) {
		return rep, false
	}
	rep.Name, rep.Value, rep.Traceback = plainText(e.Name), plainText(e.Value), e.Traceback
	for i, line := range rep.Traceback {
		rep.Traceback[i] = plainText(line)
	}
	rep.bound()
	return rep, true
}

// replied takes the answer to a run.
func (k *kernel) replied(m *jupyter.Message) {
	var r struct {
		Status  string `json:"status"`
		Count   int64  `json:"execution_count"`
		Payload []struct {
			Source string                     `json:"source"`
			Data   map[string]json.RawMessage `json:"data"`
			Keep   bool                       `json:"keepkernel"`
		} `json:"payload"`
	}
	if k.executing(m) == nil {
		return
	}
	// A reply of the wrong form is one nevertheless: the run is over.
	_ = json.Unmarshal(m.Content, &r)
	rep, _ := errorReport(m)
	k.update(func(e *execution) {
		e.replied = true
		if r.Count != 0 {
			e.count = r.Count
		}
		if r.Status != "" && r.Status != "ok" && e.failed == nil {
			e.failed = &rep
		}
		for _, p := range r.Payload {
			var text string
			switch {
			case p.Source == "page" && json.Unmarshal(p.Data["text/plain"], &text) == nil:
				e.pages = append(e.pages, plainText(text))
			case p.Source == "ask_exit" && !p.Keep:
				e.leaving = true
			}
		}
	})
}

// update changes what is known of the execution, and ends it when nothing is
// missing any more.
func (k *kernel) update(change func(*execution)) {
	k.mu.Lock()
	e := k.exec
	if e == nil || e.finished {
		k.mu.Unlock()
		return
	}
	change(e)
	if e.replied && !e.idle && e.quiet == nil {
		e.quiet = time.AfterFunc(k.waits.idle, func() { k.lost(e) })
	}
	over := e.replied && e.idle
	e.finished = over
	k.mu.Unlock()
	if over {
		k.finish(e)
	}
}

// waitLonger puts off the moment at which outputs count as lost.
func (k *kernel) waitLonger() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.exec; e != nil && e.quiet != nil && !e.finished {
		e.quiet.Reset(k.waits.idle)
	}
}

// lost ends an execution whose outputs never ended.
func (k *kernel) lost(e *execution) {
	k.mu.Lock()
	first := !e.finished && k.exec == e
	e.finished = e.finished || first
	k.mu.Unlock()
	if first {
		tell(e.x, "some of the output of this run may be missing: the kernel dropped messages")
		k.finish(e)
	}
}

// finish reports the end of an execution.
func (k *kernel) finish(e *execution) {
	if e.quiet != nil {
		e.quiet.Stop()
	}
	for _, page := range e.pages {
		emit(e.x, report{Kind: reportOutput, Name: event.Stdout, Value: page + "\n"})
	}
	rep := report{Kind: reportDone}
	if e.failed != nil {
		rep = *e.failed
	}
	rep.Count, rep.Leaving = e.count, e.leaving
	emit(e.x, rep)
}

// refuseInput answers a question to the user, which a kernel may not ask: the
// request forbade it. There is no answer that means no.
func (k *kernel) refuseInput(m *jupyter.Message) {
	x := k.executing(m)
	if x == nil {
		return
	}
	tell(x, "the code asked for input and was interrupted: nobody is there to answer. Put the value into the code, or read it from a file")
	k.interrupt(x, false)
}

// plainText removes the control sequences that colour a terminal's text
// (ECMA-48, "Control Sequence Introducer").
func plainText(s string) string {
	if !strings.Contains(s, "\x1b[") {
		return s
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		// Parameters and intermediate bytes, then a final byte.
		end := strings.IndexFunc(rest, func(c rune) bool { return c < 0x20 || c > 0x3f })
		if end < 0 {
			return b.String()
		}
		if c := rest[end]; c >= 0x40 && c <= 0x7e {
			end++
		}
		s = rest[end:]
	}
}
