package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestDiagnosticLogs(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.m.logText = "a\nb\xff\n"
	a := f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=%20Container", "").is(200, "")
	want := `{"content":"a\nb` + "\uFFFD" + `\n","contentLength":7,"contentType":"text/plain; charset=utf-8","delivery":"inline","kind":"logs","sandboxId":"sb","scope":"container","truncated":false}` + "\n"
	if a.body != want {
		t.Errorf("body = %s\nwant   %s", a.body, want)
	}
	if f.m.logOpts != (sandbox.LogOptions{Tail: 100, Timestamps: true}) {
		t.Errorf("options = %+v", f.m.logOpts)
	}
	f.m.logText = ""
	if a := f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=container", ""); a.member("content") != "" || a.member("contentLength") != 0.0 {
		t.Errorf("an empty log: %s", a.body)
	}
	if a := f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=all", ""); a.member("warnings") == nil {
		t.Errorf("no warning: %s", a.body)
	}
	f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=runtime", "").is(400, codeScope).says(`"runtime"`)
	f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=", "").is(400, codeScope)

	a = f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?tail=5", "").is(200, "")
	if a.header.Get("Deprecation") != "true" || a.header.Get("Content-Type") != textPlain || f.m.logOpts.Tail != 5 {
		t.Errorf("%v, %+v", a.header, f.m.logOpts)
	}
	f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?tail=10001", "").is(400, sandbox.CodeInvalidParameter)
	f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=all&tail=x", "").is(400, sandbox.CodeInvalidParameter).says("tail")
	f.call("GET", "/v1/sandboxes/sb/diagnostics/events?scope=all&limit=x", "").is(400, sandbox.CodeInvalidParameter).says("limit")

	// An unreadable span is ten minutes, by the contract.
	for since, want := range map[string]time.Duration{"2h": 2 * time.Hour, "soon": 10 * time.Minute, "-1s": 10 * time.Minute} {
		before := time.Now()
		f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?container=any&since="+since, "").is(200, "")
		if got := f.m.logOpts.Since; got.Before(before.Add(-want)) || got.After(time.Now().Add(-want)) {
			t.Errorf("since=%s: %s before now", since, time.Since(got))
		}
	}

	// Lines that do not fit: the newest are kept, from the start of a line.
	f.m.logText = strings.Repeat("old line\n", 500_000) + "newest\n"
	a = f.call("GET", "/v1/sandboxes/sb/diagnostics/logs?scope=container", "").is(200, "")
	text, _ := a.member("content").(string)
	if len(text) > maxInlineLog || !strings.HasPrefix(text, "old line\n") || !strings.HasSuffix(text, "newest\n") || a.member("truncated") != true {
		t.Errorf("%d bytes: %.20q … %v", len(text), text, a.member("truncated"))
	}
}

