package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/disk"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func limited(mib int64) func(*sandbox.Spec) {
	return func(s *sandbox.Spec) { s.Limits.EphemeralBytes = mib << 20 }
}

// needDisks skips where limited disks can't be made.
func needDisks(t *testing.T) {
	t.Helper()
	if err := disk.Supported(); err != nil {
		t.Skip(err)
	}
}

// awaitNoLoops waits until no loop device has a file of the instance: the
// kernel frees them after the last process is gone.
func awaitNoLoops(t *testing.T, h *host) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		var left []string
		files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), h.opts.DataDir+"/") {
				left = append(left, strings.TrimSpace(string(b)))
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("loop devices are left for %v", left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// fillDisk writes to the sandbox's root until it is full and returns how many
// MiB fitted and what dd said.
func fillDisk(t *testing.T, e *Engine, id string) (mib int, said string) {
	t.Helper()
	out, _ := run(t, e, id, "dd if=/dev/zero of=/fill bs=1M count=500 2>&1 >/dev/null; echo; wc -c </fill")
	fields := strings.Fields(out)
	var bytes int
	if len(fields) == 0 {
		t.Fatalf("filling the disk said nothing")
	}
	if _, err := fmt.Sscan(fields[len(fields)-1], &bytes); err != nil {
		t.Fatalf("filling the disk: %q", out)
	}
	return bytes >> 20, out
}

func expectFull(t *testing.T, e *Engine, id string, mib int) {
	t.Helper()
	got, said := fillDisk(t, e, id)
	if !strings.Contains(said, "No space left") || got > mib || got < mib*7/8 {
		t.Errorf("%d MiB fitted on a disk of %d MiB, and dd said %q", got, mib, said)
	}
}

func TestDiskLimit(t *testing.T) {
	needDisks(t)
	for _, byPath := range []bool{false, true} {
		t.Run(fmt.Sprintf("overlay by path %v", byPath), func(t *testing.T) {
			h := newHost(t)
			h.opts.OverlayByPath = byPath
			e, _ := h.open(t)
			defer e.Close()
			id := mustCreate(t, e, limited(64))
			neighbour := mustCreate(t, e, limited(32))
			out, _ := run(t, e, id, "cat /etc/hostname; ls -ld / /etc/hosts /lost+found 2>&1; ls /proc/1/status /dev/null")
			for _, want := range []string{id[:8], "root", "/etc/hosts", "/proc/1/status", "/dev/null", "/lost+found: No such file"} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in the sandbox's answer:\n%s", want, out)
				}
			}
			expectFull(t, e, id, 64)
			if out, _ := run(t, e, id, "echo alive; rm /fill; echo again >/etc/x; cat /etc/x"); !strings.Contains(out, "alive\nagain") {
				t.Errorf("a sandbox with a full disk answered %q", out)
			}
			expectFull(t, e, neighbour, 32)
			for _, id := range []string{id, neighbour} {
				if err := e.Remove(context.Background(), id); err != nil {
					t.Error(err)
				}
			}
			// Before anything else uses a mount thread.
			awaitNoLoops(t, h)
			if _, err := os.Stat(e.in.data(id)); !os.IsNotExist(err) {
				t.Errorf("the removed sandbox's files: %v", err)
			}
		})
	}
}

func TestDiskAfterRestart(t *testing.T) {
	needDisks(t)
	h := newHost(t)
	e, _ := h.open(t)
	id := mustCreate(t, e, limited(32))
	run(t, e, id, "echo before >/file")
	e.Close()
	recorded := &sandbox.Sandbox{ID: id, Token: "token-of-" + id, Status: sandbox.Status{State: sandbox.Running}}
	e, found := h.open(t, recorded)
	defer e.Close()
	if found[id] != sandbox.FoundRunning {
		t.Fatalf("found %v", found[id])
	}
	if out, _ := run(t, e, id, "cat /file"); !strings.Contains(out, "before") {
		t.Errorf("the file holds %q", out)
	}
	expectFull(t, e, id, 32)
	if err := e.Remove(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	awaitNoLoops(t, h)
}

func TestManyDisksAtOnce(t *testing.T) {
	needDisks(t)
	h := newHost(t)
	h.opts.PoolSize = 0
	e, _ := h.open(t)
	defer e.Close()
	const n = 20
	ctx := context.Background()
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			spec := &sandbox.Spec{Image: testImage, Entrypoint: []string{"sleep", "1000000"}, Limits: sandbox.Limits{EphemeralBytes: 16 << 20}}
			id, err := e.Reserve(ctx, spec)
			if err == nil {
				_, err = e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "token-of-" + id})
			}
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = id
		}()
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" {
			continue
		}
		if out, _ := run(t, e, id, "echo mine >/mine; df -m / | tail -n1"); !strings.Contains(out, " 15 ") {
			t.Errorf("df says %q", out)
		}
	}
	for _, id := range ids {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := e.Remove(ctx, id); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	awaitNoLoops(t, h)
}

// TestDisks are the small ones, on one engine.
func TestDisks(t *testing.T) {
	needDisks(t)
	h := newHost(t)
	e, _ := h.open(t)
	defer e.Close()
	for name, f := range map[string]func(*testing.T, *host, *Engine){
		"of a stopped sandbox": stoppedDisk, "refused": refusedDisks, "of a failed create": failedDisk,
	} {
		t.Run(name, func(t *testing.T) { f(t, h, e) })
	}
}

