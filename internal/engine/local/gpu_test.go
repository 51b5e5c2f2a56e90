package local

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// standIn has the numbers of a GPU here: everybody may open it, but the device
// policy denies it to every sandbox to which it is not granted.
const standIn = "/dev/fuse"

// cdiHost is a host with n stand-ins for GPUs, and a file that belongs to their
// driver.
func cdiHost(t *testing.T, n int) *host {
	t.Helper()
	h := newHost(t)
	var st unix.Stat_t
	if err := unix.Stat(standIn, &st); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "libfake.so.535")
	if err := os.WriteFile(file, []byte("of the driver\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var devices []map[string]any
	device := func(name string, nodes []map[string]any) {
		devices = append(devices, map[string]any{"name": name, "containerEdits": map[string]any{
			"env": []string{"FAKE_GPU=" + name}, "deviceNodes": nodes}})
	}
	var every []map[string]any
	for i := range n {
		// Only the number is used: the nodes need not be on the host.
		node := map[string]any{"path": "/dev/fake/gpu" + strconv.Itoa(i), "type": "c",
			"major": unix.Major(st.Rdev), "minor": unix.Minor(st.Rdev)}
		device(strconv.Itoa(i), []map[string]any{node})
		device("GPU-"+strconv.Itoa(i), []map[string]any{node})
		every = append(every, node)
	}
	device("all", every)
	spec, err := json.Marshal(map[string]any{
		"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices,
		"containerEdits": map[string]any{
			"env":    []string{"NVIDIA_VISIBLE_DEVICES=void", "MINE=cdi"},
			"mounts": []map[string]any{{"hostPath": file, "containerPath": "/usr/lib/fake/libfake.so.535", "options": []string{"ro"}}},
			"hooks": []map[string]any{
				{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook",
					"args": []string{"nvidia-cdi-hook", "create-symlinks", "--link", "libfake.so.535::/usr/lib/fake/libfake.so"}},
				{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook",
					"args": []string{"nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib/fake"}},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fake.json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	h.opts.CDIDirs = []string{dir}
	return h
}

func gpus(n string) func(*sandbox.Spec) {
	return func(s *sandbox.Spec) {
		s.Limits.GPUs = n
		s.Env = map[string]string{"MINE": "request"}
	}
}

func TestGPU(t *testing.T) {
	for _, byPath := range []bool{false, true} {
		t.Run(fmt.Sprintf("overlay by path %v", byPath), func(t *testing.T) {
			h := cdiHost(t, 2)
			h.opts.OverlayByPath = byPath
			e, _ := h.open(t)
			defer e.Close()
			id := mustCreate(t, e, gpus("1"))
			out, _ := run(t, e, id, "(: </dev/fake/gpu0) && echo opened; ls -ln /dev/fake")
			if !strings.Contains(out, "opened") || !strings.Contains(out, "crw-rw-rw-    1 0        0 ") || strings.Contains(out, "gpu1") {
				t.Errorf("the GPU's node: %q", out)
			}
			out, _ = run(t, e, id, "echo $FAKE_GPU $NVIDIA_VISIBLE_DEVICES $MINE $LD_LIBRARY_PATH; cat /usr/lib/fake/libfake.so; echo x >/usr/lib/fake/libfake.so.535; readlink /usr/lib/fake/libfake.so; ls -ln /usr/lib/fake/libfake.so.535")
			for _, want := range []string{"0 void request /usr/lib/fake", "of the driver", "Read-only file system", "\nlibfake.so.535\n", " 0 "} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in %q", want, out)
				}
			}
			if b, err := os.ReadFile(filepath.Join(h.opts.CDIDirs[0], "libfake.so.535")); err != nil || string(b) != "of the driver\n" {
				t.Errorf("the host's file: %q, %v", b, err)
			}
			plain := mustCreate(t, e, nil)
			if out, _ := run(t, e, plain, "ls -d /dev/fake /usr/lib/fake; echo =$FAKE_GPU="); !strings.Contains(out, "==") || strings.Contains(out, "\n/dev/fake") {
				t.Errorf("a sandbox without GPUs: %q", out)
			}
			for _, id := range []string{id, plain} {
				if err := e.Remove(context.Background(), id); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(e.in.run(id)); !os.IsNotExist(err) {
					t.Errorf("the run directory: %v", err)
				}
			}
		})
	}
}

func TestGPUAllocation(t *testing.T) {
	h := cdiHost(t, 3)
	e, _ := h.open(t)
	busy := func(asked string) {
		t.Helper()
		_, err := create(t, e, gpus(asked))
		if known := sandbox.AsError(err); err == nil || known.Kind != sandbox.KindBusy || known.Code != sandbox.CodeCapacity || !strings.Contains(known.Message, "resourceLimits.gpu") {
			t.Errorf("%s more: got %v", asked, err)
		}
	}
	has := func(id, want string) {
		t.Helper()
		if out, _ := run(t, e, id, "echo $(ls /dev/fake)"); strings.TrimSpace(out) != want {
			t.Errorf("the sandbox has %q, want %q", out, want)
		}
	}
	ctx := context.Background()
	one := mustCreate(t, e, gpus("1"))
	two := mustCreate(t, e, gpus("2"))
	has(one, "gpu0")
	has(two, "gpu1 gpu2")
	busy("1")
	busy("all")
	// A restarted server knows who has what.
	e.Close()
	var recorded []*sandbox.Sandbox
	for _, id := range []string{one, two} {
		recorded = append(recorded, &sandbox.Sandbox{ID: id, Token: "token-of-" + id, Status: sandbox.Status{State: sandbox.Running}})
	}
	var found map[string]sandbox.Found
	e, found = h.open(t, recorded...)
	defer func() { e.Close() }()
	if found[one] != sandbox.FoundRunning || found[two] != sandbox.FoundRunning {
		t.Fatalf("found %v", found)
	}
	busy("1")
	if err := e.Remove(ctx, one); err != nil {
		t.Fatal(err)
	}
	again := mustCreate(t, e, gpus("1"))
	has(again, "gpu0")
	// A reservation that comes to nothing gives them back.
	if err := e.Remove(ctx, again); err != nil {
		t.Fatal(err)
	}
	spec := &sandbox.Spec{Image: testImage, Limits: sandbox.Limits{GPUs: "1"}}
	id, err := e.Reserve(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	busy("1")
	e.Release(id)
	if _, err := create(t, e, func(s *sandbox.Spec) { gpus("1")(s); s.Entrypoint = []string{"/no/such/program"} }); err == nil {
		t.Error("an entrypoint that does not exist was started")
	}
	if err := e.Remove(ctx, two); err != nil {
		t.Fatal(err)
	}
	has(mustCreate(t, e, gpus("all")), "gpu0 gpu1 gpu2")
	busy("1")
}

// TestGPUOfNobody: what a dead server left of a sandbox that was never recorded
// goes, and its GPU is free.
func TestGPUOfNobody(t *testing.T) {
	h := cdiHost(t, 1)
	e, _ := h.open(t)
	id := mustCreate(t, e, gpus("1"))
	e.Close()
	e, _ = h.open(t)
	defer e.Close()
	if left, err := e.gpuCgroups.List(); err != nil || len(left) > 0 {
		t.Errorf("left in the GPUs' cgroup: %v, %v", left, err)
	}
	if _, err := os.Stat(e.in.run(id)); !os.IsNotExist(err) {
		t.Errorf("the run directory: %v", err)
	}
	mustCreate(t, e, gpus("all"))
}

func TestGPURefusals(t *testing.T) {
	h := cdiHost(t, 1)
	withGPU := h.opts.CDIDirs
	for _, c := range []struct {
		name, asked string
		dirs        []string
		wants       []string
	}{
		{"none here", "1", []string{t.TempDir()}, []string{"no GPU was found", "CDI"}},
		{"too many", "2", withGPU, []string{"2 GPUs", "has 1"}},
		{"not a number", "0", withGPU, []string{`"0"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &host{opts: h.opts}
			h.opts.CDIDirs, h.opts.PoolSize = c.dirs, 0
			e, err := New(context.Background(), h.opts)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			err = e.Check(context.Background(), &sandbox.Spec{Image: testImage, Limits: sandbox.Limits{GPUs: c.asked}})
			known := sandbox.AsError(err)
			if err == nil || known.Kind != sandbox.KindInvalid || known.Code != sandbox.CodeInvalidParameter {
				t.Fatalf("got %v", err)
			}
			for _, want := range append(c.wants, "resourceLimits.gpu") {
				if !strings.Contains(known.Message, want) {
					t.Errorf("%q is not in %q", want, known.Message)
				}
			}
		})
	}
}
