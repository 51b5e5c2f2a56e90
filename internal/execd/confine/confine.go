package confine

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From include/uapi/linux/filter.h and bpf_common.h: the size of struct
// sock_filter in bytes, and the most of them that the kernel takes in one program
// (BPF_MAXINSNS).
const (
	instructionSize = 8
	maxInstructions = 4096
)

// InstallFrom reads a program from the start of the file and installs it. The
// file is shared with other processes, so its offset is neither used nor moved.
func InstallFrom(f io.ReaderAt) error {
	const most = maxInstructions * instructionSize
	program, err := io.ReadAll(io.NewSectionReader(f, 0, most+1))
	if err != nil {
		return fmt.Errorf("reading the system call filter: %w", err)
	}
	return Install(program)
}

// Install puts every thread of the calling process, and all that they start
// from now on, under a compiled program. It can't be undone. It sets
// no-new-privileges, which the kernel demands of callers without privilege. On
// an error no thread is under the program.
func Install(program []byte) error {
	n := len(program) / instructionSize
	if n == 0 || n > maxInstructions || len(program)%instructionSize != 0 {
		return fmt.Errorf("system call filter: %d bytes are not a filter program: it has 1 to %d instructions of %d bytes", len(program), maxInstructions, instructionSize)
	}
	// seccomp(2) wants no-new-privileges on the calling thread and copies it
	// to the others together with the filter, so one thread has to do both.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("system call filter: setting no-new-privileges: %w", err)
	}
	code := make([]unix.SockFilter, n) // a copy, because program may be unaligned
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), len(program)), program)
	prog := unix.SockFprog{Len: uint16(n), Filter: &code[0]}
	failed, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	switch {
	case errno != 0:
		return fmt.Errorf("system call filter: installing the filter: %w", errno)
	case failed != 0:
		return errors.New("system call filter: a thread is under a filter of its own and can't take this one")
	}
	return nil
}
