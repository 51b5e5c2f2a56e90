package image

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// disk is where temporary files would be.
var disk = os.TempDir()

// A store syncs the whole filesystem that it is on, and with it all that others
// write there. In memory the tests wait for themselves only; TestStarterImage and
// TestLayersMount are on the disk.
func TestMain(m *testing.M) {
	const memory, enough = "/dev/shm", 4 << 30
	var st unix.Statfs_t
	if err := unix.Statfs(memory, &st); err == nil && st.Type == unix.TMPFS_MAGIC && st.Bavail*uint64(st.Bsize) >= enough {
		os.Setenv("TMPDIR", memory)
	}
	os.Exit(m.Run())
}

// onDisk returns a temporary directory on the disk.
func onDisk(t *testing.T) string {
	t.Helper()
	t.Setenv("TMPDIR", disk)
	return t.TempDir()
}

// openStore opens a store in a temporary directory. configure may be nil.
func openStore(t testing.TB, configure func(*Options)) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "images"), configure)
}

func openAt(t testing.TB, root string, configure func(*Options)) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers keep their owners")
	}
	o := Options{Root: root, DockerConfig: filepath.Join(t.TempDir(), "none.json"), Logger: slog.New(slog.DiscardHandler)}
	if configure != nil {
		configure(&o)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// wantError checks that err is a *sandbox.Error of this kind and code, and
// returns it.
func wantError(t testing.TB, err error, kind sandbox.Kind, code string) *sandbox.Error {
	t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want a *sandbox.Error with code %s", err, code)
	}
	if e.Kind != kind || e.Code != code {
		t.Fatalf("got kind %d, code %s (%s; %v), want kind %d, code %s", e.Kind, e.Code, e.Message, e.Err, kind, code)
	}
	return e
}

// importImage imports a test image under a name.
func importImage(t testing.TB, s *Store, name string, img imagetest.Image) (*Image, error) {
	t.Helper()
	out, err := s.Import(t.Context(), bytes.NewReader(imagetest.Archive(t, name, img)), name)
	if err != nil {
		return nil, err
	}
	if len(out) != 1 {
		t.Fatalf("imported %d images, want 1", len(out))
	}
	return out[0], nil
}

func mustImport(t testing.TB, s *Store, name string, img imagetest.Image) *Image {
	t.Helper()
	out, err := importImage(t, s, name, img)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// oneFile is an image with one layer that holds one file.
func oneFile(name, content string) imagetest.Image {
	return imagetest.Image{Layers: []imagetest.Layer{imagetest.Files(map[string]string{name: content})}}
}

// noise is content that does not compress.
func noise(n int) string {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	r.Read(b)
	return string(b)
}

// remains lists what the store's database and directories hold, without the
// database files themselves. An empty store has nothing.
func remains(t testing.TB, s *Store) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"content/blobs/*/*", "content/ingest/*", "layers/snapshots/*"} {
		found, err := filepath.Glob(filepath.Join(s.opts.Root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

func collect(t testing.TB, s *Store) {
	t.Helper()
	if err := s.collect(scope(context.Background())); err != nil {
		t.Fatal(err)
	}
}
