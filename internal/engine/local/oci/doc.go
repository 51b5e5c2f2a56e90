// Package oci starts shells with an OCI runtime (crun, or runc): it writes the
// runtime specification of a shell, and runs the runtime on threads that have a
// mount namespace and, on cgroup v1, a cgroup of their own.
//
// A shell is a container on a read-only root that holds nothing but execd and
// empty directories. All that makes it a wall is set up here: the namespaces,
// the user-id range, the capabilities, no-new-privileges, seccomp, masked and
// read-only kernel paths, and a private /dev. docs/security.md lists what is
// kept and why.
package oci
