package image

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
)

// Layers whose directories lie deep in each other are removed with few
// descriptors.
func TestRemoveDeepLayer(t *testing.T) {
	const levels = 1500
	s := openStore(t, nil)
	// The same chain of directories all the way down.
	deep := imagetest.Layer{Entries: []imagetest.Entry{
		member(strings.Repeat("d/", levels), tar.TypeDir, "", ""), member(strings.Repeat("d/", levels)+"file", tar.TypeReg, "", "x"),
	}}
	if _, err := importImage(t, s, "deep:1", imagetest.Image{Layers: []imagetest.Layer{deep}}); err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(s.opts.Root, "layers/snapshots")
	if list, err := os.ReadDir(in); err != nil || len(list) != 1 {
		t.Fatalf("directories of layers: %v, %v", list, err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(len(open)) + 300, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	s.HoldsRestored()
	if err := s.Remove(t.Context(), "deep:1"); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(in); err != nil || len(list) != 0 {
		t.Errorf("directories of layers after the removal: %v, %v", list, err)
	}
}

// Directories of no layer go, those of layers stay, whatever is made meanwhile.
func TestCleanupOfLayers(t *testing.T) {
	s := openStore(t, nil)
	img, err := importImage(t, s, "kept:1", oneFile("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(s.opts.Root, "layers/snapshots")
	if err := os.MkdirAll(filepath.Join(in, "new-left/fs/d"), 0o755); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
				if err := s.overlay.(*layers).Cleanup(s.ctx); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	for i := range 8 {
		name := string(rune('a'+i)) + ":1"
		made, err := importImage(t, s, name, oneFile(name, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range made.LayerDirs {
			if _, err := os.Stat(dir); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, dir := range img.LayerDirs {
		if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "1" {
			t.Errorf("the file of a layer that is used: %q, %v", b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(in, "new-left")); !os.IsNotExist(err) {
		t.Errorf("what no layer has is left: %v", err)
	}
}
