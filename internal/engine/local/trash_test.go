package local

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Root in a sandbox can nest directories deeper than any path or number of
// descriptors reaches. Removing them can be left to the next start, and two may
// ask for it at the same time.
func TestTrashOfDeepTrees(t *testing.T) {
	e := &Engine{in: &instance{dataDir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	if err := os.Mkdir(e.in.trashDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	first := newTrash(e)
	for _, name := range []string{"one", "two", "three"} {
		dir := filepath.Join(e.in.dataDir, name)
		deepTree(t, dir, 1000)
		if err := first.put(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	first.close()

	second := newTrash(e)
	defer second.close()
	if err := second.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(e.in.trashDir()); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
}

// deepTree makes dir and a chain of directories in it.
func deepTree(t *testing.T, dir string, depth int) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	at, err := unix.Open(dir, flags, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(at, "d", 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		parent := at
		at, err = unix.Openat(parent, "d", flags, 0)
		unix.Close(parent)
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(at)
}
