// Package local is the Linux engine: it turns images into sandboxes on this
// machine.
//
// The way of a sandbox: a shell is made ahead of time by the pool (or inline,
// by the same code, when the pool is empty): run directory, cgroup, log files,
// upper directory, OCI container with execd as PID 1, network. A create then
// claims it: the image becomes its root (package rootfs), limits are written,
// volumes mounted, and execd is told environment and entrypoint. The shell's id
// is the sandbox's id from the start, so that everything on the host carries
// it.
//
// What is where, for a sandbox with id I and an instance N (one data
// directory):
//
//	<run dir>/N/s/I/          bundle, execd.sock, state.json; tmpfs
//	<run dir>/N/runtime/I/    the OCI runtime's own state
//	<data dir>/sandboxes/I/   upper, work, logs; disk.img instead of the
//	                          first two when the sandbox's disk is limited
//	cgroup paddock-N/I, paddock-N-gpu/I with GPUs; interface pdS-K with alias "paddock/N/I"
//
// where S is the instance's slot (its share of the address and user-id ranges)
// and K the sandbox's index in it. state.json is written before anything else
// of a sandbox exists. All of this is found again from the host alone; Recover
// adopts what is recorded and removes the rest.
//
// Files: engine.go (the Engine interface), check.go (what it can honour),
// instance.go (directories, slot) and indexes.go, shell.go and pool.go (making
// shells), claim.go (image, limits, entrypoint), gvisor.go (the same behind
// gVisor), disk.go (limited disks), gpu.go, volumes.go, stop.go and trash.go,
// recover.go and state.go, watch.go and exit.go (ends), execd.go and dial.go
// (connections into a sandbox), policy.go with policy_*.go (network policies
// and what they refuse), trust.go and trustlate.go (the authority that may look
// into connections), isolated.go with isolated_*.go (isolated sessions), and
// doctor.go.
package local
