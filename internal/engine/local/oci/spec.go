package oci

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// IDRange is how many user and group ids a sandbox has.
const IDRange = 65536

// Shell is what differs between shells.
type Shell struct {
	// ID names the container and is its host name's source.
	ID string
	// Root is the directory that holds execd and the empty directories.
	Root string
	// Base is the first host id of the shell's range.
	Base uint32
	// MaxFiles is the limit of open files per process; it may not be above
	// the server's own hard limit, because raising it is a host privilege.
	MaxFiles uint64
	// Args are execd's arguments.
	Args []string
	// Join are namespaces that exist already, by path, which are entered and not
	// made. With a user namespace among them the others must belong to it.
	Join map[specs.LinuxNamespaceType]string
}

// Capabilities that root in a sandbox keeps. They hold only over the sandbox's
// own user namespace. Not among them, against Docker's default: NET_RAW (forged
// packets), MKNOD, AUDIT_WRITE.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", // package managers, archives
	"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETFCAP", // su, sudo, services that drop root
	"CAP_KILL", "CAP_SYS_CHROOT",
	"CAP_NET_BIND_SERVICE",
}

// Capabilities returns those that root in a sandbox keeps.
func Capabilities() []string { return slices.Clone(capabilities) }

// maskedPaths are hidden: they tell about the host or act on it.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
	"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
	"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	"/sys/devices/system/cpu/cpu0/thermal_throttle", "/sys/kernel",
}

var readonlyPaths = []string{
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
}

// spec builds the runtime specification, but for the system call filter. There
// is no cgroup in it: see Runtime.args.
func (s *Shell) spec() *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.Base, Size: IDRange}}
	spec := &specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: s.Root, Readonly: true},
		Hostname: Hostname(s.ID),
		Process: &specs.Process{
			User:            specs.User{UID: 0, GID: 0},
			Args:            append([]string{"/execd"}, s.Args...),
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  capabilities,
				Effective: capabilities,
				Permitted: capabilities,
			},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: s.MaxFiles, Soft: min(s.MaxFiles, 1<<20)},
				{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
			},
		},
		Mounts: shellMounts(),
		Linux: &specs.Linux{
			UIDMappings:       ids,
			GIDMappings:       ids,
			RootfsPropagation: "private",
			MaskedPaths:       maskedPaths,
			ReadonlyPaths:     readonlyPaths,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UserNamespace},
				// The path of the cgroup would tell about the host.
				{Type: specs.CgroupNamespace},
			},
			// Ports below 1024 and ping need no privilege in a network
			// namespace of one's own.
			Sysctl: map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "0",
				"net.ipv4.ping_group_range":           "0 65535",
			},
		},
	}
	s.join(spec.Linux)
	return spec
}

// join puts in the namespaces that exist already. Their owner has set them up.
// The mappings of a user namespace stay: runc wants to know them.
func (s *Shell) join(l *specs.Linux) {
	for i := range l.Namespaces {
		l.Namespaces[i].Path = s.Join[l.Namespaces[i].Type]
	}
	if s.Join[specs.NetworkNamespace] != "" {
		l.Sysctl = nil
	}
}

// shellMounts are the kernel filesystems of a shell; package rootfs moves them
// into the image. crun and runc make the device nodes of a private /dev.
func shellMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// Hostname is the host name of a sandbox: the start of its id, as Docker has
// it.
func Hostname(id string) string {
	if len(id) > 12 {
		return id[:8] + id[9:13]
	}
	return id
}
