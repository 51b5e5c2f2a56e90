package cli_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func testExec(t *testing.T, m *machine, id string) {
	for _, c := range []struct {
		line      []string
		out, errs string
		code      int
	}{
		{[]string{"exec", id, "echo", "hi"}, "hi\n", "", 0},
		{[]string{"exec", id, "--", "sh", "-c", "printf 'a\\nb'"}, "a\nb", "", 0},
		{[]string{"exec", id, "--", "sh", "-c", "printf '\\377\\000\\r\\n'"}, "\xff\x00\r\n", "", 0},
		{[]string{"exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 3"}, "out\n", "err\n", 3},
		{[]string{"exec", "-w", "/etc", "-e", "A=b c", id, "--", "sh", "-c", "pwd; echo $A"}, "/etc\nb c\n", "", 0},
		{[]string{"exec", "-u", "user", id, "--", "id", "-u"}, "1000\n", "", 0},
		{[]string{"exec", "-u", "1000:0", id, "--", "id", "-g"}, "0\n", "", 0},
	} {
		out, errs, code := m.result(m.command(c.line...))
		if out != c.out || errs != c.errs || code != c.code {
			t.Errorf("%q: %q, %q, %d", c.line, out, errs, code)
		}
	}
	for _, c := range []struct {
		line []string
		code int
		want string
	}{
		{[]string{"exec", id, "--", "no-such-program"}, 127, "no-such-program"},
		{[]string{"exec", id, "--", "/etc/passwd"}, 126, "/etc/passwd"},
		{[]string{"exec", id, "--", "sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"exec", "--timeout", "50ms", id, "--", "sleep", "60"}, 137, ""},
		{[]string{"exec", "-u", "nobody-here", id, "--", "id"}, 125, "nobody-here"},
		{[]string{"exec", "-w", "/no/such", id, "--", "id"}, 125, "/no/such"},
		{[]string{"exec", "no-such-sandbox", "--", "id"}, 125, "no-such-sandbox"},
	} {
		_, errs, code := m.result(m.command(c.line...))
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%q: exit code %d, %s", c.line, code, errs)
		}
	}
}

// outcome is what exec and run document about -o json.
type outcome struct {
	Sandbox                          string
	Stdout, Stderr                   string
	StdoutBase64, StderrBase64       []byte
	StdoutTruncated, StderrTruncated bool
	ExitCode                         int
	DurationMillis                   int64
	Error                            string
}

// With -o json exec and run print one object, however the command ends.
func testOutcomeOfCommands(t *testing.T, m *machine, id string) {
	for _, c := range []struct {
		line []string
		want outcome
	}{
		{[]string{"exec", id, "--", "sh", "-c", "printf 'a\nb'; echo err >&2; exit 3"}, outcome{Stdout: "a\nb", Stderr: "err\n", ExitCode: 3}},
		{[]string{"exec", id, "--", "true"}, outcome{}},
		{[]string{"exec", id, "--", "sh", "-c", `printf '\377<\n'`}, outcome{Stdout: "\ufffd<\n", StdoutBase64: []byte("\xff<\n")}},
		{[]string{"exec", id, "--", "sh", "-c", "kill -TERM $$"}, outcome{ExitCode: 143, Error: "signal"}},
		{[]string{"exec", id, "--", "no-such-program"}, outcome{ExitCode: 127, Error: "no-such-program"}},
		{[]string{"exec", "no-such-sandbox", "--", "id"}, outcome{ExitCode: 125, Error: "no-such-sandbox"}},
		{[]string{"run", image, "--", "sh", "-c", "echo out; exit 6"}, outcome{Stdout: "out\n", ExitCode: 6}},
		{[]string{"run", "--env", "A=b", image, "sh", "-c", "echo $A >&2"}, outcome{Stderr: "b\n"}},
		{[]string{"run", image}, outcome{}},
	} {
		out, errs, code := m.result(m.command(append([]string{"-o", "json"}, c.line...)...))
		var got outcome
		d := json.NewDecoder(strings.NewReader(out))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil {
			t.Errorf("%q: %v: %s%s", c.line, err, out, errs)
			continue
		}
		if got.DurationMillis < 0 || got.Sandbox == "" || code != got.ExitCode || !strings.Contains(got.Error, c.want.Error) || (got.Error == "") != (c.want.Error == "") {
			t.Errorf("%q: exit code %d: %s", c.line, code, out)
		}
		c.want.Sandbox, c.want.DurationMillis, c.want.Error = got.Sandbox, got.DurationMillis, got.Error
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, want %+v", c.line, got, c.want)
		}
	}
	if out, errs, code := m.result(m.command("-o", "json", "run", "--memory", "1", image, "--", "true")); out != "" || code != 125 {
		t.Errorf("a sandbox that can't be made: %q, %s, %d", out, errs, code)
	}
}

func testExecInput(t *testing.T, m *machine, id string) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB, several pieces
	cmd := m.command("exec", id, "--", "sha256sum")
	cmd.Stdin = bytes.NewReader(large) // a pipe
	sum, errs, code := m.result(cmd)
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, large, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd = m.command("exec", "-u", "user", id, "--", "sha256sum")
	cmd.Stdin = f
	again, errs2, code2 := m.result(cmd)
	if code != 0 || code2 != 0 || sum != again || len(sum) < 64 {
		t.Errorf("%q (%d, %s) and %q (%d, %s)", sum, code, errs, again, code2, errs2)
	}

	// A pipe that nobody writes to holds nothing up.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd = m.command("exec", id, "--", "echo", "done")
	cmd.Stdin = r
	if out, errs, code := m.result(cmd); out != "done\n" || code != 0 {
		t.Errorf("%q, %s, %d", out, errs, code)
	}
	if left := m.ok("exec", id, "--", "ls", "-A", "/tmp"); left != "" {
		t.Errorf("left in /tmp: %s", left)
	}
}

func testInterrupt(t *testing.T, m *machine, id string) {
	cmd := m.command("exec", id, "--", "sh", "-c", "echo ready; exec sleep 987")
	m.speaking(cmd)
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	if ps := m.ok("exec", id, "--", "ps"); strings.Contains(ps, "sleep 987") {
		t.Errorf("still runs:\n%s", ps)
	}
}

func testDetached(t *testing.T, m *machine, id string) {
	command := strings.TrimSpace(m.ok("exec", "-d", id, "--", "sh", "-c", "echo one; sleep 0.2; printf two"))
	if out := m.ok("logs", "-f", "--exec", command, id); out != "one\ntwo" {
		t.Errorf("got %q", out)
	}
}
