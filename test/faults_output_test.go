package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// envOutput is how many MiB a command prints in TestFloodIsExact; 1024 is the
// full size.
const envOutput = "PADDOCK_TEST_OUTPUT_MIB"

// What a command prints arrives byte for byte however much and whatever it is,
// and neither the server nor execd holds it in memory.
func TestFloodIsExact(t *testing.T) {
	size := 8
	if v := os.Getenv(envOutput); v != "" {
		var err error
		if size, err = strconv.Atoi(v); err != nil {
			t.Fatalf("%s=%q: want a number of MiB", envOutput, v)
		}
	}
	s := sharedServer(t)
	block := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{4})
	for name, prepare := range map[string]func(){
		// Every byte, NUL and invalid UTF-8 among them.
		"random": func() { _, _ = rng.Read(block) },
		// One line that never ends.
		"one line of NUL": func() { clear(block) },
		"short lines":     func() { copy(block, bytes.Repeat([]byte("0123456789\r\n\n"), 1<<20/13+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			prepare()
			sb := sleeper(t, s)
			if err := s.Client.UploadFiles(t.Context(), sb.ID, client.UploadFile{Path: "/tmp/block", Content: bytes.NewReader(block), Size: int64(len(block))}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			got := &counter{w: sha256.New()}
			sum := got.w.(interface{ Sum([]byte) []byte })
			began := time.Now()
			res, err := s.Client.Run(ctx, sb.ID, client.Command{Shell: "i=0; while [ $i -lt " + strconv.Itoa(size) + " ]; do cat /tmp/block; i=$((i+1)); done"}, client.Output{Stdout: got})
			if err != nil || res.ExitCode != 0 {
				t.Fatalf("after %d bytes: %+v %v", got.n, res, err)
			}
			took := time.Since(began)
			want := sha256.New()
			for range size {
				want.Write(block)
			}
			if got.n != int64(size)<<20 || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
				t.Errorf("%d bytes arrived, of %d MiB, or they differ", got.n, size)
			}
			execd := 0
			for _, pid := range hostPIDs(t, sb.ID) {
				execd = max(execd, peakMiB(t, pid))
			}
			t.Logf("%d MiB in %.2f s; memory at most: server %d MiB, in the sandbox %d MiB", size, took.Seconds(), peakMiB(t, s.PID()), execd)
			if execd > 96 {
				t.Errorf("execd took %d MiB of memory", execd)
			}
			// The newest part is kept.
			var log bytes.Buffer
			next, err := s.Client.CommandLogs(ctx, sb.ID, res.ID, int64(size-1)<<20, &log)
			if err != nil || next != int64(size)<<20 || !bytes.Equal(log.Bytes(), block) {
				t.Errorf("the end of the log: %d bytes, cursor %d, %v", log.Len(), next, err)
			}
		})
	}
}

// peakMiB is the most memory that a process has had.
func peakMiB(t *testing.T, pid int) int {
	t.Helper()
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	kib, _, _ := strings.Cut(statusFields(string(b))["VmHWM"], " ")
	n, _ := strconv.Atoi(kib)
	return n >> 10
}

// Entrypoints that do harm: each sandbox can be looked at and deleted, and its
// neighbour notices nothing.
func TestHarmfulEntrypoints(t *testing.T) {
	s := sharedServer(t)
	neighbour := sleeper(t, s)
	for name, c := range map[string]struct {
		shell  string
		limits map[string]string
	}{
		// The first process does not fork more than once: a shell that can't ends,
		// and so would the sandbox.
		"forks for ever":          {"sh -c 'b() { b & b & }; while :; do b; done' & exec sleep 7654321", map[string]string{"pids": "64", "cpu": "500m"}},
		"ignores every signal":    {"trap '' TERM INT HUP QUIT PIPE USR1; while :; do sleep 1; done", nil},
		"kills everybody":         {"while :; do kill -9 -1; kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.2; done", nil},
		"closed everything":       {"exec <&- >&- 2>&-; while :; do sleep 1; done", nil},
		"leaves orphans for ever": {"sh -c 'while :; do (sleep 0.01 &); done' & exec sleep 7654321", map[string]string{"pids": "64", "cpu": "500m"}},
	} {
		t.Run(name, func(t *testing.T) {
			sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: []string{"sh", "-c", c.shell}, ResourceLimits: c.limits})
			if got, err := s.Client.Get(t.Context(), sb.ID); err != nil || got.Status.State != client.StateRunning {
				t.Errorf("%+v %v", got, err)
			}
			if got := s.Must(t, neighbour.ID, "echo alive"); got != "alive" {
				t.Errorf("the neighbour says %q", got)
			}
			if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
				t.Errorf("deleting: %v", err)
			}
			for _, trace := range s.AwaitNoTraces(sb.ID) {
				t.Errorf("left: %s", trace)
			}
		})
	}
}

// A delete while commands run ends their streams with an error, not in silence.
func TestDeleteDuringCommands(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	ended := make(chan error)
	started := make(chan string)
	lines := []string{"sleep 98765", "cat /dev/zero", "trap '' TERM; while :; do sleep 1; done"}
	for _, line := range lines {
		go func() {
			_, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: line}, client.Output{OnStart: func(id string) { started <- id }})
			ended <- err
		}()
		select {
		case <-started:
		case err := <-ended:
			t.Fatalf("%q: %v", line, err)
		}
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	for range lines {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a command whose sandbox was deleted ended with success")
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a stream of a deleted sandbox goes on")
		}
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

// A pull that the disk has no space for fails and says so, takes nothing of what
// was there, and gives back what it took: a smaller image can be pulled after.
// One whose bytes are damaged says that.
func TestPullsThatCannotBeKept(t *testing.T) {
	harness.RequireProgram(t, "docker-registry")
	s := serverOnTmpfs(t, "80m", "8Mi")
	kept := sleeper(t, s)
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	large := registry.Push(t, imagetest.Layout(t, "", withBulk(imagetest.Busybox(t), 100<<20)), "large", "1")
	small := registry.Push(t, imagetest.Layout(t, "", withBulk(imagetest.Busybox(t), 1<<20)), "small", "1")
	sb, err := createOf(t, s, large, nil)
	if err == nil || sb == nil || sb.Status.State != client.StateFailed || !strings.Contains(sb.Status.Message, "space") {
		t.Errorf("%+v, %v; want Failed with a message about space", sb, err)
	}
	if sb != nil {
		for _, trace := range s.AwaitEnded(sb.ID) {
			t.Errorf("left: %s", trace)
		}
	}
	if got := s.Must(t, kept.ID, "echo alive"); got != "alive" {
		t.Errorf("the sandbox that was there says %q", got)
	}
	// A layer that is not what its digest says is refused with that reason.
	proxy := registry.Proxy(t)
	proxy.SetFault(imagetest.Spoil(500_000))
	small = proxy.Host + strings.TrimPrefix(small, registry.Host)
	sb, err = createOf(t, s, small, nil)
	if err == nil || sb == nil || sb.Status.Reason != "IMAGE_PULL_FAILED" || !strings.Contains(sb.Status.Message, "damaged") {
		t.Errorf("%+v, %v; want Failed with a message about damage", sb, err)
	}
	proxy.SetFault(nil)
	wantRunning(t, s, small, nil)
}
