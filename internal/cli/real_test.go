package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const image = "busybox:test"

// machine is a real server with an image, and the command line beside it.
type machine struct {
	*harness.Server
	t *testing.T
}

func newMachine(t *testing.T) *machine {
	m := &machine{harness.New(t, map[string]string{"pool.size": "2"}), t}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(archive, imagetest.Archive(t, image, imagetest.Busybox(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	m.ok("image", "import", archive, image)
	return m
}

// command is a paddock process with nothing on its standard input.
func (m *machine) command(line ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	m.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, harness.BinaryPath(), line...)
	cmd.Env = m.Environ()
	return cmd
}

// result runs a process to its end.
func (m *machine) result(cmd *exec.Cmd) (out, errs string, code int) {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%s: %v", cmd, err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command line that must succeed and returns what it printed.
func (m *machine) ok(line ...string) string {
	m.t.Helper()
	out, errs, code := m.result(m.command(line...))
	if code != 0 {
		m.t.Fatalf("paddock %s: exit code %d: %s", strings.Join(line, " "), code, errs)
	}
	return out
}

// speaking starts a process and returns its output when it has begun.
func (m *machine) speaking(cmd *exec.Cmd) io.Closer {
	m.t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *machine) create() string {
	m.t.Helper()
	return strings.TrimSpace(m.ok("create", image, "--timeout", "10m"))
}

// sandboxes returns the ids of all sandboxes.
func (m *machine) sandboxes() []string {
	m.t.Helper()
	return strings.Fields(m.ok("ls", "-q"))
}

func TestCommandLine(t *testing.T) {
	m := newMachine(t)
	id := m.create()
	for _, test := range []struct {
		name string
		f    func(*testing.T, *machine, string)
	}{
		{"exec", testExec}, {"outcome of exec and run", testOutcomeOfCommands}, {"exec input", testExecInput}, {"interrupt", testInterrupt}, {"detached", testDetached},
		{"files", testFiles}, {"directories", testDirectories}, {"planted links", testPlantedLinks},
		{"destinations", testDestinations}, {"archives", testArchives}, {"port-forward", testPortForward}, {"policy", testPolicy}, {"create flags", testCreateFlags}, {"outcomes", testOutcomes}, {"broken copies", testBrokenCopies}, {"run", testRun}, {"run input", testRunInput},
		{"run ends", testRunEnds}, {"lists", testLists}, {"lifecycle", testLifecycle}, {"images", testImages},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, &machine{m.Server, t}, id) })
	}
}

func testFiles(t *testing.T, m *machine, id string) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("x\x00\xff\n"), 1<<18)
	src := filepath.Join(dir, "a file")
	if err := os.WriteFile(src, content, 0o640); err != nil {
		t.Fatal(err)
	}
	m.ok("cp", src, id+":/tmp/new/name")
	m.ok("cp", src, id+":/home/user")
	m.ok("cp", src, id+":/made/")
	if out := m.ok("exec", id, "--", "stat", "-c", "%a %s", "/tmp/new/name", "/home/user/a file", "/made/a file"); out != strings.Repeat("640 1048576\n", 3) {
		t.Errorf("in the sandbox:\n%s", out)
	}
	back := filepath.Join(dir, "back")
	m.ok("cp", id+":/tmp/new/name", back)
	data, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(data, content) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if st, err := os.Stat(back); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if out := m.ok("cp", id+":/home/user/a file", "-"); out != string(content) {
		t.Errorf("to standard output: %d bytes", len(out))
	}
	cmd := m.command("cp", "-", id+":/tmp/from-stdin")
	cmd.Stdin = strings.NewReader("hello")
	if _, errs, code := m.result(cmd); code != 0 {
		t.Errorf("from standard input: %s", errs)
	}
	if out := m.ok("exec", id, "--", "cat", "/tmp/from-stdin"); out != "hello" {
		t.Errorf("from standard input: %q", out)
	}
	if _, errs, code := m.result(m.command("cp", id+":/no/such", dir)); code != 1 || !strings.Contains(errs, "/no/such") {
		t.Errorf("a missing file: %d, %s", code, errs)
	}
	m.ok("exec", id, "--", "sh", "-c", "rm -rf /tmp/* /made /home/user/*")
}

