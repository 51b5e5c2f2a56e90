package test

import (
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// A sandbox's life, started by runc: the engine's own tests hold it to more.
func TestLifeWithRunc(t *testing.T) {
	harness.RequireProgram(t, "runc")
	s := ownServer(t, map[string]string{"runtime.oci": "runc", "pool.size": "1"})
	pooled, inline := sleeper(t, s), sleeper(t, s)
	for _, sb := range []*client.Sandbox{pooled, inline} {
		if got := s.Must(t, sb.ID, "id -u; grep Seccomp: /proc/self/status"); got != "0\nSeccomp:\t2" {
			t.Errorf("%q", got)
		}
	}
	if got := inTerminal(t, s, inline.ID, "tty; stty size; test -t 0 && echo terminal"); !strings.Contains(got, "/dev/pts/") || !strings.Contains(got, "24 80") || !strings.Contains(got, "terminal") {
		t.Errorf("in a terminal: %q", got)
	}
	if err := s.Client.Pause(t.Context(), inline.ID); err != nil {
		t.Fatal(err)
	}
	s.State(t, inline.ID, client.StatePaused)
	restart(t, s, true)
	s.State(t, inline.ID, client.StatePaused)
	if err := s.Client.Resume(t.Context(), inline.ID); err != nil {
		t.Fatal(err)
	}
	if got := s.Must(t, inline.ID, "echo on"); got != "on" {
		t.Errorf("after the restart and the pause: %q", got)
	}
	for _, sb := range []*client.Sandbox{pooled, inline} {
		if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left := s.AwaitNoTraces(pooled.ID, inline.ID); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// inTerminal runs a line in a terminal and returns what was on the screen.
func inTerminal(t *testing.T, s *harness.Server, id, line string) string {
	t.Helper()
	session, err := s.Client.CreatePTY(t.Context(), id, client.PTYRequest{Shell: line, Cols: 80, Rows: 24})
	if err != nil {
		t.Fatal(err)
	}
	term, err := s.Client.AttachPTY(t.Context(), id, session, client.TerminalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var screen strings.Builder
	if _, err := term.Run(t.Context(), &screen); err != nil {
		t.Fatal(err)
	}
	return screen.String()
}
