// Package harness runs real paddock servers for the end-to-end tests and the
// benchmarks: on free ports, with directories of their own, killed and started
// again as the test wants. At the end of a server's life it proves that nothing
// of it is left on the host: no process, mount, cgroup, interface, packet
// filter table or directory.
//
// All servers of one test process share one run directory below /run, because
// paddock hands out the parts of a machine that instances share (addresses,
// user ids, interface names) through it.
package harness
