package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The command that tests run in groups is this binary itself.
func TestMain(m *testing.M) {
	if task := os.Getenv("CGROUP_TEST_TASK"); task != "" {
		os.Exit(runTask(task))
	}
	os.Exit(m.Run())
}

func runTask(task string) int {
	verb, arg, _ := strings.Cut(task, " ")
	switch verb {
	case "cgroups": // print where we are
		b, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return 1
		}
		os.Stdout.Write(b)
		return 0
	case "sit": // be there until stdin ends
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		return 0
	case "family": // a child and a grandchild that sit too
		n, _ := strconv.Atoi(arg)
		if n > 0 {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "CGROUP_TEST_TASK=family "+strconv.Itoa(n-1))
			cmd.Stdout = os.Stdout
			if cmd.Start() != nil {
				return 1
			}
		} else {
			fmt.Println("ready")
		}
		for {
			syscall.Pause()
		}
	case "bomb": // fork until told otherwise, for ever
		fmt.Println("ready")
		for {
			cmd := exec.Command("/bin/sleep", "60")
			if cmd.Start() == nil {
				go cmd.Wait()
			}
		}
	case "allocate": // MiB, touched
		n, _ := strconv.Atoi(arg)
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		runtime.KeepAlive(b)
		return 0
	case "burn": // milliseconds of CPU time
		n, _ := strconv.Atoi(arg)
		for {
			var u syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			if u.Utime.Nano() >= int64(n)*1e6 {
				return 0
			}
		}
	case "open": // open a device for reading and writing
		f, err := os.OpenFile(arg, os.O_RDWR, 0)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		f.Close()
		return 0
	}
	return 2
}

func command(task string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CGROUP_TEST_TASK="+task)
	return cmd
}

// hosts are the arrangements that can be tried here: this machine's, and
// whichever of v1 and v2 can be had by looking away from the other. The v2
// hierarchy of a hybrid machine has no limiting controllers.
func hosts(t *testing.T) map[string]*Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	real, err := Detect()
	if err != nil {
		t.Skip(err)
	}
	for _, p := range real.Problems() {
		if strings.Contains(p.What, "not writable") {
			t.Skip(p.What)
		}
	}
	list := map[string]*Host{real.Mode.String(): real}
	if real.Mode == Hybrid {
		b, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		var v1, v2 strings.Builder
		for line := range strings.Lines(string(b)) {
			switch {
			case strings.Contains(line, " - cgroup2 "):
				v2.WriteString(line)
			case strings.Contains(line, " - cgroup "):
				v1.WriteString(line)
			}
		}
		for name, mountinfo := range map[string]string{"v1": v1.String(), "v2": v2.String()} {
			root := fakeHost(t, mountinfo, nil)
			if err := os.Symlink("/sys", filepath.Join(root, "sys")); err != nil {
				t.Fatal(err)
			}
			if list[name], err = DetectAt(root); err != nil {
				t.Fatal(err)
			}
			if list[name].Mode.String() != name {
				t.Fatalf("mode %v, want %s", list[name].Mode, name)
			}
		}
	}
	return list
}

// onEach runs f on every kind of host with a parent that is removed afterwards.
func onEach(t *testing.T, f func(t *testing.T, p *Parent)) {
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) { f(t, parent(t, h)) })
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func parent(t *testing.T, h *Host) *Parent {
	t.Helper()
	return parentOf(t, func() (*Parent, error) { return h.Parent("paddocktest-" + strconv.Itoa(os.Getpid())) })
}

// parentOf removes the parent, with all in it, when the test ends.
func parentOf(t *testing.T, open func() (*Parent, error)) *Parent {
	t.Helper()
	p, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer p.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		ids, err := p.List()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			g, err := p.Open(id)
			if err == nil {
				err = errors.Join(g.Kill(ctx), g.Remove(ctx))
			}
			if err != nil {
				t.Error(err)
			}
		}
		// The thread that entered a v1 devices group may take a moment to end.
		if err := poll(ctx, func() (bool, error) {
			err := p.Remove()
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			return true, err
		}); err != nil {
			t.Error(err)
		}
	})
	return p
}

