package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// runcHost is an instance that starts its shells with runc.
func runcHost(t *testing.T) *host {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed")
	}
	h := newHost(t)
	h.opts.OCIRuntime = "runc"
	return h
}

// wallProbe prints what a sandbox sees of its wall, and what of it gives way. The
// seccomp package's tests say what each call answers; here it counts that the
// same program is in force, also in processes that aren't execd's.
const wallProbe = `
grep -E "^(Cap|NoNewPrivs|Seccomp)" /proc/self/status
grep -E "^(Cap|NoNewPrivs|Seccomp)" /proc/1/status
tr -s " " < /proc/self/uid_map | cut -d" " -f2,4; cat /proc/self/cgroup
ulimit -n; ulimit -c
ls -ln /dev | grep -v -e " core -> " -e mqueue | tr -s " " | cut -d" " -f1,3-4,9-
mknod /tmp/null c 1 3; unshare -m true; unshare -U true; mount -t tmpfs x /mnt
chmod 0 /dev/null; echo x > /dev/null
dd if=/dev/kmsg count=1; hostname other; echo x > /proc/sys/kernel/hostname; dmesg
head -c 1 /proc/interrupts; head -c 1 /proc/timer_list; ls /sys/firmware /sys/kernel; echo > /proc/irq/default_smp_affinity
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range`

// The wall is the same whoever starts the shell.
func TestRuncBuildsTheSameWall(t *testing.T) {
	seen := map[string]string{}
	for name, h := range map[string]*host{"crun": newHost(t), "runc": runcHost(t)} {
		e, _ := h.open(t)
		defer e.Close()
		id := mustCreate(t, e, nil)
		out, code := run(t, e, id, "{ "+wallProbe+"; } 2>&1")
		if code != "0" {
			t.Fatalf("%s: exit code %s: %s", name, code, out)
		}
		if !strings.Contains(out, "Seccomp:\t2") || strings.Contains(out, id) || !strings.Contains(out, "chmod: /dev/null: Operation not permitted") {
			t.Errorf("%s: no filter, a trace of the host, or power over its /dev/null: %s", name, out)
		}
		mounts, code := run(t, e, id, "cat /proc/self/mountinfo")
		if code != "0" {
			t.Fatalf("%s: exit code %s: %s", name, code, mounts)
		}
		seen[name] = out + "\n" + wallMounts(mounts)
	}
	if seen["crun"] != seen["runc"] {
		t.Errorf("with crun:\n%s\nwith runc:\n%s", seen["crun"], seen["runc"])
	}
}

// wallMounts are the mount points, their types, and which of them are read-only.
// Of a device node, which may stand for a masked file, only its being there
// counts: that it is mounted read-only has no bearing on the device.
func wallMounts(mountinfo string) string {
	var list []string
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		flag := left[5][:2]
		if right[0] == "devtmpfs" {
			flag = "device"
		}
		list = append(list, left[4]+" "+right[0]+" "+flag)
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// runc makes cgroups of its own wherever it can, below the one it is started in
// or beside it; nothing but the sandbox's own may be there.
func TestRuncMakesNoCgroups(t *testing.T) {
	e, _ := runcHost(t).open(t)
	defer e.Close()
	id := mustCreate(t, e, nil)
	for _, pattern := range []string{"/sys/fs/cgroup/*/*" + id + "*", "/sys/fs/cgroup/*/*/*" + id + "*", "/sys/fs/cgroup/*/*/*/*" + id + "*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if filepath.Base(path) != id || filepath.Base(filepath.Dir(path)) != e.in.cgroupName() {
				t.Errorf("%s exists", path)
			}
		}
	}
}

// The configuration may name another runtime while sandboxes live.
func TestRuntimeIsChangedUnderSandboxes(t *testing.T) {
	h := runcHost(t)
	e, _ := h.open(t)
	id := mustCreate(t, e, nil)
	e.Close()
	h.opts.OCIRuntime = "crun"
	e, found := h.open(t, &sandbox.Sandbox{
		ID: id, Spec: sandbox.Spec{Image: testImage, Entrypoint: []string{"sleep", "1000000"}},
		Status: sandbox.Status{State: sandbox.Running}, Token: "token-of-" + id,
	})
	defer e.Close()
	if found[id] != sandbox.FoundRunning {
		t.Fatalf("found %v", found[id])
	}
	if out, code := run(t, e, id, "echo on"); out != "on" || code != "0" {
		t.Errorf("%q, exit code %s", out, code)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := lasting(t, h, id); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Doctor's word on a runtime comes from a shell that it started.
func TestDoctorTriesTheRuntime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starting a shell needs root")
	}
	broken := filepath.Join(t.TempDir(), "runc")
	script := "#!/bin/sh\n[ \"$1\" = --version ] && echo runc version 0 && exit 0\necho no >&2; exit 1\n"
	if err := os.WriteFile(broken, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, kind, path string
		want             string // in the detail; the check fails when it starts with "!"
	}{
		{"crun", "", "", "starts a shell"},
		{"runc", "runc", "", "starts a shell"},
		{"missing", "runc", "/nowhere/runc", "!/nowhere/runc was not found"},
		{"broken", "runc", broken, "!does not start a shell"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.path == "" && c.kind != "" {
				if _, err := exec.LookPath(c.kind); err != nil {
					t.Skip(c.kind + " is not installed")
				}
			}
			// Not t.TempDir: a shell's user can't come by there.
			run, err := os.MkdirTemp("/run", "paddock-doctor-test-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(run)
			if err := os.Chmod(run, 0o711); err != nil {
				t.Fatal(err)
			}
			check := checkRuntime(t.Context(), DoctorOptions{OCIRuntime: c.kind, OCIPath: c.path, RunDir: filepath.Join(run, "paddock"), Trial: true})
			want, fails := strings.CutPrefix(c.want, "!")
			if check.OK == fails || !strings.Contains(check.Detail, want) || check.OK == (check.Remedy != "") {
				t.Errorf("got %+v", check)
			}
			if left, _ := os.ReadDir(run); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
