package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := Find(""); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "runsc") {
		t.Errorf("in an empty PATH: %v", err)
	}
	path := filepath.Join(dir, "runsc")
	script(t, path, "echo runsc version 7; echo spec: 1")
	for _, asked := range []string{"", path} {
		r, err := Find(asked)
		if err != nil || r.Path() != path {
			t.Fatalf("asked for %q: %+v, %v", asked, r, err)
		}
		if v, err := r.Version(t.Context()); err != nil || v != "runsc version 7" {
			t.Errorf("version %q, %v", v, err)
		}
	}
	if _, err := Find(filepath.Join(dir, "other")); !errors.Is(err, ErrMissing) {
		t.Errorf("at another path: %v", err)
	}
}

func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// runsc may fail in any way; the error says what it had to say, and a start never
// takes longer than its context.
func TestRunscThatFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering namespaces needs root")
	}
	for _, c := range []struct{ name, script, want string }{
		{"refuses", "echo no such platform >&2; exit 128", "no such platform"},
		{"logs", `while [ "$1" != --log ]; do shift; done; echo '{"msg":"deep inside"}' > "$2"; exit 1`, "deep inside"},
		{"starts nothing", "exit 0", "it ended at once"},
		{"hangs", "exec sleep 1000", "deadline"},
		{"gives no pid", "printf . >&6; exit 0", "pid"},
		{"gives a wrong pid", `while [ "$1" != --pid-file ]; do shift; done; echo 1 > "$2"; printf . >&6`, `"1\n" is not one`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "runsc")
			script(t, path, c.script)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := (&Runtime{path: path}).Run(ctx, starting(t, dir))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// starting is a start in the test's own namespaces.
func starting(t *testing.T, bundle string) *Start {
	t.Helper()
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	namespace := func(name string) int {
		fd, err := unix.Open("/proc/self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	return &Start{
		Sandbox: &Sandbox{ID: "test", Root: "/nowhere"}, Bundle: bundle, Key: "key",
		MountNS: namespace("mnt"), NetNS: namespace("net"),
		Execd: open(filepath.Join(bundle, "execd")),
		Log:   [2]*os.File{open(filepath.Join(bundle, "0")), open(filepath.Join(bundle, "1"))},
	}
}

// Of volumes the sentry keeps nothing in memory; of the root's own /tmp it may.
func TestSpec(t *testing.T) {
	s := &Sandbox{ID: "0123456789abcdef", Root: "/new/root", Tmp: "/new/tmp", Base: 1 << 28, MaxFiles: 100,
		Mounts: []Mount{{Source: "/new/v0", Target: "/data", ReadOnly: true}, {Source: "/new/v1", Target: "/more"}}}
	spec := s.spec()
	find := func(target string) *specs.Mount {
		i := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == target })
		if i < 0 {
			return nil
		}
		return &spec.Mounts[i]
	}
	for _, c := range []struct{ target, source, option string }{{"/tmp", "/new/tmp", "rw"}, {"/data", "/new/v0", "ro"}, {"/more", "/new/v1", "rw"}} {
		if m := find(c.target); m == nil || m.Source != c.source || !slices.Contains(m.Options, c.option) || !slices.Contains(m.Options, "nosuid") {
			t.Errorf("%s: %+v", c.target, m)
		}
	}
	shared := map[string]bool{}
	for k, v := range spec.Annotations {
		if name, ok := strings.CutSuffix(k, ".source"); ok && spec.Annotations[name+".share"] == "shared" {
			shared[v] = true
		}
	}
	if !shared["/new/v0"] || !shared["/new/v1"] || shared["/new/tmp"] || len(shared) != 2 {
		t.Errorf("shared: %v", shared)
	}
	if ids := spec.Linux.UIDMappings; len(ids) != 1 || ids[0].HostID != 1<<28 || !spec.Process.NoNewPrivileges {
		t.Errorf("%+v", ids)
	}
	s.Mounts = append(s.Mounts, Mount{Source: "/new/v2", Target: "/tmp"})
	spec = s.spec()
	if m := find("/tmp"); m == nil || m.Source != "/new/v2" {
		t.Errorf("a volume on /tmp: %+v", m)
	}
	if b, err := json.Marshal(spec); err != nil || strings.Contains(string(b), "key") {
		t.Errorf("%v: %s", err, b)
	}
}
