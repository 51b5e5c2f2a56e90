package image

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestHold(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	s := openAt(t, root, nil)
	s.HoldsRestored()
	img := mustImport(t, s, "tool:v1", oneFile("a", "1"))
	if err := s.Hold("sandbox", img); err != nil || !s.InUse(img.Digest) {
		t.Fatalf("held: %v, in use: %v", err, s.InUse(img.Digest))
	}
	if err := s.Remove(t.Context(), "tool:v1"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Lookup(t.Context(), "tool:v1", nil)
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeImageNotFound)
	if all, _ := s.List(t.Context()); len(all) != 0 {
		t.Errorf("a removed image is listed: %v", all)
	}
	there := func(want bool) {
		t.Helper()
		if _, err := os.Stat(img.LayerDirs[0]); (err == nil) != want {
			t.Errorf("layer is there: %v, want %v", err == nil, want)
		}
	}
	there(true)

	// A restarted server does not know yet who uses what.
	s.Close()
	s = openAt(t, root, nil)
	collect(t, s)
	there(true)
	if _, err := s.Prune(t.Context(), true); sandbox.AsError(err).Kind != sandbox.KindUnavailable {
		t.Errorf("Prune before HoldsRestored: %v", err)
	}
	if err := s.HoldDigest("sandbox", img.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.HoldDigest("other", "sha256:none"); err == nil {
		t.Error("an unknown image can be held")
	}
	s.HoldsRestored()
	if _, err := s.Prune(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	there(true)
	s.Unhold("sandbox")
	s.Unhold("sandbox")
	collect(t, s)
	there(false)
	if left := remains(t, s); len(left) != 0 {
		t.Errorf("there is still %v", left)
	}
}

func TestPrune(t *testing.T) {
	s := openStore(t, nil)
	s.HoldsRestored()
	used := mustImport(t, s, "used:1", oneFile("a", noise(100_000)))
	mustImport(t, s, "idle:1", oneFile("b", noise(200_000)))
	mustImport(t, s, "idle:2", oneFile("b", noise(200_000)))
	if err := s.Hold("sandbox", used); err != nil {
		t.Fatal(err)
	}
	result, err := s.Prune(t.Context(), false)
	if err != nil || len(result.Images) != 0 {
		t.Errorf("Prune without all: %+v, %v", result, err)
	}
	result, err = s.Prune(t.Context(), true)
	want := []string{"docker.io/library/idle:1", "docker.io/library/idle:2"}
	if err != nil || !slices.Equal(result.Images, want) || result.Bytes < 400_000 {
		t.Errorf("Prune with all: %+v, %v", result, err)
	}
	if _, err := s.Lookup(t.Context(), "used:1", nil); err != nil {
		t.Error(err)
	}
	err = s.Remove(t.Context(), "idle:1")
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeImageNotFound)
}

// Whatever is named or held is on disk, and nothing else is, after any sequence
// of imports, holds, removals and restarts.
func TestHoldProperties(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers keep their owners")
	}
	const kinds = 3
	var archives [kinds][]byte
	for i := range archives {
		archives[i] = imagetest.Archive(t, "", oneFile("f", fmt.Sprint("content ", i)))
	}
	rapid.Check(t, func(rt *rapid.T) {
		root := filepath.Join(t.TempDir(), "images")
		s := openAt(t, root, nil)
		defer func() { s.Close() }()
		s.HoldsRestored()
		names := map[string]string{}          // name → digest
		holds := map[string]map[string]bool{} // holder → digests
		images := map[string]*Image{}         // digest → image, all ever seen
		holder := rapid.SampledFrom([]string{"a", "b"})
		name := rapid.SampledFrom([]string{"x:1", "y:1"})
		for range rapid.IntRange(1, 6).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"import", "hold", "unhold", "remove", "prune", "restart"}).Draw(rt, "step") {
			case "import":
				n := name.Draw(rt, "name")
				got, err := s.Import(t.Context(), bytes.NewReader(archives[rapid.IntRange(0, kinds-1).Draw(rt, "image")]), n)
				if err != nil {
					rt.Fatal(err)
				}
				img := got[0]
				names[n], images[img.Digest] = img.Digest, img
			case "hold":
				n := name.Draw(rt, "name")
				if img, err := s.Lookup(t.Context(), n, nil); err == nil {
					h := holder.Draw(rt, "holder")
					if err := s.Hold(h, img); err != nil {
						rt.Fatalf("holding a present image: %v", err)
					}
					if holds[h] == nil {
						holds[h] = map[string]bool{}
					}
					holds[h][img.Digest] = true
				} else if names[n] != "" {
					rt.Fatalf("%s is lost: %v", n, err)
				}
			case "unhold":
				h := holder.Draw(rt, "holder")
				s.Unhold(h)
				delete(holds, h)
			case "remove":
				n := name.Draw(rt, "name")
				if err := s.Remove(t.Context(), n); (err == nil) != (names[n] != "") {
					rt.Fatalf("removing %s: %v", n, err)
				}
				delete(names, n)
			case "prune":
				if _, err := s.Prune(t.Context(), true); err != nil {
					rt.Fatal(err)
				}
				maps.DeleteFunc(names, func(_, d string) bool { return !isHeld(holds, d) })
			case "restart":
				s.Close()
				s = openAt(t, root, nil)
				for h, digests := range holds {
					for d := range digests {
						if err := s.HoldDigest(h, d); err != nil {
							rt.Fatalf("holding again: %v", err)
						}
					}
				}
				s.HoldsRestored()
			}
			collect(t, s)
			for d, img := range images {
				want := isHeld(holds, d) || slices.Contains(slices.Collect(maps.Values(names)), d)
				if s.InUse(d) != isHeld(holds, d) {
					rt.Fatalf("InUse(%s) is %v", d, s.InUse(d))
				}
				if current := s.index.images[d]; (current != nil) != want {
					rt.Fatalf("image %s is known: %v, want %v", d, current != nil, want)
				} else if want {
					img = current.image
				}
				if _, err := os.Stat(img.LayerDirs[0]); want && err != nil {
					rt.Fatalf("layer of %s: %v", d, err)
				}
			}
			wanted := 0
			for d := range images {
				if s.index.images[d] != nil {
					wanted++
				}
			}
			if dirs, _ := filepath.Glob(filepath.Join(root, "layers/snapshots/*")); len(dirs) != wanted {
				rt.Fatalf("%d layers are on disk, want %d", len(dirs), wanted)
			}
		}
	})
}

func isHeld(holds map[string]map[string]bool, digest string) bool {
	for _, digests := range holds {
		if digests[digest] {
			return true
		}
	}
	return false
}
