package network

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreq is struct ifreq of linux/if.h as SIOCETHTOOL reads it: a name and a
// pointer, in 40 bytes.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [40 - unix.IFNAMSIZ - unsafe.Sizeof(uintptr(0))]byte
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// awaitCarrier makes sure that a veth interface passes packets; both ends must
// be up. The end that came up first gets its carrier only with the second, and
// the kernel then wakes its queue from a work item. Packets sent before that
// are lost, which costs a TCP connection a second. Asking for the state of the
// link makes the kernel do that work at once (linkwatch_sync_dev in
// ethtool_op_get_link, net/ethtool/ioctl.c).
func (c *conn) awaitCarrier(name string) error {
	value := ethtoolValue{cmd: unix.ETHTOOL_GLINK}
	request := ifreq{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return fmt.Errorf("looking at the carrier of %s: %w", name, errno)
	}
	if value.data == 0 {
		return fmt.Errorf("%s has no carrier: its other end was taken down", name)
	}
	return nil
}
