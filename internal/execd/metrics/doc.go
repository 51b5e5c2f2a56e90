// Package metrics tells what the sandbox uses, against its own limits
// (OpenSandbox execd API), and not what the machine does that it shares: from its
// own cgroup where that is visible, else from the processes that it can see.
package metrics
