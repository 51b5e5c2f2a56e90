// Package cgroup bounds and counts what sandboxes use, and is how all processes
// of a sandbox are frozen, killed and found. It works on hosts with cgroup v2,
// with v1, and with both ("hybrid"), and hides the difference.
//
// Detect looks at the host. Host.Parent makes one directory for an instance of
// paddock in every hierarchy that is needed, with the device policy on it;
// Parent.Create makes a Group below it for each sandbox. Group.Start runs a
// command so that it and all that it forks are in the group from the first
// instruction.
//
// Which hierarchy does what:
//
//	             v2        hybrid                v1
//	limits       unified   cpu, memory, pids     cpu, memory, pids
//	CPU time     unified   unified               cpuacct
//	freeze       unified   unified               freezer
//	kill, empty  unified   unified               freezer, by process
//	devices      eBPF      devices (or eBPF)     devices
//
// The device policy is the same for all sandboxes. So with v1 all of them are
// in the parent's own devices cgroup, which saves making and removing one each.
//
// A Group holds no descriptor and needs no Close: files are opened below the
// parent's directories. Groups outlive the process; List and Open find them
// again.
package cgroup
