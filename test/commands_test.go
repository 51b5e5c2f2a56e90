package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

func TestCommands(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	out, errOut, code := s.Shell(t, sb.ID, "echo to out; echo to err >&2; exit 7")
	if out != "to out\n" || errOut != "to err\n" || code != 7 {
		t.Errorf("%q %q %d", out, errOut, code)
	}
	out, _, code = s.Run(t, sb.ID, client.Command{Argv: []string{"echo", "$HOME", "a b", "'"}})
	if out != "$HOME a b '\n" || code != 0 {
		t.Errorf("an argv went through a shell: %q %d", out, code)
	}
	uid := uint32(1000)
	out, _, _ = s.Run(t, sb.ID, client.Command{Shell: `echo "$A $PWD $(id -u):$(id -g)"`, Cwd: "/tmp", Env: map[string]string{"A": "b c"}, UID: &uid})
	if out != "b c /tmp 1000:1000\n" {
		t.Errorf("environment, directory and user: %q", out)
	}
	began := time.Now()
	res, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "sleep 100 & sleep 100", Timeout: 300 * time.Millisecond}, client.Output{})
	if err != nil || res.ExitCode != -1 || time.Since(began) > 20*time.Second {
		t.Errorf("a command with a time-out: %+v, %v after %s", res, err, time.Since(began))
	}
	if _, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "true", Cwd: "/no/such/dir"}, client.Output{}); !client.IsInvalid(err) || !strings.Contains(err.Error(), "/no/such/dir") {
		t.Errorf("a directory that does not exist: %v, want 400 that names it", err)
	}
	var ce *client.CommandError
	if _, err := s.Client.Run(t.Context(), sb.ID, client.Command{Argv: []string{"/no/such"}}, client.Output{}); !errors.As(err, &ce) {
		t.Errorf("a program that does not exist: %v", err)
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			var out bytes.Buffer
			res, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: fmt.Sprintf("echo %d; exit %d", i, i)}, client.Output{Stdout: &out})
			if err != nil || res.ExitCode != i || out.String() != fmt.Sprintf("%d\n", i) {
				t.Errorf("command %d: %q %+v %v", i, out.String(), res, err)
			}
		})
	}
	wg.Wait()
}

func TestLargeOutputArrivesWhole(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	sum := sha256.New()
	counted := &counter{w: sum}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	res, err := s.Client.Run(ctx, sb.ID, client.Command{Shell: "seq 1 3000000"}, client.Output{Stdout: counted})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v %v", res, err)
	}
	want := s.Must(t, sb.ID, "seq 1 3000000 | sha256sum")
	if got := fmt.Sprintf("%x", sum.Sum(nil)); !strings.HasPrefix(want, got) {
		t.Errorf("%d bytes arrived and differ", counted.n)
	}
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

func TestOutputIsStreamed(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	// The command waits for a file that is only made when its first line has
	// arrived here.
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		res, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "echo first; while ! test -e /tmp/go; do sleep 0.01; done; echo second", Timeout: 30 * time.Second}, client.Output{Stdout: pw})
		if err == nil && res.ExitCode != 0 {
			err = fmt.Errorf("exit code %d", res.ExitCode)
		}
		pw.CloseWithError(io.EOF)
		done <- err
	}()
	buf := make([]byte, 6)
	if _, err := io.ReadFull(pr, buf); err != nil || string(buf) != "first\n" {
		t.Fatalf("%q %v", buf, err)
	}
	s.Must(t, sb.ID, "touch /tmp/go")
	rest, _ := io.ReadAll(pr)
	if err := <-done; err != nil || string(rest) != "second\n" {
		t.Errorf("%q %v", rest, err)
	}
}