func testRun(t *testing.T, m *machine, _ string) {
	before := len(m.sandboxes())
	out, errs, code := m.result(m.command("run", "-e", "WHO=world", "--memory", "64Mi", image, "--", "sh", "-c", "echo hello $WHO; echo oops >&2; exit 5"))
	if out != "hello world\n" || errs != "oops\n" || code != 5 {
		t.Errorf("%q, %q, %d", out, errs, code)
	}
	if out := m.ok("run", image, "echo", "-n", "no end"); out != "no end" {
		t.Errorf("%q", out)
	}
	if now := len(m.sandboxes()); now != before {
		t.Errorf("%d sandboxes before, %d after", before, now)
	}
	if _, errs, code := m.result(m.command("run", "localhost:1/none:x", "--", "true")); code != 125 || !strings.Contains(errs, "localhost:1") {
		t.Errorf("an image that is nowhere: %d, %s", code, errs)
	}
}

func testRunInput(t *testing.T, m *machine, _ string) {
	cmd := m.command("run", image, "--", "sh", "-c", "read a; read b; echo $b $a; exit 4")
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	if out, errs, code := m.result(cmd); out != "two one\n" || code != 4 {
		t.Errorf("%q, %q, %d", out, errs, code)
	}
}

// Whatever ends a run, its sandbox goes.
func testRunEnds(t *testing.T, m *machine, _ string) {
	before := len(m.sandboxes())
	cmd := m.command("run", image, "--", "sh", "-c", "echo ready; sleep 100")
	m.speaking(cmd)
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d after a signal", code)
	}

	// The reader of the output goes away.
	cmd = m.command("run", image, "--", "sh", "-c", "while echo x; do :; done")
	m.speaking(cmd).Close()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 141 {
		t.Errorf("exit code %d after the end of its reader", code)
	}
	if now := len(m.sandboxes()); now != before {
		t.Errorf("%d sandboxes before, %d after", before, now)
	}
}

func testLists(t *testing.T, m *machine, id string) {
	named := strings.TrimSpace(m.ok("create", "--name", "alpha", "--timeout", "5m", image, "--", "sleep", "1000"))
	defer m.ok("rm", named)
	if out := m.ok("ls"); !strings.Contains(out, "alpha") || !strings.Contains(out, id) || !strings.Contains(out, "busybox:test") {
		t.Errorf("ls:\n%s", out)
	}
	if out := m.ok("ls", "-q", "-l", "name=alpha", "--state", "running"); strings.TrimSpace(out) != named {
		t.Errorf("filtered: %q", out)
	}
	var shown []client.Sandbox
	if err := json.Unmarshal([]byte(m.ok("inspect", named)), &shown); err != nil || len(shown) != 1 || shown[0].Metadata["name"] != "alpha" {
		t.Errorf("inspect: %+v, %v", shown, err)
	}
	if err := json.Unmarshal([]byte(m.ok("ls", "-o", "json")), &shown); err != nil || len(shown) < 2 {
		t.Errorf("json: %+v, %v", shown, err)
	}
}

func testLifecycle(t *testing.T, m *machine, _ string) {
	id := strings.TrimSpace(m.ok("create", "--timeout", "10m", image, "--", "sh", "-c", "echo from the entrypoint; sleep 1000"))
	follow := m.command("logs", "-f", id)
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "from the entrypoint\n" {
		t.Errorf("logs: %q, %v", line, err)
	}
	follow.Process.Signal(syscall.SIGINT)
	if follow.Wait(); follow.ProcessState.ExitCode() != 130 {
		t.Errorf("logs: exit code %d after a signal", follow.ProcessState.ExitCode())
	}
	m.ok("pause", id)
	if out := m.ok("ls", "-q", "--state", "paused"); strings.TrimSpace(out) != id {
		t.Errorf("paused: %q", out)
	}
	m.ok("resume", id)
	m.ok("renew", id, "30m")
	if out := m.ok("port", id, "8000"); !strings.Contains(out, "/v1/sandboxes/"+id+"/proxy/8000") {
		t.Errorf("port:\n%s", out)
	}
	m.ok("rm", id)
	if _, errs, code := m.result(m.command("rm", id)); code != 1 || !strings.Contains(errs, id) {
		t.Errorf("a second rm: %d, %s", code, errs)
	}
	m.ok("rm", "-f", id)
}

