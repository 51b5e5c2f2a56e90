package local

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/execdbin"
	"github.com/paddock-sandbox/paddock/internal/engine/local/network"
	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
)

// Oldest kernel that can map the ids of overlay layers (Linux 5.19).
const (
	minKernelMajor = 5
	minKernelMinor = 19
)

// Check is one requirement of this engine, as found on this machine.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Remedy is what to do about it, Cost what it means to lack it; both are
	// empty when OK.
	Remedy string `json:"remedy,omitempty"`
	Cost   string `json:"cost,omitempty"`
	// Required: no sandbox can run without it.
	Required bool `json:"required"`
}

// DoctorOptions name what the server would use.
type DoctorOptions struct {
	DataDir, RunDir     string
	OCIRuntime, OCIPath string
	Subnet              netip.Prefix
	CDIDirs             []string
	GPUKind             string
	// RunscPath is as in Options. GVisorNeeded: sandboxes are behind gVisor unless
	// they ask for something else.
	RunscPath    string
	GVisorNeeded bool
	// Trial starts a shell, which takes some ten milliseconds.
	Trial bool
}

// Doctor looks at every requirement. It changes nothing that lasts.
func Doctor(ctx context.Context, o DoctorOptions) []Check {
	checks := []Check{
		checkRoot(), checkKernel(), checkOverlay(), checkUserNamespaces(), checkSeccomp(),
		checkRuntime(ctx, o), checkExecd(), checkDataDir(o.DataDir), checkRunDir(o.RunDir),
	}
	checks = append(checks, checkCgroups()...)
	checks = append(checks, checkNetwork(ctx, o.Subnet)...)
	return append(checks, checkGVisor(ctx, o), checkDisks(), checkGPU(o), checkFiles(), checkPIDs())
}

// need builds a required check.
func need(name string, err error, detail, remedy string) Check {
	if err == nil {
		return Check{Name: name, OK: true, Detail: detail, Required: true}
	}
	return Check{Name: name, Detail: err.Error(), Remedy: remedy, Cost: "no sandbox can run", Required: true}
}

func checkRoot() Check {
	var err error
	if os.Geteuid() != 0 {
		err = fmt.Errorf("running as user %d", os.Geteuid())
	}
	return need("root", err, "running as root",
		"run paddock as root (sudo paddock …): it makes user namespaces, mounts, cgroups and network interfaces for sandboxes, whose own root is an unprivileged user")
}

func checkKernel() Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return need("kernel", err, "", "")
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := kernelVersion(release)
	var err error
	if major < minKernelMajor || (major == minKernelMajor && minor < minKernelMinor) {
		err = fmt.Errorf("Linux %s is too old", release)
	}
	return need("kernel", err, "Linux "+release,
		fmt.Sprintf("use Linux %d.%d or newer (Debian 12, Ubuntu 24.04, or a hardware-enablement kernel)", minKernelMajor, minKernelMinor))
}

// kernelVersion reads "6.18.4-foo" as 6 and 18; what can't be read is 0.
func kernelVersion(release string) (major, minor int) {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) > 1 {
		major, _ = strconv.Atoi(f[0])
		minor, _ = strconv.Atoi(f[1])
	}
	return major, minor
}

func checkOverlay() Check {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	} else {
		err = fmt.Errorf("overlayfs can't be opened: %w", err)
	}
	return need("overlayfs", err, "available", "load it with `modprobe overlay`")
}

func checkUserNamespaces() Check {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	text := strings.TrimSpace(string(b))
	if err == nil && text == "0" {
		err = errors.New("user.max_user_namespaces is 0")
	}
	return need("user namespaces", err, "at most "+text, "allow them with `sysctl -w user.max_user_namespaces=65536`")
}

func checkSeccomp() Check {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return need("seccomp", err, "available", "use a kernel with CONFIG_SECCOMP_FILTER")
}

func checkExecd() Check {
	b, err := execdbin.Binary()
	return need("execd", err, fmt.Sprintf("built in, %d KiB", len(b)>>10), "build paddock with `make build`")
}

// checkDataDir looks for a filesystem whose ids can be mapped.
func checkDataDir(dir string) Check {
	remedy := "put the data directory on ext4, XFS or btrfs"
	dir = existing(dir)
	err := idmappable(dir)
	return need("data directory", err, dir+" can be mapped to sandboxes' user ids", remedy)
}

// idmappable tries to map a detached clone of the mount at dir through a user
// namespace.
func idmappable(dir string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	ns, err := childUserNamespace(1 << 28)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		return fmt.Errorf("%s: its filesystem can't be mounted with mapped ids: %w", dir, err)
	}
	return nil
}

// childUserNamespace returns a user namespace with a full mapping whose root is
// the host id base, made by a process that only waits to be ended.
func childUserNamespace(base uint32) (*os.File, error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: oci.IDRange}}
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	// cat ends by itself when this pipe is closed.
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	return os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/user")
}

func checkRunDir(dir string) Check {
	if dir == "" {
		dir = DefaultRunDir()
	}
	c := Check{Name: "run directory", Detail: dir, OK: true}
	if onTmpfs(existing(dir)) {
		c.Detail += " on tmpfs"
		return c
	}
	c.OK = false
	c.Detail += " is not on tmpfs"
	c.Remedy = "set storage.run_dir to a directory on tmpfs, such as /run/paddock"
	c.Cost = "starting sandboxes writes to disk and is slower; what a reboot leaves behind has to be cleaned up"
	return c
}

func checkCgroups() []Check {
	host, err := cgroup.Detect()
	if err != nil {
		return []Check{need("cgroups", err, "", "mount cgroup v2 at /sys/fs/cgroup")}
	}
	problems := host.Problems()
	if len(problems) == 0 {
		return []Check{{Name: "cgroups", OK: true, Detail: host.Mode.String(), Required: true}}
	}
	var out []Check
	for _, p := range problems {
		out = append(out, Check{Name: "cgroups", Detail: p.What, Remedy: p.Remedy, Cost: p.Cost})
	}
	return out
}

func checkNetwork(ctx context.Context, subnet netip.Prefix) []Check {
	problems := network.Problems(ctx, network.Options{Name: "0", Subnet: slotSubnet(subnet, 0)})
	if len(problems) == 0 {
		return []Check{{Name: "network", OK: true, Detail: "veth, nf_tables and forwarding are available", Required: true}}
	}
	var out []Check
	for _, p := range problems {
		out = append(out, Check{Name: "network", Detail: p.What, Remedy: p.Remedy, Cost: p.Cost})
	}
	return out
}

func checkFiles() Check {
	n, err := maxOpenFiles()
	c := Check{Name: "open files", OK: err == nil && n >= 65536, Detail: fmt.Sprintf("at most %d", n)}
	if !c.OK {
		c.Remedy = "raise the limit: `ulimit -n 1048576`, or LimitNOFILE in the systemd unit"
		c.Cost = fmt.Sprintf("room for about %d sandboxes and their connections; programs inside have the same limit", n/6)
	}
	return c
}

func checkPIDs() Check {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	c := Check{Name: "process ids", OK: err == nil && n >= 1<<17, Detail: fmt.Sprintf("at most %d", n)}
	if !c.OK {
		c.Remedy = "raise it: `sysctl -w kernel.pid_max=4194304`"
		c.Cost = fmt.Sprintf("all sandboxes together have at most %d processes and threads, about %d sandboxes", n, n/12)
	}
	return c
}
