package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// instructionSize is that of struct sock_filter, in bytes.
const instructionSize = 8

// Install puts every thread of the calling process, and all that they start
// from now on, under a program that Compile made. It can't be undone. It sets
// no-new-privileges, which the kernel demands of callers without privilege.
//
// It is for a process that was started by a runtime without support for ready
// programs, before it runs anything of a sandbox's user. On an error no thread
// is under the program.
func Install(program []byte) error {
	n := len(program) / instructionSize
	if n == 0 || n > maxInstructions || len(program)%instructionSize != 0 {
		return fmt.Errorf("seccomp: %d bytes are not a filter program: it has 1 to %d instructions of %d bytes", len(program), maxInstructions, instructionSize)
	}
	// seccomp(2) wants no-new-privileges on the calling thread and copies it
	// to the others together with the filter, so one thread has to do both.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("seccomp: setting no-new-privileges: %w", err)
	}
	code := make([]unix.SockFilter, n) // a copy, because program may be unaligned
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), len(program)), program)
	prog := unix.SockFprog{Len: uint16(n), Filter: &code[0]}
	failed, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: installing the filter: %w", errno)
	case failed != 0:
		return errors.New("seccomp: a thread is under a filter of its own and can't take this one")
	}
	return nil
}
