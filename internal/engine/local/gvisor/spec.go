package gvisor

import (
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
)

// Mount is a directory or file beside the root that is mounted in it.
type Mount struct {
	// Source is its path in the mount namespace, Target a clean absolute path in
	// the sandbox.
	Source, Target string
	ReadOnly       bool
}

// Sandbox is what differs between sandboxes.
type Sandbox struct {
	// ID is the sandbox's, and its host name's source.
	ID string
	// Root is the path of the root filesystem in the mount namespace.
	Root string
	// Tmp is the path of the root's /tmp beside the root, or empty. Without a
	// mount there the sentry would put a filesystem in memory on it.
	Tmp string
	// Mounts are made in order.
	Mounts []Mount
	// Base is the host id of the sandbox's root, the first of oci.IDRange.
	Base uint32
	// MaxFiles is the limit of open files per process.
	MaxFiles uint64
	// SharedMemoryBytes is how much fits into /dev/shm; 0 means 64 MiB.
	SharedMemoryBytes int64
}

// Descriptors of execd in the sandbox.
const (
	logFD    = 3 // and the next
	engineFD = 5 // and the next
)

// spec builds the runtime specification. Namespaces are named that runsc makes
// for its own processes; those of the sandbox's programs exist in the sentry
// only. The network namespace is that of the thread which starts runsc.
func (s *Sandbox) spec() *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.Base, Size: oci.IDRange}}
	capabilities := oci.Capabilities()
	return &specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: s.Root},
		Hostname: oci.Hostname(s.ID),
		Process: &specs.Process{
			User: specs.User{UID: 0, GID: 0},
			Args: []string{"/execd", "--listen-fd", "-1", "--log-fd", strconv.Itoa(logFD), "--engine-fd", strconv.Itoa(engineFD)},
			Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:  "/",
			// The sentry honours all of these in place of the host's kernel.
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: s.MaxFiles, Soft: min(s.MaxFiles, 1<<20)},
				{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
			},
		},
		Mounts:      s.mounts(),
		Annotations: s.hints(),
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.UserNamespace},
				{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"},
			},
		},
	}
}

// mounts are the sentry's own filesystems, none of which is the host's, and the
// volumes.
func (s *Sandbox) mounts() []specs.Mount {
	shm := s.SharedMemoryBytes
	if shm <= 0 {
		shm = 64 << 20
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		// For the limit of processes: hostapi.PIDsFile.
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if s.ownTmp() {
		all = append(all, specs.Mount{Destination: tmp, Type: "bind", Source: s.Tmp, Options: []string{"bind", "nosuid", "nodev", "rw"}})
	}
	for _, m := range s.Mounts {
		options := []string{"bind", "nosuid", "nodev", "rw"}
		if m.ReadOnly {
			options[3] = "ro"
		}
		all = append(all, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: options})
	}
	return all
}

const tmp = "/tmp"

// ownTmp reports whether /tmp is the root's.
func (s *Sandbox) ownTmp() bool {
	return s.Tmp != "" && !slices.ContainsFunc(s.Mounts, func(m Mount) bool { return m.Target == tmp })
}

// hints tell the sentry of which mounts it may keep nothing in memory, because
// others change them too: the volumes. Of the rest it is told the contrary (see
// Runtime.args).
func (s *Sandbox) hints() map[string]string {
	hints := make(map[string]string)
	for i, m := range s.Mounts {
		prefix := "dev.gvisor.spec.mount.v" + strconv.Itoa(i) + "."
		hints[prefix+"source"], hints[prefix+"type"], hints[prefix+"share"] = m.Source, "bind", "shared"
	}
	return hints
}