func testImages(t *testing.T, m *machine, _ string) {
	if out := m.ok("image", "ls"); !strings.Contains(out, image) {
		t.Errorf("ls:\n%s", out)
	}
	file := filepath.Join(t.TempDir(), "out.tar")
	m.ok("image", "export", image, file)
	m.ok("image", "import", file, "copy:1")
	m.ok("image", "rm", "copy:1")
	if out := m.ok("image", "ls"); strings.Contains(out, "copy:1") {
		t.Errorf("after rm:\n%s", out)
	}
	m.ok("image", "prune")
	m.ok("volume", "ls")
}

// A pull shows how far it is, as lines or as a bar.
func TestPullProgress(t *testing.T) {
	m := &machine{harness.New(t, map[string]string{"pool.size": "0"}), t}
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{Login: true})
	ref := registry.Push(t, imagetest.Layout(t, "", imagetest.Busybox(t)), "team/busybox", "1")
	if _, errs, code := m.result(m.command("image", "pull", ref)); code != 1 || !strings.Contains(errs, ref) {
		t.Errorf("without a login: %d, %s", code, errs)
	}
	cmd := m.command("image", "pull", "--registry-user", imagetest.User, ref)
	cmd.Env = append(cmd.Env, "PADDOCK_REGISTRY_PASSWORD="+imagetest.Password)
	out, errs, code := m.result(cmd)
	if code != 0 || !strings.Contains(out, ref) || !strings.Contains(errs, ref+": ") || strings.Contains(errs, "\x1b") {
		t.Errorf("%d\n%s\n%q", code, out, errs)
	}
	m.ok("image", "rm", ref)

	// The layers are held back until the bar is there.
	proxy := registry.Proxy(t)
	release := make(chan struct{})
	proxy.SetFault(imagetest.Hang("/blobs/", make(chan struct{}), release))
	ref = strings.Replace(ref, registry.Host, proxy.Host, 1)
	cmd = m.command("run", "--registry-user", imagetest.User, ref, "--", "sh", "-c", "echo ran; exit 9")
	cmd.Env = append(cmd.Env, "PADDOCK_REGISTRY_PASSWORD="+imagetest.Password, "TERM=xterm")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var shown []byte
	held := true
	for buf := make([]byte, 4096); ; {
		n, err := terminal.Read(buf)
		shown = append(shown, buf[:n]...)
		if held && bytes.Contains(shown, []byte(ref)) {
			close(release)
			held = false
		}
		if err != nil {
			break // EIO when the process has gone
		}
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 || !bytes.Contains(shown, []byte("ran\r\n")) || !bytes.Contains(shown, []byte("\x1b")) {
		t.Errorf("exit code %d on a terminal: %q", code, shown)
	}
}

// Without a server run does the work of one, and leaves nothing behind.
func TestRunWithoutServer(t *testing.T) {
	m := newMachine(t)
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	cmd := m.command("run", image, "--", "sh", "-c", "cat; exit 6")
	cmd.Stdin = strings.NewReader("through")
	if out, errs, code := m.result(cmd); out != "through" || code != 6 {
		t.Errorf("%q, %s, %d", out, errs, code)
	}
	// The image's own entrypoint: a shell without input.
	if out, errs, code := m.result(m.command("run", image)); out != "" || code != 0 {
		t.Errorf("%q, %s, %d", out, errs, code)
	}
	if out := m.ok("image", "ls"); !strings.Contains(out, image) {
		t.Errorf("image ls:\n%s", out)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := m.sandboxes(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A second server on the same data directory is told who is there.
func TestSecondServer(t *testing.T) {
	m := &machine{harness.New(t, map[string]string{"pool.size": "0"}), t}
	cmd := m.command("serve", "--listen", "127.0.0.1:0")
	if _, errs, code := m.result(cmd); code != 1 || !strings.Contains(errs, "is using "+m.DataDir) {
		t.Errorf("%d, %s", code, errs)
	}
}
