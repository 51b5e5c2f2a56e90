package test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// restart kills or stops the server and starts it again.
func restart(t *testing.T, s *harness.Server, kill bool) {
	t.Helper()
	if kill {
		s.Kill()
	} else if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRestartAdoptsSandboxes(t *testing.T) {
	for name, kill := range map[string]bool{"kill -9": true, "SIGTERM": false} {
		t.Run(name, func(t *testing.T) {
			s := ownServer(t, nil)
			running := s.Create(t, client.CreateRequest{Image: busyboxImage, Timeout: time.Hour, Metadata: map[string]string{"k": "v"},
				Entrypoint: []string{"sh", "-c", "i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done"}})
			paused := sleeper(t, s)
			if err := s.Client.Pause(t.Context(), paused.ID); err != nil {
				t.Fatal(err)
			}
			ended := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sh", "-c", "echo was here; exit 5"}})
			s.State(t, ended.ID, client.StateFailed)
			command, err := s.Client.Start(t.Context(), running.ID, client.Command{Shell: "while ! test -e /tmp/end; do sleep 0.02; done; echo done"})
			if err != nil {
				t.Fatal(err)
			}
			expires := time.Now().Add(30 * time.Minute).Truncate(time.Second)
			if _, err := s.Client.Renew(t.Context(), running.ID, expires); err != nil {
				t.Fatal(err)
			}
			ep, err := s.Client.Endpoint(t.Context(), running.ID, 44772)
			if err != nil {
				t.Fatal(err)
			}
			before := count(t, s, running.ID)

			restart(t, s, kill)

			got, err := s.Client.Get(t.Context(), running.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status.State != client.StateRunning || got.Metadata["k"] != "v" || got.ExpiresAt == nil || !got.ExpiresAt.Equal(expires) || !got.CreatedAt.Equal(running.CreatedAt) {
				t.Errorf("after the restart: %+v", got)
			}
			again, err := s.Client.Endpoint(t.Context(), running.ID, 44772)
			if err != nil || again.Endpoint != ep.Endpoint || again.Headers["OpenSandbox-Secure-Access"] != ep.Headers["OpenSandbox-Secure-Access"] {
				t.Errorf("the endpoint changed: %+v %+v %v", ep, again, err)
			}
			await(t, "the entrypoint to go on", func() bool { return count(t, s, running.ID) > before })
			st, err := s.Client.CommandStatus(t.Context(), running.ID, command)
			if err != nil || !st.Running {
				t.Errorf("the background command: %+v %v", st, err)
			}
			s.Must(t, running.ID, "touch /tmp/end")
			await(t, "the background command to end", func() bool {
				st, err = s.Client.CommandStatus(t.Context(), running.ID, command)
				return err != nil || !st.Running
			})
			var out bytes.Buffer
			if _, err := s.Client.CommandLogs(t.Context(), running.ID, command, 0, &out); err != nil || out.String() != "done\n" {
				t.Errorf("its log: %q %v", out.String(), err)
			}
			s.State(t, paused.ID, client.StatePaused)
			if err := s.Client.Resume(t.Context(), paused.ID); err != nil {
				t.Fatal(err)
			}
			if got := s.Must(t, paused.ID, "echo back"); got != "back" {
				t.Errorf("the paused one says %q", got)
			}
			s.State(t, ended.ID, client.StateFailed)
			if got := logs(t, s, ended.ID); got != "was here\n" {
				t.Errorf("the log of the ended one: %q", got)
			}
			if err := s.Client.Delete(t.Context(), running.ID); err != nil {
				t.Fatal(err)
			}
			for _, trace := range s.AwaitNoTraces(running.ID) {
				t.Errorf("left: %s", trace)
			}
		})
	}
}

func count(t *testing.T, s *harness.Server, id string) float64 {
	t.Helper()
	out, _, _ := s.Shell(t, id, "cat /tmp/count")
	if out = strings.TrimSpace(out); out == "" {
		return 0
	}
	return number(t, out)
}

// What ended, expired or was deleted while no server ran is settled at the next
// start.
func TestWhatHappensWhileNoServerRuns(t *testing.T) {
	s := ownServer(t, nil)
	exits := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sh", "-c", "while ! test -e /tmp/end; do sleep 0.02; done; echo last; exit 3"}})
	expires, paused, killed := sleeper(t, s), sleeper(t, s), sleeper(t, s)
	if err := s.Client.Pause(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	s.Must(t, exits.ID, "(sleep 0.5; touch /tmp/end) >/dev/null 2>&1 &")
	for _, id := range []string{expires.ID, paused.ID} {
		if _, err := s.Client.Renew(t.Context(), id, time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	s.Kill()
	for _, pid := range hostPIDs(t, killed.ID) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	// The expiries pass while no server is there.
	time.Sleep(1500 * time.Millisecond)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Gone(t, expires.ID, 20*time.Second)
	s.Gone(t, paused.ID, 20*time.Second)
	sb := s.State(t, exits.ID, client.StateFailed)
	if sb.Status.Reason != "EXITED_ERROR" || !strings.Contains(sb.Status.Message, "3") {
		t.Errorf("the one that exited: %+v", sb.Status)
	}
	if got := logs(t, s, exits.ID); got != "last\n" {
		t.Errorf("its log: %q", got)
	}
	sb = s.State(t, killed.ID, client.StateFailed)
	if sb.Status.Reason != "EXECD_LOST" {
		t.Errorf("the one whose processes were killed: %+v", sb.Status)
	}
	for _, trace := range s.AwaitNoTraces(expires.ID, paused.ID) {
		t.Errorf("left: %s", trace)
	}
}

// PID 1 of a sandbox killed from the host: the sandbox fails and says why.
func TestExecdKilledFromTheHost(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	for _, pid := range hostPIDs(t, sb.ID) {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if f := strings.Fields(statusFields(string(b))["NSpid"]); len(f) > 1 && f[len(f)-1] == "1" {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	got := s.State(t, sb.ID, client.StateFailed)
	if got.Status.Reason != "EXECD_LOST" || got.Status.Message == "" {
		t.Errorf("%+v", got.Status)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

// A second server on the same data directory is refused and harms nothing.
func TestSecondServerIsRefused(t *testing.T) {
	s := ownServer(t, nil)
	sb := sleeper(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	port, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	r := cli(t, ctx, s, nil, "serve", "--set", "server.listen=127.0.0.1:"+strconv.Itoa(port))
	if r.code == 0 || !strings.Contains(r.stderr, s.DataDir) {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if got := s.Must(t, sb.ID, "echo alive"); got != "alive" {
		t.Errorf("the sandbox says %q", got)
	}
	s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever})
}

// Two servers on one machine, with directories of their own, do not see each
// other's sandboxes.
func TestTwoServersOnOneMachine(t *testing.T) {
	a, b := sharedServer(t), ownServer(t, nil)
	if a.Slot() == b.Slot() {
		t.Fatalf("both have slot %d", a.Slot())
	}
	one, two := sleeper(t, a), sleeper(t, b)
	ip := func(s *harness.Server, id string) string {
		return s.Must(t, id, "grep -v localhost /etc/hosts | head -n 1 | tr '\\t' ' ' | sed 's/ .*//'")
	}
	if x, y := ip(a, one.ID), ip(b, two.ID); x == y && x != "" {
		t.Errorf("both sandboxes have the address %s", x)
	}
	if _, err := b.Client.Get(t.Context(), one.ID); !client.IsNotFound(err) {
		t.Errorf("one server shows the other's sandbox: %v", err)
	}
	restart(t, b, true)
	if got := a.Must(t, one.ID, "echo alive"); got != "alive" {
		t.Errorf("the restart of one server harmed the other's sandbox: %q", got)
	}
}
