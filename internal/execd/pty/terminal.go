package pty

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// size is that of a terminal, in characters.
type size struct{ cols, rows uint16 }

// defaultSize is that of the OpenSandbox execd API.
var defaultSize = size{80, 24}

// terminal is the master side of a pseudo-terminal.
type terminal struct {
	// f is for writing what is typed, and for ioctls.
	f   *os.File
	raw syscall.RawConn
}

// openTerminal returns a new terminal of the given size that belongs to uid,
// and its slave side, which the caller closes after the start of the program.
func openTerminal(s size, uid uint32) (*terminal, *os.File, error) {
	master, err := openMaster()
	if err != nil {
		return nil, nil, err
	}
	slave, err := openSlave(master)
	if err != nil {
		unix.Close(master)
		return nil, nil, fmt.Errorf("opening the terminal's other side: %w", err)
	}
	// The program may open its terminal by name. Not possible without
	// privileges, when both are the same user anyway.
	_ = unix.Fchown(slave, int(uid), -1)
	f := os.NewFile(uintptr(master), "terminal")
	t := &terminal{f: f}
	if t.raw, err = f.SyscallConn(); err == nil {
		err = t.resize(s)
	}
	if err != nil {
		f.Close()
		unix.Close(slave)
		return nil, nil, fmt.Errorf("setting the terminal's size: %w", err)
	}
	understandUTF8(slave)
	return t, os.NewFile(uintptr(slave), "tty"), nil
}

// openMaster opens a new pseudo-terminal. The names belong to the sandbox, so
// what is behind them is checked: only a master answers TIOCSPTLCK. O_NONBLOCK
// keeps a FIFO from holding the open up, and is what Go's poller needs.
func openMaster() (int, error) {
	var first error
	for _, name := range []string{"/dev/ptmx", "/dev/pts/ptmx"} {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
				return fd, nil
			}
			unix.Close(fd)
		}
		if first == nil {
			first = fmt.Errorf("this sandbox gives no terminal (%s: %w); connect with ?pty=0 for pipes", name, err)
		}
	}
	return -1, first
}

// openSlave opens the other side of a master, without its name where the kernel
// can do that (Linux 4.13).
func openSlave(master int) (int, error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
	if errno == 0 {
		return int(fd), nil
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	// O_NONBLOCK for the open alone: programs expect a blocking terminal.
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(int(n)), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if _, err = unix.IoctlGetTermios(slave, unix.TCGETS); err == nil {
		err = unix.SetNonblock(slave, false)
	}
	if err != nil {
		unix.Close(slave)
		return -1, err
	}
	return slave, nil
}

// understandUTF8 makes the line editor of the kernel erase characters instead
// of bytes.
func understandUTF8(fd int) {
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		t.Iflag |= unix.IUTF8
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
}

// tap returns a descriptor to read the terminal's output from.
func (t *terminal) tap() (int, error) {
	fd := -1
	err := t.control(func(master int) (err error) {
		fd, err = unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func (t *terminal) resize(s size) error {
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.rows, Col: s.cols})
	})
}

// signal sends sig to the group in the foreground. It reports false when that
// is not possible.
func (t *terminal) signal(sig syscall.Signal) bool {
	err := t.control(func(fd int) error {
		// The kernel sends these two itself, so no group can be missed.
		if sig == syscall.SIGINT || sig == syscall.SIGQUIT {
			if err := unix.IoctlSetInt(fd, unix.TIOCSIG, int(sig)); err == nil {
				return nil
			}
		}
		group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		if err != nil {
			return err
		}
		if group <= 1 {
			return unix.ESRCH
		}
		return unix.Kill(-group, sig)
	})
	return err == nil
}

// control runs f with the descriptor, which stays open meanwhile.
func (t *terminal) control(f func(fd int) error) error {
	var err error
	if closed := t.raw.Control(func(fd uintptr) { err = f(int(fd)) }); closed != nil {
		return closed
	}
	return err
}
