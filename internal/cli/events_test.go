package cli_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// kinds reads what `paddock events -o json` prints.
func (m *machine) kinds(id string) string {
	m.t.Helper()
	var list client.EventList
	if err := json.Unmarshal([]byte(m.ok("events", "-o", "json", id)), &list); err != nil {
		m.t.Fatal(err)
	}
	var kinds []string
	for _, e := range list.Items {
		kinds = append(kinds, e.Kind)
	}
	return strings.Join(kinds, " ")
}

// lines follows a command line and gives its output line by line, and its exit
// code at the end.
func (m *machine) lines(line ...string) (lines <-chan string, end func() int) {
	m.t.Helper()
	cmd := m.command(line...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	all := make(chan string, 1000)
	go func() {
		defer close(all)
		for in := bufio.NewScanner(out); in.Scan(); {
			all <- in.Text()
		}
	}()
	return all, func() int {
		for range all { // to its end
		}
		_ = cmd.Wait() // the exit code is what counts
		return cmd.ProcessState.ExitCode()
	}
}

// expect reads lines up to one that has the text.
func expect(t *testing.T, lines <-chan string, text string) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				t.Fatalf("it ended before %q", text)
			}
			if strings.Contains(l, text) {
				return
			}
		case <-limit:
			t.Fatalf("no line with %q", text)
		}
	}
}

func TestEventsAndHooks(t *testing.T) {
	m := newMachine(t)
	sb, err := m.Client.Create(t.Context(), client.CreateRequest{
		Image: image, Timeout: 10 * time.Minute, Wait: time.Minute,
		Env:        map[string]string{"API_TOKEN": "hunter2", "PLAIN": "seen"},
		Entrypoint: []string{"sh", "-c", "echo begun; while [ ! -e /stop ]; do sleep 0.05; done; echo ended; exit 3"},
		Lifecycle: &client.Lifecycle{
			PreStart: &client.Hook{Command: []string{"sh", "-c", "echo prepared"}},
			Periodic: []client.PeriodicHook{{Name: "beat", Schedule: "@every 1s", Hook: client.Hook{Command: []string{"sh", "-c", "echo beat"}, Timeout: 5 * time.Second}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := sb.ID
	log, logEnd := m.lines("logs", "-f", id)
	expect(t, log, "prepared")
	expect(t, log, "begun")
	expect(t, log, "beat")
	events, eventsEnd := m.lines("events", "-f", id)
	expect(t, events, "PreStartSucceeded")
	expect(t, events, "HookSucceeded")
	m.ok("pause", id)
	expect(t, events, "Paused")
	m.ok("resume", id)
	expect(t, events, "Resumed")
	m.ok("renew", id, "1h")
	expect(t, events, "Renewed")
	if out := m.ok("events", id); !strings.HasPrefix(out, "TIME") || !strings.Contains(out, "Created") || !strings.Contains(out, image) {
		t.Errorf("events: %s", out)
	}
	m.ok("exec", id, "--", "touch", "/stop")
	expect(t, events, "Ended")
	expect(t, log, "ended")
	if a, b := logEnd(), eventsEnd(); a != 0 || b != 0 {
		t.Errorf("exit codes %d and %d", a, b)
	}
	// How often a hook ran, and when, is nobody's promise.
	got := strings.ReplaceAll(m.kinds(id), "HookSucceeded ", "")
	if want := "Created PreStartRunning PreStartSucceeded Started Paused Resumed Renewed Ended"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
	r := m.Do(t, "GET", "/v1/sandboxes/"+id+"/diagnostics/summary", "")
	for _, want := range []string{"Failed (EXITED_ERROR)", "API_TOKEN=***", `PLAIN="seen"`, "exit code 3", "begun"} {
		if !strings.Contains(string(r.Body), want) {
			t.Errorf("the summary has no %q:\n%s", want, r.Body)
		}
	}
	if strings.Contains(string(r.Body), "hunter2") {
		t.Error("the summary shows a secret")
	}
	m.ok("rm", id)
	if _, errs, code := m.result(m.command("events", id)); code != 1 || !strings.Contains(errs, "deleted") {
		t.Errorf("events of a removed sandbox: %d, %s", code, errs)
	}
}

func TestFailedPreStart(t *testing.T) {
	m := newMachine(t)
	sb, err := m.Client.Create(t.Context(), client.CreateRequest{
		Image: image, Timeout: 10 * time.Minute, Wait: time.Minute,
		Entrypoint: []string{"echo", "never"},
		Lifecycle:  &client.Lifecycle{PreStart: &client.Hook{Command: []string{"sh", "-c", "echo the disk is missing; exit 4"}}},
	})
	var failed *client.FailedError
	if !errors.As(err, &failed) || failed.Sandbox.Status.Reason != "PRE_START_FAILED" || !strings.Contains(failed.Sandbox.Status.Message, "the disk is missing") {
		t.Fatalf("%v, %+v", err, sb)
	}
	if got := m.kinds(sb.ID); got != "Created PreStartRunning Failed" {
		t.Errorf("events: %s", got)
	}
	if out := m.ok("logs", sb.ID); !strings.HasPrefix(out, "the disk is missing\n") || strings.Contains(out, "never") {
		t.Errorf("log: %q", out)
	}
	if out, _, code := m.result(m.command("events", "-f", sb.ID)); code != 0 || !strings.Contains(out, "Failed") {
		t.Errorf("%d %s", code, out)
	}

	// What happened outlives the server.
	id := m.create()
	m.Kill()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.kinds(sb.ID); got != "Created PreStartRunning Failed" {
		t.Errorf("events after a restart: %s", got)
	}
	if got := m.kinds(id); got != "Created Started Restored" {
		t.Errorf("events after a restart: %s", got)
	}
}
