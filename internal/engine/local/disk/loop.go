package disk

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attachTries bounds the races for a free loop device. A try is lost when
// another process took the device that the kernel called free.
const attachTries = 256

// attach binds the open file to a free loop device and returns a descriptor of
// the device and its number. The device is free again when the descriptor and
// every other user of it is gone. label is what losetup shows.
func attach(image int, label string) (dev, number int, err error) {
	ctl, err := openControl()
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(ctl)
	// One call does all, so that there is no moment in which a killed server
	// would leave the device bound. Direct I/O spares a second copy of every
	// page in memory; where the file's filesystem has none, the kernel goes
	// on without.
	config := unix.LoopConfig{Fd: uint32(image)}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], label)
	for range attachTries {
		number, err = unix.IoctlRetInt(ctl, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, -1, fmt.Errorf("asking for a loop device: %w", err)
		}
		dev, err = openDevice(number)
		if err == nil {
			if err = unix.IoctlLoopConfigure(dev, &config); err == nil {
				return dev, number, nil
			}
			unix.Close(dev)
		}
		// Busy: somebody took it. ENXIO: it is just being freed.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return -1, -1, fmt.Errorf("attaching to /dev/loop%d: %w", number, err)
}

func openControl() (int, error) {
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: /dev/loop-control: %w", ErrNoLoop, err)
	}
	return ctl, nil
}

// openDevice opens a loop device. In a container with a /dev of its own the
// kernel's new devices have no node there: then a node is made on a filesystem
// that nobody else sees.
func openDevice(number int) (int, error) {
	dev, err := unix.Open("/dev/loop"+strconv.Itoa(number), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.ENOENT) {
		return dev, err
	}
	return openOwnNode(number)
}

func openOwnNode(number int) (int, error) {
	major, minor, err := deviceNumbers(number)
	if err != nil {
		return -1, err
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making a tmpfs: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mounting a tmpfs: %w", err)
	}
	defer unix.Close(dir)
	if err := unix.Mknodat(dir, "loop", unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return -1, fmt.Errorf("making a node for loop%d: %w", number, err)
	}
	return unix.Openat(dir, "loop", unix.O_RDWR|unix.O_CLOEXEC, 0)
}

// deviceNumbers asks sysfs: the minor number is the device's only without the
// module's parameter max_part.
func deviceNumbers(number int) (major, minor uint32, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", number))
	if err != nil {
		return 0, 0, err
	}
	left, right, _ := strings.Cut(strings.TrimSpace(string(b)), ":")
	ma, aerr := strconv.ParseUint(left, 10, 32)
	mi, ierr := strconv.ParseUint(right, 10, 32)
	if err := errors.Join(aerr, ierr); err != nil {
		return 0, 0, fmt.Errorf("the numbers of loop%d: %w", number, err)
	}
	return uint32(ma), uint32(mi), nil
}
