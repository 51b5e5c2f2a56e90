// Package seccomp holds the system call filter of every sandbox: which calls
// sandboxed code may make, and the BPF program that enforces it.
//
// The filter is an allow-list. profile.go is the readable table and the place
// to change; every call that the kernels in use know is in it once, either
// allowed, allowed for some arguments, or denied for a stated reason, and a
// test fails when one is missing. A denied call answers EPERM. A call that the
// table doesn't know is newer than paddock and answers ENOSYS, so that libraries
// fall back to what they did before the call existed.
//
// Compile turns the table into a raw program for the machine's own architecture.
// crun takes it through CrunAnnotation; where the runtime doesn't, as with runc,
// execd installs the same program itself. Either way nothing compiles a profile
// when a sandbox starts, which takes libseccomp 13 to 18 ms.
//
// The filter is one wall of several. It assumes that the sandbox has its own
// user namespace, no-new-privileges, and no CAP_SYS_PTRACE: ptrace is allowed
// because debuggers are wanted, and without that capability the kernel keeps it
// away from execd, which is not dumpable.
package seccomp
