package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

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
