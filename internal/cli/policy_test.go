package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
)

func testPolicy(t *testing.T, m *machine, _ string) {
	id := strings.TrimSpace(m.ok("create", image, "--timeout", "10m", "--allow", "example.com", "--deny", "bad.example.com"))
	defer m.ok("rm", id)
	policy := func(line ...string) string {
		t.Helper()
		var st client.NetworkPolicyStatus
		out := m.ok(append([]string{"-o", "json", "policy"}, line...)...)
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text := []string{}
		for _, r := range st.Policy.Egress {
			text = append(text, r.Action+" "+r.Target)
		}
		return strings.Join(append(text, st.Policy.DefaultAction), ", ")
	}
	file := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"allow","egress":[{"action":"deny","target":"192.0.2.0/24"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"get", id}, "deny bad.example.com, allow example.com, deny"},
		{[]string{"allow", id, "a.example", "*.b.example"}, "allow a.example, allow *.b.example, deny bad.example.com, allow example.com, deny"},
		{[]string{"deny", id, "a.example"}, "deny a.example, allow *.b.example, deny bad.example.com, allow example.com, deny"},
		{[]string{"rm", id, "a.example", "example.com", "no.rule"}, "allow *.b.example, deny bad.example.com, deny"},
		{[]string{"set", id, file}, "deny 192.0.2.0/24, allow"},
		{[]string{"set", id, `{}`}, "deny"},
	} {
		if got := policy(c.line...); got != c.want {
			t.Errorf("%q: %s, want %s", c.line, got, c.want)
		}
	}
	if out := m.ok("policy", "get", id); !strings.Contains(out, "everything else") {
		t.Errorf("as a table: %s", out)
	}
	m.result(m.command("exec", id, "--", "nc", "-w", "2", "192.0.2.1", "80"))
	for range 100 {
		// Denials become events in batches.
		if out := m.ok("logs", "--denied", id); strings.Contains(out, "192.0.2.1:80") {
			return
		}
		m.ok("exec", id, "--", "sleep", "0.1")
	}
	t.Errorf("the denial is not shown: %s", m.ok("events", id))
}

func testCreateFlags(t *testing.T, m *machine, _ string) {
	id := strings.TrimSpace(m.ok("create", image, "--timeout", "10m", "--pre-start", "echo prepared >/pre",
		"--periodic", `tick=@every 1s=["sh","-c","echo a=b >>/tick"]`, "--hook-timeout", "5s", "-v", "flags:/data:subpath=sub,rm"))
	if out := m.ok("exec", id, "--", "sh", "-c", "cat /pre; until [ -s /tick ]; do sleep 0.1; done; head -n 1 /tick; ls -d /data"); out != "prepared\na=b\n/data\n" {
		t.Errorf("%q", out)
	}
	m.ok("rm", id)
	if out := m.ok("volume", "ls"); strings.Contains(out, "flags") {
		t.Errorf("the volume stays: %s", out)
	}
	for _, c := range []struct{ flags, want string }{
		{"--deny=x.com", "--allow-default"}, {"--network-policy={\"egres\":[]}", "egres"}, {"--network-policy=/no/file", "/no/file"},
		{"--credential-proxy", "needs a policy"}, {"--periodic=x", "NAME=SCHEDULE=COMMAND"}, {"--periodic=x=y=", "empty"},
		{"--pre-start=[\"a\"", "JSON array"}, {"--pre-start=[]", "no words"}, {"--hook-timeout=5s", "--pre-start"},
		{"--pre-start=x --hook-timeout=5ms", "whole seconds"}, {"-v=/tmp:/x:rm", "named volumes"}, {"-v=a:/x:what", "what"},
		{"--disk=lots", "lots"}, {"--extension=x", "KEY=VALUE"},
	} {
		line := append([]string{"create", image}, strings.Fields(c.flags)...)
		if _, errs, code := m.result(m.command(line...)); code != 2 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %s", c.flags, code, errs)
		}
	}
}

// What commands on several things print for programs, and what they say to a
// wrong key.
func testOutcomes(t *testing.T, m *machine, _ string) {
	talker := strings.TrimSpace(m.ok("create", image, "--timeout", "10m", "--", "sh", "-c", "echo one; echo 'two words'; exec sleep 1000"))
	defer m.ok("rm", talker)
	for range 100 {
		out := m.ok("-o", "json", "logs", talker)
		if !strings.Contains(out, "words") {
			// The log may come a moment after the start.
			m.ok("exec", talker, "--", "sleep", "0.1")
			continue
		}
		var line struct{ Time, Text string }
		dec := json.NewDecoder(strings.NewReader(out))
		for _, want := range []string{"one", "two words"} {
			if err := dec.Decode(&line); err != nil || line.Text != want || !strings.HasSuffix(line.Time, "Z") {
				t.Errorf("%+v, %v, want %q", line, err, want)
			}
		}
		break
	}
	id := m.create()
	out, _, code := m.result(m.command("-o", "json", "rm", id, "none"))
	var all []map[string]string
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 1 {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	if len(all) != 2 || all[0]["id"] != id || all[0]["error"] != "" || !strings.Contains(all[1]["error"], "none") {
		t.Errorf("%v", all)
	}
	for _, line := range []string{"ls", "rm " + id, "exec " + id + " true", "cp " + id + ":/etc/passwd -", "policy get " + id} {
		cmd := m.command(append([]string{"--server", m.URL, "--api-key", "wrong"}, strings.Fields(line)...)...)
		if _, errs, code := m.result(cmd); code == 0 || !strings.Contains(errs, "Try: set PADDOCK_API_KEY") {
			t.Errorf("%s with a wrong key: %d, %s", line, code, errs)
		}
	}
}
