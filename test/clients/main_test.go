package clients

import (
	"context"
	"flag"
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
	os.Exit(harness.RunTests(m, func() (*harness.Server, string) { return shared.server, shared.work }))
}

// server returns the server, with the starter image.
func server(t *testing.T) *harness.Server {
	t.Helper()
	binary := harness.Binary(t)
	archive := harness.StarterImage(t)
	shared.once.Do(func() { shared.err = start(binary, archive) })
	if shared.err != nil {
		t.Fatalf("the server: %v", shared.err)
	}
	if shared.server.PID() == 0 {
		t.Fatalf("the server has died; its log ends with:\n%s", shared.server.LogTail(8<<10))
	}
	return shared.server
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
	return shared.server.ImportFile(ctx, archive, image)
}
