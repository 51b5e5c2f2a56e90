package proxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a client's connection whose first bytes have been looked at; Read
// returns them again. It is a net.Conn with the rules of one.
type Conn struct {
	*net.TCPConn
	peeked []byte

	// Sandbox is whose connection it is.
	Sandbox string
	// Source is the sandbox's end, Original where it connected to.
	Source, Original netip.AddrPort
	// Name is the name that was checked against the policy: that of the TLS
	// client hello, or the host of the first request. It is empty for HTTP2, of
	// which nothing was checked yet.
	Name string
	// Protocol is TLS, HTTP1 or HTTP2.
	Protocol Protocol
	// Verdict is what the policy said about Name.
	Verdict Verdict

	session *session
}

// Deny reports that an Interceptor refused a request on this connection. It may
// be called from many goroutines.
func (c *Conn) Deny(claim Claim, v Verdict) { c.session.deny(claim, v) }

// maxNames is how many names the requests of one HTTP/2 connection may be for.
const maxNames = 64

// Judge decides about one request of a connection over HTTP2, which may be for
// any name that is allowed at the address that the connection goes to. The name
// is that of the authority, empty where that is an address.
func (c *Conn) Judge(host, method, target string) (name string, v Verdict) {
	r := &request{method: method, target: target}
	var err error
	if r.name, r.addr, r.port, err = authority(host); err != nil {
		return "", Verdict{Rule: -1, Reason: err.Error()}
	}
	return r.name, c.session.judgeRequest(Claim{To: c.Original, Name: r.name, Protocol: HTTP2}, r)
}

// Read returns the bytes that were looked at, then those that follow.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.peeked) > 0 {
		n := copy(b, c.peeked)
		c.peeked = c.peeked[n:]
		return n, nil
	}
	return c.TCPConn.Read(b)
}

// WriteTo hides that of the TCP connection, which would skip what was looked
// at; once that is gone, it is used, so that the kernel can splice.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.peeked)
	c.peeked = c.peeked[n:]
	if err != nil {
		return int64(n), err
	}
	rest, err := c.TCPConn.WriteTo(w)
	return int64(n) + rest, err
}

// originalDestination asks connection tracking where a connection went before
// the packet filter redirected it.
func originalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h,
	// linux/netfilter_ipv6/ip6_tables.h).
	const original = 80
	if unmapped(c.LocalAddr()).Addr().Is4() {
		var a unix.RawSockaddrInet4
		if err := socketOption(c, unix.SOL_IP, original, unsafe.Pointer(&a), unsafe.Sizeof(a)); err != nil {
			return netip.AddrPort{}, fmt.Errorf("looking for the original destination: %w", err)
		}
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), networkOrder(a.Port)), nil
	}
	var a unix.RawSockaddrInet6
	if err := socketOption(c, unix.SOL_IPV6, original, unsafe.Pointer(&a), unsafe.Sizeof(a)); err != nil {
		return netip.AddrPort{}, fmt.Errorf("looking for the original destination: %w", err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), networkOrder(a.Port)), nil
}

func socketOption(c *net.TCPConn, level, name uintptr, value unsafe.Pointer, size uintptr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	length := uint32(size)
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, level, name, uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// networkOrder reads a port that is in network order in memory.
func networkOrder(port uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, port))
}

// reset ends a connection so that the other side sees an error, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
