// Package confine puts execd, and with it all that a sandbox runs, under a ready
// system call filter. It is for OCI runtimes that don't take a compiled filter:
// the engine hands the program over as a descriptor, and execd installs it
// before it listens for anything. The program comes from the engine's package
// seccomp.
package confine