func stoppedDisk(t *testing.T, h *host, e *Engine) {
	id := mustCreate(t, e, limited(16))
	if err := e.Stop(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	awaitNoLoops(t, h)
	if _, err := os.Stat(e.diskFile(id)); !os.IsNotExist(err) {
		t.Errorf("the stopped sandbox's disk: %v", err)
	}
	if _, err := os.Stat(e.logFile(id, 0)); err != nil {
		t.Errorf("the stopped sandbox's log: %v", err)
	}
}

func refusedDisks(t *testing.T, _ *host, e *Engine) {
	for _, c := range []struct {
		size  int64
		wants []string
	}{
		{1, []string{"at least 16Mi"}},
		{16<<20 - 1, []string{"at least 16Mi"}},
		{1 << 60, []string{"at most", "Mi"}},
	} {
		err := e.Check(context.Background(), &sandbox.Spec{Image: testImage, Limits: sandbox.Limits{EphemeralBytes: c.size}})
		known := sandbox.AsError(err)
		if err == nil || known.Kind != sandbox.KindInvalid || known.Code != sandbox.CodeInvalidParameter {
			t.Errorf("%d bytes: got %v", c.size, err)
			continue
		}
		for _, want := range append(c.wants, "resourceLimits.ephemeral-storage", fmt.Sprint(c.size)) {
			if !strings.Contains(known.Message, want) {
				t.Errorf("%d bytes: %q is not in %q", c.size, want, known.Message)
			}
		}
	}
}

func failedDisk(t *testing.T, h *host, e *Engine) {
	id, err := create(t, e, func(s *sandbox.Spec) {
		s.Limits.EphemeralBytes = 16 << 20
		// A file cannot be mounted on.
		s.Volumes = []sandbox.VolumeMount{{Name: "v", Claim: "v", CreateIfMissing: true, MountPath: "/etc/hosts"}}
	})
	if err == nil {
		t.Fatal("a volume was mounted on a file")
	}
	awaitNoLoops(t, h)
	if _, err := os.Stat(e.in.data(id)); !os.IsNotExist(err) {
		t.Errorf("the failed sandbox's files: %v", err)
	}
}

// TestKilledWithDisk kills a server with SIGKILL in the middle of a create, and
// opens another one on what is left.
func TestKilledWithDisk(t *testing.T) {
	if step := os.Getenv("PADDOCK_TEST_STEP"); step != "" {
		dieCreating(t, step)
	}
	needDisks(t)
	if testing.Short() {
		t.Skip("killing servers takes seconds")
	}
	for _, step := range []string{"recorded", "made", "mounted", "switched", "created"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			h.opts.PoolSize = 0
			h.opts.Images.Close()
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWithDisk$")
			cmd.Env = append(os.Environ(), "PADDOCK_TEST_STEP="+step,
				"PADDOCK_TEST_DATA="+h.opts.DataDir, "PADDOCK_TEST_RUN="+h.opts.RunDir)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("the server was not killed: %v\n%s", err, out)
			}
			h.opts.Images, err = image.Open(context.Background(), image.Options{Root: filepath.Join(h.opts.DataDir, "images")})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { h.opts.Images.Close() })
			e, _ := h.open(t)
			defer e.Close()
			awaitNoLoops(t, h)
			left, err := os.ReadDir(e.in.sandboxesDir())
			if err != nil || len(left) > 0 {
				t.Errorf("left in the data directory: %v, %v", left, err)
			}
			// The next one works.
			id := mustCreate(t, e, limited(16))
			if err := e.Remove(context.Background(), id); err != nil {
				t.Error(err)
			}
			awaitNoLoops(t, h)
		})
	}
}

// dieCreating goes the way of a create up to the step and kills the process.
func dieCreating(t *testing.T, step string) {
	ctx := context.Background()
	data := os.Getenv("PADDOCK_TEST_DATA")
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	die := func(at string) {
		if at == step {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	images, err := image.Open(ctx, image.Options{Root: filepath.Join(data, "images")})
	check(err)
	e, err := New(ctx, Options{DataDir: data, RunDir: os.Getenv("PADDOCK_TEST_RUN"), Images: images})
	check(err)
	_, err = e.Recover(ctx, nil)
	check(err)
	spec := &sandbox.Spec{Image: testImage, Entrypoint: []string{"sleep", "1000000"}, Limits: sandbox.Limits{EphemeralBytes: 16 << 20}}
	id, err := e.Reserve(ctx, spec)
	check(err)
	if step == "created" {
		_, err := e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "t"})
		check(err)
		die("created")
	}
	img, err := images.Lookup(ctx, spec.Image, nil)
	check(err)
	s, err := e.makeShell(ctx, id)
	check(err)
	check(e.in.saveState(&state{ID: s.id, Index: s.index, Phase: phaseClaiming, PID: s.pid, PIDStart: s.start, Image: img.Digest}))
	die("recorded")
	check(disk.Make(ctx, e.diskFile(id), spec.Limits.EphemeralBytes))
	die("made")
	check(os.Remove(e.diskFile(id)))
	fd, _, err := e.makeDisk(ctx, s, spec.Limits.EphemeralBytes)
	check(err)
	die("mounted")
	check(e.threads.Switch(ctx, &rootfs.Root{Layers: img.LayerDirs, Dir: e.in.data(id), DirFD: fd,
		Base: s.base, UserNS: s.userns, MountNS: s.mntns}))
	die("switched")
}
