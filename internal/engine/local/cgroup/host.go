package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Mode is how a host arranges its cgroups.
type Mode int

const (
	// V1: one hierarchy for each controller, no v2 hierarchy.
	V1 Mode = iota + 1
	// V2: a single hierarchy with all controllers.
	V2
	// Hybrid: the controllers are in v1 hierarchies, and a v2 hierarchy is
	// beside them.
	Hybrid
)

func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case V2:
		return "v2"
	case Hybrid:
		return "hybrid"
	}
	return "unknown"
}

// ErrNone is returned by Detect on a host where no cgroup filesystem is
// mounted.
var ErrNone = errors.New("no cgroup filesystem is mounted; mount one at /sys/fs/cgroup")

// Controllers that limits need, and the v1 controllers that stand in for what
// is built into the v2 hierarchy.
const (
	cpu     = "cpu"
	memory  = "memory"
	pids    = "pids"
	cpuacct = "cpuacct"
	freezer = "freezer"
	devices = "devices"
)

// limiting are the controllers behind Limits.
var limiting = []string{cpu, memory, pids}

// Host is a host's arrangement of cgroups. It is read-only and safe for
// concurrent use.
type Host struct {
	Mode Mode
	// unified is the mount of the v2 hierarchy, nil if there is none.
	unified *mount
	// v1 are the mounts of the v1 hierarchies by controller; controllers that
	// share a hierarchy share the mount.
	v1 map[string]*mount
	// available are the controllers of the v2 hierarchy.
	available []string
}

// mount is one mounted hierarchy.
type mount struct {
	path     string
	readOnly bool
}

// Detect looks at this host.
func Detect() (*Host, error) { return DetectAt("/") }

// DetectAt looks at the host whose root directory is root: its
// proc/thread-self/mountinfo names the hierarchies, and the mount points in it are
// taken to be below root.
func DetectAt(root string) (*Host, error) {
	// "self" would be the main thread's, which may be in another mount
	// namespace than this one.
	f, err := os.Open(filepath.Join(root, "proc/thread-self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("finding the cgroup hierarchies: %w", err)
	}
	defer f.Close()
	h := &Host{v1: map[string]*mount{}}
	lines := bufio.NewScanner(f)
	// A mountinfo line with many overlay layers is long.
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		h.addMount(root, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	if h.unified != nil {
		b, err := os.ReadFile(filepath.Join(h.unified.path, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("reading the controllers of cgroup v2: %w", err)
		}
		h.available = strings.Fields(string(b))
	}
	return h, h.decide()
}

// addMount takes one line of mountinfo (proc_pid_mountinfo(5)): fields 5 and 6
// are the mount point and its options; after a lone "-" come the type, source
// and superblock options.
func (h *Host) addMount(root, line string) {
	before, after, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 6 || len(right) < 3 {
		return
	}
	super := strings.Split(right[2], ",")
	m := &mount{
		path:     filepath.Join(root, unescape(left[4])),
		readOnly: slices.Contains(strings.Split(left[5], ","), "ro") || slices.Contains(super, "ro"),
	}
	switch right[0] {
	case "cgroup2":
		// The first mount is the host's; later ones are somebody's copies.
		if h.unified == nil {
			h.unified = m
		}
	case "cgroup":
		for _, c := range []string{cpu, memory, pids, cpuacct, freezer, devices} {
			if slices.Contains(super, c) && h.v1[c] == nil {
				h.v1[c] = m
			}
		}
	}
}

// unescape decodes the octal escapes with which mountinfo writes space, tab,
// newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// decide finds the mode. A host with a v2 hierarchy and v1 ones that only serve
// things paddock doesn't use (name=systemd, net_cls) is a v2 host.
func (h *Host) decide() error {
	switch {
	case h.unified == nil && len(h.v1) == 0:
		return ErrNone
	case h.unified == nil:
		h.Mode = V1
	case len(h.v1) == 0:
		h.Mode = V2
	default:
		h.Mode = Hybrid
	}
	return nil
}

// limitMount is where the given limiting controller is; nil if nowhere. On
// hybrid hosts a controller can be on either side.
func (h *Host) limitMount(controller string) *mount {
	if m := h.v1[controller]; m != nil {
		return m
	}
	if slices.Contains(h.available, controller) {
		return h.unified
	}
	return nil
}
