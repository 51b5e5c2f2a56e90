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
