package cgroup

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Problem is something about the host that keeps paddock from doing all that
// it should.
type Problem struct {
	// What is wrong, as a sentence.
	What string
	// Remedy says what the administrator can do.
	Remedy string
	// Cost is what happens while it is left so.
	Cost string
}

// costs of a missing controller.
var costs = map[string]string{
	cpu:    "A sandbox can't be given a limit of CPU time, and can starve the others.",
	memory: "A sandbox can't be given a limit of memory, and can exhaust the host's.",
	pids:   "A sandbox can't be given a limit of processes, and can exhaust the host's.",
}

// Problems lists what is wrong with the host's cgroups, the worst first. It
// changes nothing.
func (h *Host) Problems() []Problem {
	var list []Problem
	for _, m := range h.mounts() {
		if m.readOnly || unix.Access(m.path, unix.W_OK) != nil {
			list = append(list, Problem{
				What:   "The cgroup hierarchy at " + m.path + " is not writable.",
				Remedy: "Run paddock as root, and in a container as a privileged one whose /sys/fs/cgroup is mounted read-write.",
				Cost:   "No sandbox can be made.",
			})
		}
	}
	for _, c := range limiting {
		if h.limitMount(c) != nil {
			continue
		}
		remedy := "Enable the controller in the kernel configuration."
		switch {
		case c == memory:
			remedy = "Add cgroup_enable=memory to the kernel's command line, and remove cgroup_disable=memory from it."
		case h.Mode == V2:
			remedy = "Remove cgroup_disable=" + c + " from the kernel's command line; in a container or a systemd unit, delegate the controller (Delegate=yes)."
		case h.Mode != V2:
			remedy = "Mount it: mount -t cgroup -o " + c + " cgroup /sys/fs/cgroup/" + c + "; or boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2."
		}
		list = append(list, Problem{What: "The cgroup controller " + c + " is missing.", Remedy: remedy, Cost: costs[c]})
	}
	return append(list, h.v1Problems()...)
}

func (h *Host) v1Problems() []Problem {
	var list []Problem
	if h.Mode == V1 {
		if h.v1[freezer] == nil {
			list = append(list, Problem{
				What:   "There is neither a cgroup v2 hierarchy nor the v1 freezer.",
				Remedy: "Mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
				Cost:   "Sandboxes can't be paused.",
			})
		}
		list = append(list, Problem{
			What:   "This host has cgroup v1 only.",
			Remedy: "Boot with systemd.unified_cgroup_hierarchy=1, or at least mount a v2 hierarchy beside it: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
			Cost:   "Pausing and deleting sandboxes is slower, because v1 reports neither a finished freeze nor an empty group.",
		})
	}
	if h.v1[devices] == nil && h.unified == nil {
		list = append(list, Problem{
			What:   "The cgroup controller devices is missing.",
			Remedy: "Mount it: mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices",
			Cost:   "No sandbox can be made: access to devices can't be denied.",
		})
	}
	if m := h.v1[memory]; m != nil && unix.Access(filepath.Join(m.path, memswLimit), unix.F_OK) != nil {
		list = append(list, Problem{
			What:   "The kernel doesn't account for swap.",
			Remedy: "Add swapaccount=1 to the kernel's command line, or turn swap off.",
			Cost:   "A sandbox above its memory limit may use swap.",
		})
	}
	return list
}

// mounts are the hierarchies that Parent uses, each once.
func (h *Host) mounts() []*mount {
	var list []*mount
	seen := map[*mount]bool{nil: true}
	add := func(m *mount) {
		if !seen[m] {
			seen[m] = true
			list = append(list, m)
		}
	}
	add(h.unified)
	for _, c := range append([]string{devices}, limiting...) {
		add(h.v1[c])
	}
	if h.unified == nil {
		add(h.v1[cpuacct])
		add(h.v1[freezer])
	}
	return list
}