func group(t *testing.T, p *Parent, id string) *Group {
	t.Helper()
	g, err := p.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// start runs a task in the group and waits for its first line.
func start(t *testing.T, g *Group, task string) *exec.Cmd {
	t.Helper()
	cmd := command(task)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A frozen process of v1 dies only with the group.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := g.Kill(ctx); err != nil {
			t.Error(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the task %q said %q, %v", task, line, err)
	}
	return cmd
}

func TestStartIsInGroup(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		g := group(t, p, "a")
		cmd := command("cgroups")
		var out strings.Builder
		cmd.Stdout = &out
		if err := g.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		// As many hierarchies as the group has directories, and devices'.
		var in, inParent int
		for line := range strings.Lines(out.String()) {
			path := strings.TrimSpace(line)
			if strings.HasSuffix(path, "/"+p.name+"/a") {
				in++
			}
			if strings.HasSuffix(path, "devices:/"+p.name) {
				inParent++
			}
		}
		if in != len(p.dirs) || (p.devices != nil) != (inParent == 1) {
			t.Errorf("in %d groups and %d parents, want %d: %s", in, inParent, len(p.dirs), out.String())
		}
	})
}

func TestStartRefusesPdeathsig(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		cmd := command("cgroups")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := group(t, p, "a").Start(cmd); err == nil {
			cmd.Wait()
			t.Error("no error")
		}
	})
}

func TestCreateOpenListRemove(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		ctx := testContext(t)
		for _, id := range []string{"b", "a"} {
			group(t, p, id)
		}
		if _, err := p.Create("a"); !errors.Is(err, os.ErrExist) {
			t.Errorf("creating it twice: %v", err)
		}
		// What a crash may leave: a group in one hierarchy only.
		if err := os.Mkdir(filepath.Join(p.dirs[0].path, "partial"), 0o755); err != nil {
			t.Fatal(err)
		}
		// And what a sandbox may make: groups below its own.
		if err := os.MkdirAll(filepath.Join(p.dirs[0].path, "b/c/d"), 0o755); err != nil {
			t.Fatal(err)
		}
		ids, err := p.List()
		if err != nil || !slices.Equal(ids, []string{"a", "b", "partial"}) {
			t.Errorf("listed %q, %v", ids, err)
		}
		if err := p.Remove(); err == nil {
			t.Error("a parent with groups was removed")
		}
		for _, id := range append(ids, "a", "never-there") {
			g, err := p.Open(id)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
				t.Errorf("removing %s: %v", id, err)
			}
		}
		if ids, err := p.List(); err != nil || len(ids) != 0 {
			t.Errorf("left are %q, %v", ids, err)
		}
	})
}

