package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		if p.memory == nil {
			err := group(t, p, "a").SetLimits(Limits{MemoryBytes: 1 << 30})
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("a limit without its controller: %v", err)
			}
			t.Skip("the hierarchy has no limiting controllers")
		}
		g := group(t, p, "a")
		read := func(d *dir, name string) string {
			b, err := d.read("a/" + name)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(b))
		}
		memoryFile, cpuFile := memLimit, "cpu.cfs_quota_us"
		if p.memory.v2 {
			memoryFile, cpuFile = "memory.max", "cpu.max"
		}
		// Up, down, and off, in each order.
		for _, l := range []Limits{
			{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 10},
			{CPUMillis: 5, MemoryBytes: 128 << 20, PIDs: 5},
			{CPUMillis: 2000, MemoryBytes: 32 << 20, PIDs: 1000},
			{},
			{MemoryBytes: 16 << 20},
			{CPUMillis: 5},
			{CPUMillis: 100},
		} {
			if err := g.SetLimits(l); err != nil {
				t.Fatalf("%+v: %v", l, err)
			}
			if got := read(p.memory, memoryFile); l.MemoryBytes > 0 && got != strconv.FormatInt(l.MemoryBytes, 10) {
				t.Errorf("%+v: memory %s", l, got)
			}
			if got := read(p.memory, memoryFile); l.MemoryBytes == 0 && len(got) < 15 && got != "max" {
				t.Errorf("%+v: memory %s", l, got)
			}
			if got := read(p.cpu, cpuFile); (l.CPUMillis == 0) != (got == "-1" || strings.HasPrefix(got, "max")) {
				t.Errorf("%+v: cpu %s", l, got)
			}
			want := "max"
			if l.PIDs > 0 {
				want = strconv.FormatInt(l.PIDs, 10)
			}
			if got := read(p.pids, "pids.max"); got != want {
				t.Errorf("%+v: pids %s", l, got)
			}
		}
		if err := g.SetLimits(Limits{PIDs: -1}); err == nil {
			t.Error("a negative limit was taken")
		}
	})
}

func TestUsageAndOOM(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		g := group(t, p, "a")
		cmd := command("burn 50")
		if err := g.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		start(t, g, "sit")
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if u.CPU < 50*time.Millisecond || u.CPU > 10*time.Second {
			t.Errorf("CPU time %v", u.CPU)
		}
		if p.memory == nil {
			t.Skip("the hierarchy has no memory controller")
		}
		if u.MemoryBytes <= 0 || u.PIDs < 1 {
			t.Errorf("usage %+v", u)
		}
		if n, err := g.OOMKills(); err != nil || n != 0 {
			t.Errorf("killed for memory: %d, %v", n, err)
		}
		if err := g.SetLimits(Limits{MemoryBytes: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		cmd = command("allocate 256")
		if err := g.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("256 MiB within 64")
		}
		if n, err := g.OOMKills(); err != nil || n < 1 {
			t.Errorf("killed for memory: %d, %v", n, err)
		}
	})
}

// TestLimitsV2Files checks what is written on a v2 host with all controllers,
// where this machine may have none: plain files stand in for the kernel's.
func TestLimitsV2Files(t *testing.T) {
	for _, test := range []struct {
		limits Limits
		want   map[string]string
	}{
		{
			Limits{CPUMillis: 1500, MemoryBytes: 1 << 20, PIDs: 7},
			map[string]string{"cpu.max": "150000 100000", "memory.max": "1048576", "memory.swap.max": "0", "pids.max": "7"},
		},
		{
			Limits{},
			map[string]string{"cpu.max": "max", "memory.max": "max", "memory.swap.max": "max", "pids.max": "max"},
		},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "a"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name := range test.want {
			if err := os.WriteFile(filepath.Join(root, "a", name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d, err := openDir(root, true)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		g := &Group{p: &Parent{dirs: []*dir{d}, unified: d, cpu: d, memory: d, pids: d}, id: "a"}
		if err := g.SetLimits(test.limits); err != nil {
			t.Fatal(err)
		}
		for name, want := range test.want {
			if got, err := os.ReadFile(filepath.Join(root, "a", name)); err != nil || string(got) != want {
				t.Errorf("%+v: %s is %q, %v, want %q", test.limits, name, got, err, want)
			}
		}
	}
}