func TestBackgroundCommands(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	id, err := s.Client.Start(t.Context(), sb.ID, client.Command{Shell: `printf 'no newline\000\377'; while ! test -e /tmp/end; do sleep 0.01; done; exit 4`})
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Client.CommandStatus(t.Context(), sb.ID, id)
	if err != nil || !st.Running || st.ExitCode != nil {
		t.Errorf("%+v %v", st, err)
	}
	s.Must(t, sb.ID, "touch /tmp/end")
	await(t, "the command to end", func() bool {
		st, err = s.Client.CommandStatus(t.Context(), sb.ID, id)
		return err != nil || !st.Running
	})
	if err != nil || st.ExitCode == nil || *st.ExitCode != 4 {
		t.Errorf("%+v %v", st, err)
	}
	var log bytes.Buffer
	next, err := s.Client.CommandLogs(t.Context(), sb.ID, id, 0, &log)
	if err != nil || log.String() != "no newline\x00\xff" || next != int64(log.Len()) {
		t.Errorf("log %q, next %d, %v", log.String(), next, err)
	}
	if _, err := s.Client.CommandStatus(t.Context(), sb.ID, "00000000000000000000000000000000"); !client.IsNotFound(err) {
		t.Errorf("an unknown command: %v, want 404", err)
	}
	id, err = s.Client.Start(t.Context(), sb.ID, client.Command{Shell: "trap '' TERM; sleep 100; sleep 100"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Interrupt(t.Context(), sb.ID, id); err != nil {
		t.Errorf("interrupt: %v", err)
	}
	await(t, "an interrupted command to end", func() bool {
		st, err := s.Client.CommandStatus(t.Context(), sb.ID, id)
		return err == nil && !st.Running
	})
}

// A client that goes takes its foreground command with it.
func TestForegroundCommandEndsWithItsClient(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		_, err := s.Client.Run(ctx, sb.ID, client.Command{Shell: "sleep 98765"}, client.Output{OnStart: func(id string) { started <- id }})
		done <- err
	}()
	<-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	await(t, "the command to end", func() bool {
		out, _, _ := s.Shell(t, sb.ID, "ps | grep -c '[s]leep 98765'")
		return strings.TrimSpace(out) == "0"
	})
}

func TestSessionsKeepTheirState(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	id, err := s.Client.CreateSession(t.Context(), sb.ID, "/tmp")
	if err != nil {
		t.Fatal(err)
	}
	run := func(line string) (string, int) {
		var out bytes.Buffer
		res, err := s.Client.RunInSession(t.Context(), sb.ID, id, client.SessionCommand{Shell: line, Timeout: 30 * time.Second}, client.Output{Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return out.String(), res.ExitCode
	}
	run("a=1; f() { echo f $a $PWD; }; cd /etc; export B=2")
	if out, code := run("f; exit_code() { return 3; }; exit_code"); out != "f 1 /etc\n" || code != 3 {
		t.Errorf("%q %d", out, code)
	}
	if err := s.Client.DeleteSession(t.Context(), sb.ID, id); err != nil {
		t.Error(err)
	}
	if err := s.Client.DeleteSession(t.Context(), sb.ID, id); !client.IsNotFound(err) {
		t.Errorf("deleting it again: %v", err)
	}
}

func TestFiles(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	ctx := t.Context()
	content := make([]byte, 10<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(content)
	name := "/tmp/dir/ünï cödé.bin"
	if err := s.Client.UploadFiles(ctx, sb.ID, client.UploadFile{Path: name, Mode: 640, Owner: "user", Content: bytes.NewReader(content), Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	info, err := s.Client.FileInfo(ctx, sb.ID, name)
	if err != nil || info[name].Size != int64(len(content)) || info[name].Mode.Perm() != 0o640 || info[name].Owner != "user" || info[name].Type != "file" {
		t.Errorf("%+v %v", info, err)
	}
	read := func(o client.DownloadOptions) []byte {
		d, err := s.Client.DownloadFile(ctx, sb.ID, name, o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b, err := io.ReadAll(d)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(read(client.DownloadOptions{}), content) {
		t.Error("the download differs from the upload")
	}
	if got := read(client.DownloadOptions{Offset: 1000, Length: 77}); !bytes.Equal(got, content[1000:1077]) {
		t.Errorf("a part of it differs: %d bytes", len(got))
	}
	if err := s.Client.MoveFiles(ctx, sb.ID, client.Move{Src: name, Dest: "/tmp/b/moved.bin"}); err != nil {
		t.Error(err)
	}
	if _, err := s.Client.FileInfo(ctx, sb.ID, name); !client.IsNotFound(err) {
		t.Errorf("info of a moved file: %v", err)
	}
	found, err := s.Client.SearchFiles(ctx, sb.ID, "/tmp", "*.bin")
	if err != nil || len(found) != 1 || found[0].Path != "/tmp/b/moved.bin" {
		t.Errorf("%+v %v", found, err)
	}
	s.Must(t, sb.ID, "echo one two one > /tmp/b/text")
	counts, err := s.Client.ReplaceInFiles(ctx, sb.ID, map[string]client.Replacement{"/tmp/b/text": {Old: "one", New: "1"}})
	if err != nil || counts["/tmp/b/text"] != 2 || s.Must(t, sb.ID, "cat /tmp/b/text") != "1 two 1" {
		t.Errorf("%v %v", counts, err)
	}
	if err := s.Client.RemoveDirs(ctx, sb.ID, "/tmp/b", "/tmp/none"); err != nil {
		t.Error(err)
	}
	if _, err := s.Client.DownloadFile(ctx, sb.ID, "/tmp/b/text", client.DownloadOptions{}); !client.IsNotFound(err) {
		t.Errorf("download of a removed file: %v", err)
	}
}