func TestFreezeThaw(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		ctx := testContext(t)
		g := group(t, p, "a")
		start(t, g, "family 2")
		for range 3 {
			for range 2 { // idempotent
				if err := g.Freeze(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if frozen, err := g.Frozen(); err != nil || !frozen {
				t.Fatalf("frozen %v, %v after Freeze", frozen, err)
			}
			for range 2 {
				if err := g.Thaw(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		// A parent opened by a later process sees it.
		if err := g.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		again, err := p.Open("a")
		if err != nil {
			t.Fatal(err)
		}
		if frozen, err := again.Frozen(); err != nil || !frozen {
			t.Errorf("frozen %v, %v when opened again", frozen, err)
		}
	})
}

func TestFreezeEnds(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		ctx, cancel := context.WithCancel(testContext(t))
		cancel()
		g := group(t, p, "a")
		start(t, g, "sit")
		// The freeze may win; if it doesn't, the group must not stay frozen.
		if err := g.Freeze(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("freezing with an ended context: %v", err)
		}
		missing, err := p.Open("missing")
		if err != nil {
			t.Fatal(err)
		}
		if err := missing.Freeze(testContext(t)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("freezing what isn't there: %v", err)
		}
	})
}

func TestKill(t *testing.T) {
	for _, task := range []string{"family 3", "bomb"} {
		for _, freeze := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s frozen %v", task, freeze), func(t *testing.T) {
				onEach(t, func(t *testing.T, p *Parent) {
					ctx := testContext(t)
					g := group(t, p, "a")
					if p.pids != nil {
						if err := g.SetLimits(Limits{PIDs: 100}); err != nil {
							t.Fatal(err)
						}
					} else if task == "bomb" {
						t.Skip("no pids controller to bound the fork bomb with")
					}
					start(t, g, task)
					if freeze {
						if err := g.Freeze(ctx); err != nil {
							t.Fatal(err)
						}
					}
					if list, err := g.Procs(); err != nil || len(list) == 0 {
						t.Fatalf("processes %v, %v", list, err)
					}
					if err := g.Kill(ctx); err != nil {
						t.Fatal(err)
					}
					if list, err := g.Procs(); err != nil || len(list) != 0 {
						t.Errorf("after Kill there are processes %v, %v", list, err)
					}
					if err := g.Remove(ctx); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestRemoveWaits(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		g := group(t, p, "a")
		cmd := start(t, g, "sit")
		short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := g.Remove(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("removing a group with a process: %v", err)
		}
		done := make(chan error, 2)
		for range 2 { // concurrently, as a delete and a clean-up may
			go func() { done <- g.Remove(testContext(t)) }()
		}
		cmd.Process.Kill()
		cmd.Wait()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

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

func TestDevices(t *testing.T) {
	// A device that root could open otherwise.
	var forbidden string
	for _, path := range []string{"/dev/kmsg", "/dev/mem", "/dev/loop0", "/dev/vda"} {
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			f.Close()
			forbidden = path
			break
		}
	}
	onEach(t, func(t *testing.T, p *Parent) {
		// Installing it again must change nothing for the group.
		g := group(t, p, "a")
		if err := p.denyDevices(); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]bool{
			"/dev/null": true, "/dev/zero": true, "/dev/full": true, "/dev/random": true,
			"/dev/urandom": true, "/dev/ptmx": true, forbidden: false,
		} {
			if path == "" {
				t.Log("no device here to try the denial with")
				continue
			}
			cmd := command("open " + path)
			if err := g.Start(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err == nil) != want {
				t.Errorf("opening %s: %v", path, err)
			}
		}
	})
}

func TestDevicesV1Repairs(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		if p.devices == nil {
			t.Skip("no v1 devices hierarchy")
		}
		if err := p.devices.write("devices.allow", "c 10:* rwm"); err != nil {
			t.Fatal(err)
		}
		if err := p.devices.write("devices.deny", "c 1:3 w"); err != nil {
			t.Fatal(err)
		}
		if err := p.denyDevices(); err != nil {
			t.Fatal(err)
		}
		b, err := p.devices.read("devices.list")
		if err != nil {
			t.Fatal(err)
		}
		have := strings.Split(strings.TrimSpace(string(b)), "\n")
		slices.Sort(have)
		want := slices.Sorted(slices.Values(rules(allowed)))
		if !slices.Equal(have, want) {
			t.Errorf("the policy is %q, want %q", have, want)
		}
	})
}

// TestWatchMany: one inotify instance serves many waits at once.
func TestWatchMany(t *testing.T) {
	onEach(t, func(t *testing.T, p *Parent) {
		const n = 40
		ctx := testContext(t)
		done := make(chan error, n)
		var cmds []*exec.Cmd
		for i := range n {
			g := group(t, p, "g"+strconv.Itoa(i))
			cmds = append(cmds, start(t, g, "sit"))
			go func() { done <- g.Remove(ctx) }()
		}
		for _, cmd := range cmds {
			cmd.Process.Kill()
			cmd.Wait()
		}
		for range n {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if p.events != nil {
			p.events.mu.Lock()
			defer p.events.mu.Unlock()
			if len(p.events.waits) != 0 {
				t.Errorf("%d watches are left", len(p.events.waits))
			}
		}
	})
}

func TestClosedParent(t *testing.T) {
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			p := parent(t, h)
			q, err := h.Parent(p.name)
			if err != nil {
				t.Fatal(err)
			}
			q.Close()
			q.Close()
			if _, err := h.Parent("../x"); err == nil {
				t.Error("a bad name was taken")
			}
		})
	}
}

func benchmarkEach(b *testing.B, f func(b *testing.B, p *Parent)) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to make cgroups")
	}
	h, err := Detect()
	if err != nil {
		b.Skip(err)
	}
	p, err := h.Parent("paddockbench-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	defer p.Remove()
	f(b, p)
}

func BenchmarkStart(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, p *Parent) {
		g, err := p.Create("a")
		if err != nil {
			b.Fatal(err)
		}
		ctx := context.Background()
		defer g.Remove(ctx)
		for name, start := range map[string]func(*exec.Cmd) error{
			"group": g.Start,
			"plain": (*exec.Cmd).Start,
		} {
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					cmd := exec.Command("/bin/true")
					if err := start(cmd); err != nil {
						b.Fatal(err)
					}
					if err := cmd.Wait(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}

func BenchmarkLife(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, p *Parent) {
		ctx := context.Background()
		for b.Loop() {
			g, err := p.Create("a")
			if err != nil {
				b.Fatal(err)
			}
			if err := g.SetLimits(Limits{CPUMillis: 1000, MemoryBytes: 1 << 30, PIDs: 100}); err != nil {
				b.Fatal(err)
			}
			if err := g.Remove(ctx); err != nil {
				b.Fatal(err)
			}
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
