package test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
)

func TestIsolatedOptions(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever, Env: map[string]string{"MY_TOKEN": "t", "ONE": "1", "TWO": "2"}})
	s.Must(t, sb.ID, "mkdir -m 700 /theirs && chown 1234 /theirs && mkdir -p /w /ro /extra /data && echo there > /ro/file && echo tmp > /tmp/shared && echo b > /data/file")
	cases := map[string]struct{ settings, code, want string }{
		"balanced writes through": {`{"profile":"balanced","workspace":{"path":"/w"}}`,
			"echo x > through; cat /tmp/shared; echo y > /tmp/back; echo $MY_TOKEN", "tmp\nt"},
		"read-only":      {`{"workspace":{"path":"/ro","mode":"ro"}}`, "cat file; echo x > file || echo refused", "there\nrefused"},
		"extra writable": {`{"workspace":{"path":"/w"},"extra_writable":["/extra"]}`, "echo x > /extra/file && cat /extra/file", "x"},
		"binds": {`{"workspace":{"path":"/w"},"binds":[{"source":"/data","dest":"/mnt/data","readonly":true},{"source":"/data/file","dest":"/mnt/one"}]}`,
			"cat /mnt/data/file /mnt/one; touch /mnt/data/x || echo refused", "b\nb\nrefused"},
		"no network": {`{"workspace":{"path":"/w"},"share_net":false}`,
			"ls /sys/class/net; python3 -c 'import socket as s; l=s.create_server((\"127.0.0.1\",0)); s.create_connection(l.getsockname()); print(1)'", "lo\n1"},
		"a user":              {`{"workspace":{"path":"/w","mode":"rw"},"uid":1234,"gid":4321}`, "id -u; id -g; touch file || echo refused", "1234\n4321\nrefused"},
		"its owner's overlay": {`{"workspace":{"path":"/theirs"},"uid":1234}`, "touch file && stat -c %u:%g:%a . file; ls -A", "1234:0:700\n1234:0:644\nfile"},
		"in memory":           {`{"overlays":[{"path":"/w","mode":"overlay","persist":false}]}`, "echo x > file; cat file", "x"},
		"nested":              {`{"overlays":[{"path":"/w/deep/er","mode":"rw"},{"path":"/w","mode":"overlay"}]}`, "cd /w; echo copy > copied; echo real > deep/er/real; ls", "copied\ndeep\nthrough"},
		"workspace in /tmp":   {`{"workspace":{"path":"/tmp/ws"}}`, "pwd; ls /tmp", "/tmp/ws\nws"},
		"allowed variables":   {`{"workspace":{"path":"/w"},"env_passthrough":{"mode":"allow","keys":["ONE"]}}`, "echo $ONE-$TWO-${PATH:+path}", "1--path"},
		"denied variables":    {`{"workspace":{"path":"/w"},"env_passthrough":{"keys":["ONE"]}}`, "echo $ONE-$TWO-$MY_TOKEN", "-2-"},
	}
	for _, name := range []string{"balanced writes through", "read-only", "extra writable", "binds", "no network", "a user", "its owner's overlay", "in memory", "nested", "workspace in /tmp", "allowed variables", "denied variables"} {
		t.Run(name, func(t *testing.T) {
			is := newIsolated(t, s, sb.ID, cases[name].settings)
			out, _ := is.run(t, "exec 2>/dev/null; "+cases[name].code)
			if out != cases[name].want {
				t.Errorf("got %q, want %q", out, cases[name].want)
			}
			if r := is.do(t, "DELETE", "", nil); r.Status != http.StatusOK {
				t.Errorf("delete: %d %s", r.Status, r.Body)
			}
		})
	}
	if got := s.Must(t, sb.ID, "cat /w/through /tmp/back /extra/file; ls /w /w/deep/er"); got != "x\ny\nx\n/w:\ndeep\nthrough\n\n/w/deep/er:\nreal" {
		t.Errorf("the sandbox has %q", got)
	}
}

func TestIsolatedLimits(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sleep", "1000000"}})
	var all []*isolated
	for {
		r := s.Do(t, "POST", isolatedPath(sb.ID, "session"), workspace)
		if r.Status == http.StatusTooManyRequests {
			break
		}
		is := &isolated{s: s, sandbox: sb.ID}
		if r.JSON(t, is); r.Status != http.StatusCreated || len(all) > 64 {
			t.Fatalf("session %d: status %d: %s", len(all), r.Status, r.Body)
		}
		all = append(all, is)
	}
	if len(all) < 4 {
		t.Errorf("only %d sessions are possible", len(all))
	}
	for _, is := range all {
		is.do(t, "DELETE", "", nil)
	}
	// One second of idleness ends a session.
	is := newIsolated(t, s, sb.ID, `{"workspace":{"path":"/workspace"},"idle_timeout_seconds":1}`)
	await(t, "the idle session to end", func() bool {
		// The list does not count as use.
		return !strings.Contains(string(s.Do(t, "GET", isolatedPath(sb.ID, "sessions"), nil).Body), is.ID)
	})
	is = newIsolated(t, s, sb.ID, workspace)
	if err := s.Client.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if r := is.do(t, "GET", "", nil); r.Status != http.StatusConflict {
		t.Errorf("in a paused sandbox: status %d", r.Status)
	}
	if err := s.Client.Resume(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	s.State(t, sb.ID, client.StateRunning)
	is.must(t, "true")
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if traces := s.AwaitNoTraces(sb.ID); len(traces) > 0 {
		t.Errorf("left on the host:\n%s", strings.Join(traces, "\n"))
	}
}

// The copies of a session count against the sandbox's own disk.
func TestIsolatedOnLimitedDisk(t *testing.T) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop devices")
	}
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sleep", "1000000"},
		ResourceLimits: map[string]string{"ephemeral-storage": "64Mi"}})
	s.Must(t, sb.ID, "mkdir /workspace")
	is := newIsolated(t, s, sb.ID, workspace)
	if out, exit := is.run(t, "dd if=/dev/zero of=big bs=1M count=200 2>&1"); exit == "0" || !strings.Contains(out, "No space left") {
		t.Errorf("200 MiB on a disk of 64 MiB: %s, %q", exit, out)
	}
	if r := is.do(t, "POST", "/commit", nil); r.Status != http.StatusInsufficientStorage {
		t.Errorf("committing to a full disk: %d %s", r.Status, r.Body)
	}
	if got := s.Must(t, sb.ID, "ls -A /workspace"); got != "" {
		t.Errorf("half a file was left: %s", got)
	}
	is.must(t, "rm big; echo small > small")
	if r := is.do(t, "POST", "/commit", nil); r.Status != http.StatusOK || s.Must(t, sb.ID, "cat /workspace/small") != "small" {
		t.Errorf("commit: %d %s", r.Status, r.Body)
	}
	if r := is.do(t, "DELETE", "", nil); r.Status != http.StatusOK {
		t.Errorf("delete: %d %s", r.Status, r.Body)
	}
	used := s.Must(t, sb.ID, "df -k / | tail -1 | awk '{print $3}'")
	if len(used) > 5 {
		t.Errorf("after the session's end %s KiB of the disk are in use", used)
	}
}