// eventful makes a sandbox with n events, in the form in which they are stored.
func (f *fixture) eventful(id string, n int) {
	f.t.Helper()
	f.m.put(id, sandbox.Failed)
	type stored struct {
		Last    int64           `json:"last"`
		Dropped int64           `json:"dropped"`
		List    []sandbox.Event `json:"list"`
	}
	all := stored{Last: int64(n) + 2, Dropped: 2}
	for i := range n {
		all.List = append(all.List, sandbox.Event{Seq: int64(i + 3), At: created.Add(time.Duration(i) * time.Second), Kind: sandbox.EventPaused, Message: fmt.Sprintf("number %d", i), Count: 1})
	}
	last := &all.List[n-1]
	last.Kind, last.Reason, last.Message = sandbox.EventEnded, sandbox.ReasonKilled, "It ended.\nBadly."
	last.Count, last.FirstAt = 3, created
	raw, err := json.Marshal(all)
	if err != nil {
		f.t.Fatal(err)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := json.Unmarshal(raw, &f.m.byID[id].Events); err != nil {
		f.t.Fatal(err)
	}
}

func TestDiagnosticEvents(t *testing.T) {
	f := start(t)
	f.eventful("sb", 60)
	a := f.call("GET", "/v1/sandboxes/sb/diagnostics/events?scope=%20RunTime", "").is(200, "")
	text, _ := a.member("content").(string)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != 51 || !strings.Contains(lines[0], "number 10") {
		t.Errorf("%d lines, from %q", len(lines), lines[0])
	}
	if want := "2030-01-02T03:05:04.678901Z  Ended              It ended.\n    Badly. [KILLED] (3 times since 2030-01-02T03:04:05.678901Z)\n"; !strings.HasSuffix(text, want) {
		t.Errorf("the last is not %q: %q", want, lines[len(lines)-2:])
	}
	for name, want := range map[string]any{"sandboxId": "sb", "kind": "events", "scope": "runtime", "delivery": "inline", "contentType": textPlain,
		"contentLength": float64(len(text)), "truncated": true} {
		if got := a.member(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if w := fmt.Sprint(a.member("warnings")); !strings.Contains(w, "12 older") {
		t.Errorf("warnings %s", w)
	}
	if w := fmt.Sprint(f.call("GET", "/sandboxes/sb/diagnostics/events?scope=all", "").is(200, "").member("warnings")); !strings.Contains(w, "one kind") {
		t.Errorf("warnings %s", w)
	}
	for _, scope := range []string{"", "container", "runtime,all"} {
		f.call("GET", "/v1/sandboxes/sb/diagnostics/events?scope="+scope, "").is(400, codeScope).says("scope", `"runtime" or "all"`)
	}

	a = f.call("GET", "/v1/sandboxes/sb/diagnostics/events?limit=2", "").is(200, "")
	if a.header.Get("Deprecation") != "true" || a.header.Get("Content-Type") != textPlain || strings.Count(a.body, "\n") != 3 {
		t.Errorf("%v %q", a.header, a.body)
	}
	for _, limit := range []string{"0", "501", "x", ""} {
		f.call("GET", "/v1/sandboxes/sb/diagnostics/events?limit="+limit, "").is(400, sandbox.CodeInvalidParameter).says("limit")
	}
	for _, route := range []string{"events", "events?scope=all", "inspect", "summary", "logs"} {
		f.call("GET", "/v1/sandboxes/no/diagnostics/"+route, "").is(404, sandbox.CodeNotFound)
		f.call("GET", "/v1/sandboxes/sb/diagnostics/"+route, "", "OPEN-SANDBOX-API-KEY", "").is(401, "")
	}
}

func TestInspectAndSummary(t *testing.T) {
	f := start(t)
	f.eventful("sb", 30)
	f.m.logText = "printed\n"
	f.m.mu.Lock()
	s := f.m.byID["sb"]
	s.Status.Reason, s.Status.Message = sandbox.ReasonKilled, "Ended by signal 9."
	s.Entrypoint = []string{"sh", "-c", "echo \"a\" b=c", "API_KEY=hunter2"}
	s.Spec.Env = map[string]string{"PLAIN": "seen\x1b[1m", "MY_TOKEN": "hunter2", "db_password": "hunter2", "Secret": "hunter2", "keys": "hunter2"}
	s.Spec.Metadata = map[string]string{"team": "a"}
	s.Spec.Limits = sandbox.Limits{CPUMillis: 500, MemoryBytes: 512 << 20}
	s.Spec.Volumes = []sandbox.VolumeMount{{Name: "data", Claim: "c", MountPath: "/data", ReadOnly: true}}
	s.Spec.Lifecycle = &sandbox.Lifecycle{PreStart: &sandbox.Hook{Command: []string{"prepare"}, Timeout: time.Minute},
		Periodic: []sandbox.PeriodicHook{{Name: "save", Schedule: "@hourly", Hook: sandbox.Hook{Command: []string{"save"}, Timeout: time.Second}}}}
	f.m.mu.Unlock()
	a := f.call("GET", "/v1/sandboxes/sb/diagnostics/inspect", "").is(200, "")
	for _, want := range []string{"Sandbox:     sb\n", "Failed (KILLED)", "Ended by signal 9.", `"echo \"a\" b=c"`, `API_KEY=***`, `  PLAIN="seen\x1b[1m"`, "  MY_TOKEN=***\n",
		"  db_password=***\n", "  Secret=***\n", "  keys=***\n", `  team="a"`, "cpu 500m, memory 512 MiB", "data at /data (volume c, read-only)",
		`preStart: "prepare" (at most 1m0s)`, `"save", @hourly: "save" (at most 1s)`, "Expires:     never"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("no %q in\n%s", want, a.body)
		}
	}
	b := f.call("GET", "/sandboxes/sb/diagnostics/summary?tail=7&event_limit=3", "").is(200, "")
	for _, want := range []string{a.body, "(29 older events were left out)", "It ended.", "the last 7 lines", "printed\n"} {
		if !strings.Contains(b.body, want) {
			t.Errorf("no %q in\n%s", want, b.body)
		}
	}
	if f.m.logOpts != (sandbox.LogOptions{Tail: 7, Timestamps: true}) {
		t.Errorf("options = %+v", f.m.logOpts)
	}
	for _, secret := range []string{"hunter2", "token-of-"} {
		if strings.Contains(a.body+b.body, secret) {
			t.Errorf("%s is shown", secret)
		}
	}
	for _, q := range []string{"tail=0", "tail=10001", "event_limit=501", "event_limit=-1"} {
		f.call("GET", "/v1/sandboxes/sb/diagnostics/summary?"+q, "").is(400, sandbox.CodeInvalidParameter)
	}
}

func TestEvents(t *testing.T) {
	f := start(t)
	f.eventful("sb", 4)
	var list api.EventList
	f.call("GET", "/v1/sandboxes/sb/events?after=4", "").is(200, "").into(&list)
	if len(list.Items) != 2 || list.Dropped != 2 {
		t.Fatalf("%+v", list)
	}
	want := api.SandboxEvent{Seq: 6, At: instant(created.Add(3 * time.Second)), Kind: "Ended", Reason: "KILLED", Message: "It ended.\nBadly.", Count: 3, FirstAt: instant(created)}
	if list.Items[1] != want {
		t.Errorf("got %+v", list.Items[1])
	}
	f.m.put("quiet", sandbox.Running)
	if a := f.call("GET", "/v1/sandboxes/quiet/events", "").is(200, ""); a.body != `{"dropped":0,"items":[]}`+"\n" {
		t.Errorf("without events: %s", a.body)
	}
	for _, after := range []string{"-1", "x", "", "9223372036854775808"} {
		f.call("GET", "/v1/sandboxes/sb/events?after="+after, "").is(400, sandbox.CodeInvalidParameter).says("after")
	}
	f.call("GET", "/v1/sandboxes/no/events", "", "Accept", "text/event-stream").is(404, sandbox.CodeNotFound)

	a := f.call("GET", "/v1/sandboxes/sb/events", "", "Accept", "text/event-stream")
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	var seqs []int64
	lines := bufio.NewScanner(strings.NewReader(a.body))
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e api.SandboxEvent
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			seqs = append(seqs, e.Seq)
		}
	}
	if fmt.Sprint(seqs) != "[3 4 5 6]" {
		t.Errorf("streamed %v", seqs)
	}
}
