package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeHost makes a root directory with the given mountinfo and files.
func fakeHost(t *testing.T, mountinfo string, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	put := func(name, content string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("proc/thread-self/mountinfo", mountinfo)
	for name, content := range files {
		put(name, content)
	}
	return root
}

const (
	v2Line      = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	unifiedLine = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	rootLine    = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
)

func v1Line(controllers string) string {
	return "32 31 0:29 / /sys/fs/cgroup/" + controllers + " rw,nosuid shared:9 - cgroup cgroup rw," + controllers + "\n"
}

func TestDetect(t *testing.T) {
	v1 := rootLine + v1Line("cpu,cpuacct") + v1Line("memory") + v1Line("pids") + v1Line("freezer") + v1Line("devices")
	tests := []struct {
		name      string
		mountinfo string
		files     map[string]string
		mode      Mode
		// problems are words of each expected problem, in order.
		problems []string
	}{
		{
			name: "v2", mode: V2,
			mountinfo: rootLine + v2Line,
			files:     map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"},
		},
		{
			name: "v2 without memory", mode: V2,
			mountinfo: rootLine + v2Line,
			files:     map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"},
			problems:  []string{"controller memory is missing"},
		},
		{
			name: "v2 with nothing delegated", mode: V2,
			mountinfo: rootLine + v2Line,
			files:     map[string]string{"sys/fs/cgroup/cgroup.controllers": "\n"},
			problems:  []string{"controller cpu", "controller memory", "controller pids"},
		},
		{
			name: "v2 read-only", mode: V2,
			mountinfo: rootLine + strings.Replace(v2Line, " rw,nosuid", " ro,nosuid", 1),
			files:     map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n"},
			problems:  []string{"not writable"},
		},
		{
			name: "v2 beside systemd's own v1 hierarchy", mode: V2,
			mountinfo: rootLine + v2Line + "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
			files:     map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n"},
		},
		{
			name: "v1", mode: V1, mountinfo: v1,
			files:    map[string]string{"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": ""},
			problems: []string{"cgroup v1 only"},
		},
		{
			name: "v1 without swap accounting and pids", mode: V1,
			mountinfo: strings.Replace(v1, v1Line("pids"), "", 1),
			files:     map[string]string{"sys/fs/cgroup/memory/tasks": ""},
			problems:  []string{"controller pids", "cgroup v1 only", "account for swap"},
		},
		{
			name: "v1 without freezer and devices", mode: V1,
			mountinfo: rootLine + v1Line("cpu") + v1Line("memory") + v1Line("pids"),
			files:     map[string]string{"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": ""},
			problems:  []string{"v1 freezer", "cgroup v1 only", "controller devices"},
		},
		{
			name: "hybrid", mode: Hybrid, mountinfo: v1 + unifiedLine,
			files: map[string]string{
				"sys/fs/cgroup/unified/cgroup.controllers":         "hugetlb\n",
				"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "",
			},
		},
		{
			name: "hybrid with memory on the v2 side", mode: Hybrid,
			mountinfo: strings.Replace(v1, v1Line("memory"), "", 1) + unifiedLine,
			files:     map[string]string{"sys/fs/cgroup/unified/cgroup.controllers": "memory hugetlb\n"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := fakeHost(t, test.mountinfo, test.files)
			for line := range strings.Lines(test.mountinfo) {
				if err := os.MkdirAll(filepath.Join(root, strings.Fields(line)[4]), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			h, err := DetectAt(root)
			if err != nil {
				t.Fatal(err)
			}
			if h.Mode != test.mode {
				t.Errorf("mode %v, want %v", h.Mode, test.mode)
			}
			problems := h.Problems()
			if len(problems) != len(test.problems) {
				t.Fatalf("problems %q, want %q", problems, test.problems)
			}
			for i, p := range problems {
				if !strings.Contains(p.What, test.problems[i]) {
					t.Errorf("problem %q, want one with %q", p.What, test.problems[i])
				}
				if p.Remedy == "" || p.Cost == "" {
					t.Errorf("problem %q without remedy or cost", p.What)
				}
			}
		})
	}
}

func TestDetectNothing(t *testing.T) {
	if _, err := DetectAt(fakeHost(t, rootLine, nil)); err != ErrNone {
		t.Errorf("error %v, want ErrNone", err)
	}
}

func TestDetectSharedHierarchy(t *testing.T) {
	h, err := DetectAt(fakeHost(t, rootLine+v1Line("cpu,cpuacct"), nil))
	if err != nil {
		t.Fatal(err)
	}
	if h.v1[cpu] == nil || h.v1[cpu] != h.v1[cpuacct] {
		t.Error("cpu and cpuacct are one hierarchy, which was not seen")
	}
}

func TestMountPointWithSpace(t *testing.T) {
	h, err := DetectAt(fakeHost(t, `30 23 0:26 / /my\040groups rw - cgroup cgroup rw,memory`, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(h.v1[memory].path, "/my groups") {
		t.Errorf("path %q", h.v1[memory].path)
	}
}

func TestNames(t *testing.T) {
	p := &Parent{}
	for _, id := range []string{"", ".", "..", "a/b", "../a", "a.b", "memory.max", "-a", strings.Repeat("a", 65), "a\n"} {
		if _, err := p.Open(id); err == nil {
			t.Errorf("the id %q was taken", id)
		}
	}
	for _, id := range []string{"a", "0b-c_D", strings.Repeat("a", 64)} {
		if _, err := p.Open(id); err != nil {
			t.Errorf("the id %q was refused: %v", id, err)
		}
	}
}

func TestQuota(t *testing.T) {
	for _, test := range []struct{ millis, quota, period int64 }{
		{1, 1000, 1_000_000},
		{9, 9000, 1_000_000},
		{10, 1000, 100_000},
		{250, 25_000, 100_000},
		{1500, 150_000, 100_000},
	} {
		q, p := quota(test.millis)
		if q != test.quota || p != test.period {
			t.Errorf("%d: %d of %d, want %d of %d", test.millis, q, p, test.quota, test.period)
		}
	}
}

// FuzzMountinfo: nothing in a line may make the parser panic or leave the root.
func FuzzMountinfo(f *testing.F) {
	for _, line := range []string{rootLine, v2Line, unifiedLine, v1Line("cpu,cpuacct"), " - cgroup", "a b c d e f - cgroup2 x"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		h := &Host{v1: map[string]*mount{}}
		h.addMount("/root", line)
		for _, m := range append(slices.Collect(mapValues(h.v1)), h.unified) {
			if m != nil && m.path != "/root" && !strings.HasPrefix(m.path, "/root/") {
				t.Errorf("mount point %q outside the root", m.path)
			}
		}
	})
}

func mapValues(m map[string]*mount) func(func(*mount) bool) {
	return func(yield func(*mount) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// FuzzLookup: control files are the kernel's, but their format grows.
func FuzzLookup(f *testing.F) {
	f.Add("populated 1\nfrozen 0\n", "frozen")
	f.Fuzz(func(t *testing.T, content, key string) {
		if n, ok := lookup([]byte(content), key); !ok && n != 0 {
			t.Errorf("a number %d without being found", n)
		}
	})
}
