package test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// serverOnTmpfs is ownServer with a data directory on a filesystem of that size,
// of which minFree must stay free.
func serverOnTmpfs(t *testing.T, size, minFree string) *harness.Server {
	t.Helper()
	harness.Binary(t)
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	s := harness.NewAt(t, dir, map[string]string{"pool.size": "1", "storage.min_free": minFree})
	importArchive(t, s, busyboxArchive(t))
	return s
}
