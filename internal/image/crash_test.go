package image

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
)

// crashEnv makes the test binary the process that is to be killed:
// root|reference.
const crashEnv = "PADDOCK_TEST_IMAGE_CRASH"

// crashImage has several layers with many files, so that a pull of it has many
// moments in which it can die.
func crashImage() imagetest.Image {
	var img imagetest.Image
	for layer := range 4 {
		files := map[string]string{"big": noise(300_000 + layer)}
		for i := range 150 {
			files[fmt.Sprintf("d%d/f%d", layer, i)] = fmt.Sprint(layer, i)
		}
		img.Layers = append(img.Layers, imagetest.Files(files))
	}
	return img
}

// TestCrashVictim pulls and removes an image until it is killed.
func TestCrashVictim(t *testing.T) {
	root, name, ok := strings.Cut(os.Getenv(crashEnv), "|")
	if !ok {
		t.Skip("run by TestCrash")
	}
	s, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	s.HoldsRestored()
	fmt.Println("ready")
	for t.Context().Err() == nil {
		if _, err := s.Pull(t.Context(), name, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// Whenever the process dies, the next one finds an image that is complete or
// not there, can pull it, and leaves nothing behind.
func TestCrash(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers keep their owners")
	}
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	name := registry.Push(t, imagetest.Layout(t, "", crashImage()), "app", "v1")
	root := filepath.Join(t.TempDir(), "images")
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		// When it dies is a matter of chance; what must hold afterwards is not.
		crash(t, root, name, time.Duration(rand.IntN(200))*time.Millisecond)
		s := openAt(t, root, nil)
		s.HoldsRestored()
		if img, err := s.Lookup(t.Context(), name, nil); err == nil {
			checkCrashImage(t, img)
		}
		img, err := s.Ensure(t.Context(), name, nil, nil, nil)
		if err != nil {
			t.Fatalf("round %d: pulling after the crash: %v", round, err)
		}
		checkCrashImage(t, img)
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Prune(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if left := remains(t, s); len(left) != 0 {
			t.Fatalf("round %d: there is still %v", round, left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// crash starts the victim and kills it some time after it is ready.
func crash(t *testing.T, root, name string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashVictim$", "-test.v")
	cmd.Env = append(os.Environ(), crashEnv+"="+root+"|"+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	buf := make([]byte, 1024)
	for !strings.Contains(text.String(), "ready") {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("the victim did not start: %s", text.String())
		}
	}
	time.Sleep(after)
	cmd.Process.Kill()
	for {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			break
		}
	}
	cmd.Wait()
	if strings.Contains(text.String(), "FAIL") {
		t.Fatalf("the victim failed: %s", text.String())
	}
}

func checkCrashImage(t *testing.T, img *Image) {
	t.Helper()
	for i, dir := range img.LayerDirs {
		layer := len(img.LayerDirs) - 1 - i
		tree := imagetest.Tree(t, dir)
		if len(tree["big"]) != 300_000+layer || len(tree) != 152 {
			t.Fatalf("layer %d is incomplete: %d entries", layer, len(tree))
		}
	}
}
