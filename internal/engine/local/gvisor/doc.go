// Package gvisor starts sandboxes behind a second wall: gVisor, a kernel in user
// space. Programs of such a sandbox make no system call of the host's; two
// processes of runsc stand between. The sentry is that kernel, and the gofer
// opens files for it.
//
// Everything outside stays what it is for containers: the caller makes the root
// filesystem (rootfs.Stage), the network namespace with its interface, and the
// cgroup. runsc is told to leave cgroups alone, and all that it starts is in the
// sandbox's. The sentry takes address, routes and neighbours over from the
// interface into a network stack of its own and exchanges frames with the host
// through a packet socket, so every rule on the host's end of the pair holds.
//
// runsc itself is a program of its own, built by `make runsc`.
package gvisor
