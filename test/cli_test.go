package test

import (
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

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

type result struct {
	stdout, stderr string
	code           int
}

// cli runs a command of the command line against a server's directories.
func cli(t *testing.T, ctx context.Context, s *harness.Server, stdin io.Reader, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(ctx, harness.BinaryPath(), args...)
	cmd.Env = s.Environ()
	cmd.Stdin = stdin
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("paddock %q: %v", args, err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// paddock is cli with a bound.
func paddock(t *testing.T, s *harness.Server, args ...string) result {
	t.Helper()
	return paddockIn(t, s, nil, args...)
}

func paddockIn(t *testing.T, s *harness.Server, stdin io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return cli(t, ctx, s, stdin, args...)
}

// ok runs a command that must succeed and returns its output.
func ok(t *testing.T, s *harness.Server, args ...string) string {
	t.Helper()
	r := paddock(t, s, args...)
	if r.code != 0 {
		t.Fatalf("paddock %q ended with %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

func TestCLILife(t *testing.T) {
	s := sharedServer(t)
	id := ok(t, s, "create", "--metadata", "cli=test", "--memory", "64Mi", "--timeout", "10m", busyboxImage, "--", "sh", "-c", "echo started; exec sleep 100000")
	s.Forget(t, id)
	s.State(t, id, client.StateRunning)
	if r := paddock(t, s, "exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.stdout != "out\n" || r.stderr != "err\n" || r.code != 7 {
		t.Errorf("exec: %+v", r)
	}
	if r := paddock(t, s, "exec", "-w", "/tmp", "-e", "A=b", "-u", "user", id, "--", "sh", "-c", "echo $A $PWD $(id -u)"); r.stdout != "b /tmp 1000\n" {
		t.Errorf("exec with flags: %+v", r)
	}
	if r := paddockIn(t, s, strings.NewReader("through\nstdin"), "exec", id, "--", "cat"); !strings.HasPrefix(r.stdout, "through\nstdin") || r.code != 0 {
		t.Errorf("exec with input: %+v", r)
	}
	if r := paddock(t, s, "exec", id, "--", "/no/such/program"); r.code != 127 {
		t.Errorf("a program that does not exist: %+v, want 127", r)
	}
	if r := paddock(t, s, "exec", id, "--", "/etc/passwd"); r.code != 126 {
		t.Errorf("a file that is no program: %+v, want 126", r)
	}
	if r := paddock(t, s, "exec", "nope", "--", "true"); r.code != 125 {
		t.Errorf("a sandbox that does not exist: %+v, want 125", r)
	}
	if got := ok(t, s, "logs", id); got != "started" {
		t.Errorf("logs: %q", got)
	}
	if got := ok(t, s, "ls"); !strings.Contains(got, id[:8]) {
		t.Errorf("ls: %s", got)
	}
	var listed any
	if err := json.Unmarshal([]byte(ok(t, s, "ls", "-o", "json")), &listed); err != nil {
		t.Errorf("ls -o json: %v", err)
	}
	var inspected []sandboxJSON
	if err := json.Unmarshal([]byte(ok(t, s, "inspect", id)), &inspected); err != nil || len(inspected) != 1 || inspected[0].ID != id {
		t.Errorf("inspect: %v %+v", err, inspected)
	}
	ok(t, s, "pause", id)
	s.State(t, id, client.StatePaused)
	ok(t, s, "resume", id)
	s.State(t, id, client.StateRunning)
	ok(t, s, "renew", id, "30m")
	if got := ok(t, s, "port", id, "8000"); !strings.HasPrefix(got, s.URL) {
		t.Errorf("port: %s", got)
	}
	ok(t, s, "rm", id)
	if r := paddock(t, s, "rm", id); r.code != 1 {
		t.Errorf("rm again: %+v, want 1", r)
	}
	ok(t, s, "rm", "-f", id)
}

func TestCLICopies(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "alpha\n", 0o644)
	write("sub dir/run.sh", "#!/bin/sh\necho ran\n", 0o755)
	ok(t, s, "cp", filepath.Join(tree, "a"), sb.ID+":/tmp/copied")
	if got := s.Must(t, sb.ID, "cat /tmp/copied"); got != "alpha" {
		t.Errorf("a file: %q", got)
	}
	ok(t, s, "cp", tree, sb.ID+":/tmp/tree")
	if got := s.Must(t, sb.ID, "'/tmp/tree/sub dir/run.sh'; cat /tmp/tree/a"); got != "ran\nalpha" {
		t.Errorf("a directory: %q", got)
	}
	back := filepath.Join(dir, "back")
	ok(t, s, "cp", sb.ID+":/tmp/tree", back)
	b, err := os.ReadFile(filepath.Join(back, "sub dir", "run.sh"))
	if err != nil || string(b) != "#!/bin/sh\necho ran\n" {
		t.Errorf("back: %q %v", b, err)
	}
	if st, err := os.Stat(filepath.Join(back, "sub dir", "run.sh")); err == nil && st.Mode().Perm()&0o111 == 0 {
		t.Errorf("the mode was lost: %o", st.Mode())
	}
	if r := paddock(t, s, "cp", sb.ID+":/no/such", back); r.code == 0 {
		t.Error("copying what does not exist succeeded")
	}
}

func TestCLIRun(t *testing.T) {
	s := sharedServer(t)
	if r := paddock(t, s, "run", busyboxImage, "--", "sh", "-c", "echo hello; exit 4"); r.stdout != "hello\n" || r.code != 4 {
		t.Errorf("%+v", r)
	}
	if r := paddockIn(t, s, strings.NewReader("to the command\n"), "run", "-e", "A=1", busyboxImage, "--", "sh", "-c", "cat; echo $A"); r.stdout != "to the command\n1\n" || r.code != 0 {
		t.Errorf("%+v", r)
	}
	img := imagetest.Busybox(t)
	img.Config.Entrypoint, img.Config.Cmd = []string{"sh", "-c", "echo from the image; exit 6"}, nil
	importArchive(t, s, imagetest.Archive(t, "docker.io/library/own:test", img))
	if r := paddock(t, s, "run", "own:test"); !strings.Contains(r.stdout, "from the image\n") || r.code != 6 {
		t.Errorf("the image's own entrypoint: %+v", r)
	}
	// A signal ends it in order, and it leaves nothing.
	before := total(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan result, 1)
	go func() {
		done <- cli(t, ctx, s, nil, "run", "--metadata", "cli-run=signal", busyboxImage, "--", "sh", "-c", "sleep 100000")
	}()
	await(t, "the sandbox to run", func() bool {
		p, err := s.Client.List(t.Context(), client.ListOptions{States: []string{client.StateRunning}, Metadata: map[string]string{"cli-run": "signal"}})
		return err == nil && p.Pagination.TotalItems == 1
	})
	cancel()
	if r := <-done; r.code != 130 && r.code != 143 {
		t.Errorf("after a signal: %+v", r)
	}
	if after := total(t, s); after != before {
		t.Errorf("%d sandboxes are left, want %d", after, before)
	}
}

func total(t *testing.T, s *harness.Server) int {
	t.Helper()
	p, err := s.Client.List(t.Context(), client.ListOptions{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p.Pagination.TotalItems
}

// run and image need no server: without one they do its work themselves.
func TestCLIRunWithoutAServer(t *testing.T) {
	s := ownServer(t, nil)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if r := paddock(t, s, "run", busyboxImage, "--", "sh", "-c", "echo alone; exit 9"); r.stdout != "alone\n" || r.code != 9 {
		t.Errorf("%+v", r)
	}
	if got := ok(t, s, "image", "ls"); !strings.Contains(got, "busybox") {
		t.Errorf("image ls: %s", got)
	}
	if r := paddock(t, s, "ls"); r.code == 0 || !strings.Contains(r.stderr, "paddock serve") {
		t.Errorf("ls without a server: %+v", r)
	}
	for _, trace := range s.SandboxTraces() {
		t.Errorf("left by run: %s", trace)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestCLIImagesAndVolumes(t *testing.T) {
	s := ownServer(t, nil)
	dir := t.TempDir()
	archive := filepath.Join(dir, "busybox.tar")
	ok(t, s, "image", "export", busyboxImage, archive)
	ok(t, s, "image", "import", archive, "copy:1")
	if got := ok(t, s, "image", "ls"); !strings.Contains(got, "copy") {
		t.Errorf("image ls: %s", got)
	}
	if r := paddock(t, s, "run", "-v", "kept:/data", "copy:1", "--", "sh", "-c", "echo x > /data/f"); r.code != 0 {
		t.Errorf("run with a volume: %+v", r)
	}
	if got := ok(t, s, "volume", "ls"); !strings.Contains(got, "kept") {
		t.Errorf("volume ls: %s", got)
	}
	ok(t, s, "volume", "rm", "kept")
	ok(t, s, "image", "rm", "copy:1")
	if r := paddock(t, s, "image", "rm", "copy:1"); r.code == 0 {
		t.Error("removing it again succeeded")
	}
	ok(t, s, "image", "prune")
	if r := paddock(t, s, "image", "import", filepath.Join(harness.Root(), "go.mod")); r.code != 1 || r.stderr == "" {
		t.Errorf("importing what is no image: %+v", r)
	}
	harness.RequireProgram(t, "docker-registry")
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	ref := registry.Push(t, imagetest.Layout(t, "", imagetest.Busybox(t)), "a/b", "1")
	ok(t, s, "image", "pull", ref)
	if r := paddock(t, s, "image", "pull", registry.Host+"/none:1"); r.code != 1 || !strings.Contains(r.stderr, "none") {
		t.Errorf("pulling what is not there: %+v", r)
	}
}

func TestCLIOthers(t *testing.T) {
	s := sharedServer(t)
	if got := ok(t, s, "version"); got == "" {
		t.Error("version says nothing")
	}
	ok(t, s, "doctor", "--required")
	if got := ok(t, s, "config"); !strings.Contains(got, s.DataDir) || strings.Contains(got, s.Key) {
		t.Errorf("config: %s", got)
	}
	if got := ok(t, s, "completion", "bash"); !strings.Contains(got, "paddock") {
		t.Error("completion says nothing")
	}
	for _, args := range [][]string{{"nonsense"}, {"run"}, {"exec", "x"}, {"ls", "--nope"}, {"-o", "xml", "ls"}} {
		if r := paddock(t, s, args...); r.code != 2 || !strings.Contains(r.stderr, "Try") {
			t.Errorf("paddock %q: %+v, want 2 and a hint", args, r)
		}
	}
	bad := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(bad, []byte("[server]\nlisten_on = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := paddock(t, s, "--config", bad, "serve"); r.code == 0 || !strings.Contains(r.stderr, "listen") || !strings.Contains(r.stderr, ":2") {
		t.Errorf("a configuration with an unknown key: %+v", r)
	}
}
