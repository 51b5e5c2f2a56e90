package disk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reopen returns a descriptor of another detached mount of the filesystem in
// the file at path, which Mount has mounted on that loop device and which is
// still in use. The kernel has one filesystem object for both.
func Reopen(path string, loop int) (fd int, err error) {
	dev, err := openDevice(loop)
	if err != nil {
		return -1, fmt.Errorf("opening /dev/loop%d: %w", loop, err)
	}
	defer unix.Close(dev)
	// While it is open the device stays bound to its file.
	same, err := bound(dev, path)
	if err != nil {
		return -1, err
	}
	if !same {
		return -1, fmt.Errorf("/dev/loop%d does not hold %s any more", loop, path)
	}
	fd, err = mount(dev)
	if err != nil {
		return -1, fmt.Errorf("reaching the filesystem on /dev/loop%d: %w", loop, err)
	}
	return fd, nil
}
