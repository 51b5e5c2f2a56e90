package clients

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// image is the name that the clients give for the starter image.
const image = "python:3.11"

// shared is the server that all clients use. It is started by the first.
var shared struct {
	once   sync.Once
	server *harness.Server
	err    error
	work   string
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	ctx := context.Background()
	if os.Geteuid() == 0 {
		harness.SweepStale(ctx, harness.BinaryPath())
	}
	code := m.Run()
	if s := shared.server; s != nil {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			fmt.Printf("FAIL: closing the server:\n%v\n", err)
			code = max(code, 1)
		}
	}
	if shared.work != "" {
		os.RemoveAll(shared.work)
	}
	if dir, err := harness.RunDir(); err == nil {
		os.RemoveAll(dir)
	}
	return code
}

// server returns the server, with the starter image.
func server(t *testing.T) *harness.Server {
	t.Helper()
	binary := harness.Binary(t)
	archive := starterImage(t)
	_, err := os.Stat(archive)
	harness.Require(t, err == nil, "the starter image at "+archive+": run scripts/starter-image.sh")
	shared.once.Do(func() { shared.err = start(binary, archive) })
	if shared.err != nil {
		t.Fatalf("the server: %v", shared.err)
	}
	if shared.server.PID() == 0 {
		t.Fatalf("the server has died; its log ends with:\n%s", shared.server.LogTail(8<<10))
	}
	return shared.server
}

func starterImage(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "paddock", "starter.tar")
}

func start(binary, archive string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var err error
	if shared.work, err = os.MkdirTemp("", "paddock-clients-"); err != nil {
		return err
	}
	o := harness.Options{
		Binary: binary, DataDir: filepath.Join(shared.work, "data"),
		Settings: map[string]string{
			"pool.size": "4",
			// Sandboxes may read what scripts/clients.sh has installed.
			"storage.allowed_host_paths": filepath.Join(filepath.Dir(archive), "clients"),
		},
	}
	if o.RunDir, err = harness.RunDir(); err != nil {
		return err
	}
	if err := harness.Remember(o.RunDir, o.DataDir); err != nil {
		return err
	}
	// Images whose names a tester makes up are not looked for in the world.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		if err := os.Setenv(name, "http://127.0.0.1:1"); err != nil {
			return err
		}
	}
	if shared.server, err = harness.Launch(ctx, o); err != nil {
		return err
	}
	return importImage(ctx, archive)
}

// importImage makes sure that the server has the starter image.
func importImage(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = shared.server.Client.ImportImage(ctx, f, image)
	return err
}
