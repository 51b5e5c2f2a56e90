package test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	starterImage = "python:3.11"
	busyboxImage = "busybox:test"
)

// forever is an entrypoint that does nothing until it is told to end.
var forever = []string{"sleep", "7654321"}

// shared is the server that most tests use. It is started by the first.
var shared struct {
	once     sync.Once
	server   *harness.Server
	err      error
	hostDir  string // the directory that sandboxes may mount
	otherDir string // one that they may not
	work     string
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.RunTests(m, func() (*harness.Server, string) { return shared.server, shared.work }))
}

// sharedServer returns the shared server with its images.
func sharedServer(t *testing.T) *harness.Server {
	t.Helper()
	binary := harness.Binary(t)
	shared.once.Do(func() { shared.err = startShared(binary, busyboxArchive(t)) })
	if shared.err != nil {
		t.Fatalf("the shared server: %v", shared.err)
	}
	if shared.server.PID() == 0 {
		t.Fatalf("the shared server has died; its log ends with:\n%s", shared.server.LogTail(4<<10))
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("server log: %s", lastLines(shared.server.LogTail(64<<10), 25))
		}
	})
	return shared.server
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func startShared(binary string, busybox []byte) error {
	var err error
	if shared.work, err = os.MkdirTemp("", "paddock-e2e-"); err != nil {
		return err
	}
	shared.hostDir = filepath.Join(shared.work, "allowed")
	shared.otherDir = filepath.Join(shared.work, "other")
	for _, dir := range []string{shared.hostDir, shared.otherDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	upstream, err := startUpstream()
	if err != nil {
		return err
	}
	runDir, err := harness.RunDir()
	if err != nil {
		return err
	}
	o := harness.Options{
		Binary: binary, RunDir: runDir, DataDir: filepath.Join(shared.work, "data"),
		Settings: map[string]string{
			"storage.allowed_host_paths": shared.hostDir,
			"network.dns_upstreams":      upstream,
			"pool.size":                  "4",
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := harness.Remember(o.RunDir, o.DataDir); err != nil {
		return err
	}
	if shared.server, err = harness.Launch(ctx, o); err != nil {
		return err
	}
	_, err = shared.server.Client.ImportImage(ctx, bytes.NewReader(busybox), "")
	return err
}

var starterOnce sync.Once
var starterErr error

// withStarter imports the starter image into the shared server.
func withStarter(t *testing.T) *harness.Server {
	t.Helper()
	s := sharedServer(t)
	path := harness.StarterImage(t)
	starterOnce.Do(func() { starterErr = s.ImportFile(context.Background(), path, starterImage) })
	if starterErr != nil {
		t.Fatalf("importing the starter image: %v", starterErr)
	}
	return s
}

// ownServer starts a server for this test with the busybox image.
func ownServer(t *testing.T, settings map[string]string) *harness.Server {
	t.Helper()
	if settings == nil {
		settings = map[string]string{}
	}
	if settings["pool.size"] == "" {
		settings["pool.size"] = "2"
	}
	s := harness.New(t, settings)
	importArchive(t, s, busyboxArchive(t))
	return s
}

func busyboxArchive(t *testing.T) []byte {
	t.Helper()
	_, err := exec.LookPath("busybox")
	harness.Require(t, err == nil, "busybox (Debian package busybox-static)")
	return imagetest.Archive(t, "docker.io/library/"+busyboxImage, imagetest.Busybox(t))
}

func importArchive(t *testing.T, s *harness.Server, archive []byte) {
	t.Helper()
	if _, err := s.Client.ImportImage(t.Context(), bytes.NewReader(archive), ""); err != nil {
		t.Fatalf("importing an image: %v", err)
	}
}

// sleeper makes a busybox sandbox that does nothing.
func sleeper(t *testing.T, s *harness.Server) *client.Sandbox {
	t.Helper()
	return s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever})
}
