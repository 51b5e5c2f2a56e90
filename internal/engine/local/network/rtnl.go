package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds an exchange with the kernel whose context has no
// deadline. The kernel answers at once, but for waiting for its global lock of
// network configuration.
const netlinkTimeout = 30 * time.Second

// loopback is the index of lo in every network namespace.
const loopback = 1

// Numbers of the uapi headers that package unix lacks.
const (
	vethInfoPeer       = 1 // VETH_INFO_PEER, linux/veth.h
	inetConf           = 1 // IFLA_INET_CONF, linux/if_link.h
	inet6AddrGenMode   = 8 // IFLA_INET6_ADDR_GEN_MODE, linux/if_link.h
	addrGenModeNone    = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	nudPermanent       = 0x80
	ndaDst             = 1
	ndaLLAddr          = 2
	confForwarding     = 1 // IPV4_DEVCONF_*, linux/ip.h
	confProxyARP       = 3
	confRedirects      = 4
	confSendRedirects  = 6
	confRPFilter       = 8
	confSourceRoute    = 9
	confARPAccept      = 21
	confAcceptLocal    = 23
	confRouteLocalnet  = 26
	extFilterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
)

// Flags of requests.
const (
	create  = netlink.Create
	excl    = netlink.Excl
	replace = netlink.Replace
	dump    = netlink.Dump
)

// conn is a route netlink socket. It belongs to one goroutine.
type conn struct{ *netlink.Conn }

// dialHost opens a socket in the calling thread's network namespace.
func dialHost(ctx context.Context) (*conn, error) { return dial(ctx, &netlink.Config{}) }

// dialIn opens a socket in the given network namespace.
func dialIn(ctx context.Context, netns int) (*conn, error) {
	return dial(ctx, &netlink.Config{NetNS: netns})
}

func dial(ctx context.Context, cfg *netlink.Config) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	if err := c.SetDeadline(deadline(ctx)); err != nil {
		c.Close()
		return nil, err
	}
	return &conn{c}, nil
}

// deadline is the context's, else the one of netlinkTimeout.
func deadline(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return time.Now().Add(netlinkTimeout)
}

// message makes a request out of its body.
func message(typ int, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags},
		Data:   body,
	}
}

// batchError is the failure of one message of a batch.
type batchError struct {
	at  int
	err error
}

func (e *batchError) Error() string { return e.err.Error() }
func (e *batchError) Unwrap() error { return e.err }

// do sends requests in one system call and returns what the kernel answers
// besides acknowledgements. All requests are carried out, those after a failed
// one too; the error is then a *batchError of the first that failed, and what
// the others were answered is returned as well.
func (c *conn) do(msgs ...netlink.Message) ([]netlink.Message, error) {
	for i := range msgs {
		msgs[i].Header.Flags |= netlink.Acknowledge
	}
	sent, err := c.SendMessages(msgs)
	if err != nil {
		return nil, fmt.Errorf("sending to netlink: %w", err)
	}
	var first *batchError
	var answers []netlink.Message
	for done := 0; done < len(sent); {
		got, err := c.Receive()
		if errno, ok := refusal(err); ok {
			// The requests are answered in order.
			if first == nil {
				first = &batchError{at: done, err: errno}
			}
			done++
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receiving from netlink: %w", err)
		}
		for _, m := range got {
			if m.Header.Type == netlink.Error || m.Header.Type == netlink.Done {
				done++
				continue
			}
			answers = append(answers, m)
		}
	}
	if first != nil {
		return answers, first
	}
	return answers, nil
}

// refusal returns the error with which the kernel answered a request, as
// opposed to one of the socket.
func refusal(err error) (unix.Errno, bool) {
	var op *netlink.OpError
	if !errors.As(err, &op) {
		return 0, false
	}
	errno, ok := op.Err.(unix.Errno)
	return errno, ok
}

// body is a request's body: the fixed header of its family, then attributes.
type body struct{ b []byte }

func (b *body) attr(typ int, data []byte) {
	head := len(b.b)
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(4+len(data)))
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(typ))
	b.b = append(b.b, data...)
	for (len(b.b)-head)%4 != 0 {
		b.b = append(b.b, 0)
	}
}

func (b *body) u32(typ int, v uint32)    { b.attr(typ, binary.NativeEndian.AppendUint32(nil, v)) }
func (b *body) str(typ int, s string)    { b.attr(typ, append([]byte(s), 0)) }
func (b *body) ip(typ int, a netip.Addr) { b.attr(typ, a.AsSlice()) }

// nest adds an attribute that holds what f adds.
func (b *body) nest(typ int, f func(in *body)) {
	var in body
	f(&in)
	b.attr(typ|unix.NLA_F_NESTED, in.b)
}

// linkHeader is struct ifinfomsg. flags that are named in change are set or
// cleared.
func linkHeader(index int, flags, change uint32) *body {
	var b body
	b.b = make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b.b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b.b[8:], flags)
	binary.NativeEndian.PutUint32(b.b[12:], change)
	return &b
}

// familyOf is the number of an address's family.
func familyOf(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// address is the body of a request about an address alone in its subnet. One of
// IPv6 is not looked for on the link first: nobody else has it.
func address(link int, a netip.Addr, scope byte, label string) []byte {
	var b body
	b.b = []byte{familyOf(a), byte(a.BitLen()), unix.IFA_F_NODAD, scope, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(b.b[4:], uint32(link))
	b.ip(unix.IFA_LOCAL, a)
	b.ip(unix.IFA_ADDRESS, a)
	if label != "" {
		b.str(unix.IFA_LABEL, label)
	}
	return b.b
}

// unpreferred makes an address of IPv6 one that the kernel never picks as the source
// of a packet by itself: its time to be preferred is over (RFC 4862, 5.5.4), its
// time to be valid never is.
func unpreferred(address []byte) []byte {
	b := body{b: address}
	// struct ifa_cacheinfo: preferred, valid, and two times that are not read.
	info := binary.NativeEndian.AppendUint32(nil, 0)
	info = binary.NativeEndian.AppendUint32(info, math.MaxUint32)
	b.attr(unix.IFA_CACHEINFO, append(info, make([]byte, 8)...))
	return b.b
}

// routeHeader is struct rtmsg for the main table.
func routeHeader(family byte, bits int, scope byte, flags uint32) *body {
	b := &body{b: []byte{family, byte(bits), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST, 0, 0, 0, 0}}
	binary.NativeEndian.PutUint32(b.b[8:], flags)
	return b
}

// neighbour is the body of a request for a permanent neighbour entry.
func neighbour(link int, a netip.Addr, mac []byte) []byte {
	b := body{b: make([]byte, unix.SizeofNdMsg)}
	b.b[0] = familyOf(a)
	binary.NativeEndian.PutUint32(b.b[4:], uint32(link))
	binary.NativeEndian.PutUint16(b.b[8:], nudPermanent)
	b.ip(ndaDst, a)
	b.attr(ndaLLAddr, mac)
	return b.b
}

// linkInfo is what paddock reads of an interface.
type linkInfo struct {
	index       int
	name, alias string
}

// links lists all interfaces.
func (c *conn) links() ([]linkInfo, error) {
	b := linkHeader(0, 0, 0)
	b.u32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	answers, err := c.dump(message(unix.RTM_GETLINK, dump, b.b))
	if err != nil {
		return nil, err
	}
	list := make([]linkInfo, 0, len(answers))
	for _, m := range answers {
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// dump asks for a listing, and again if it changed meanwhile.
func (c *conn) dump(m netlink.Message) ([]netlink.Message, error) {
	for {
		answers, err := c.Execute(m)
		if errors.Is(err, unix.EINTR) {
			continue // NLM_F_DUMP_INTR; the deadline ends this
		}
		return answers, err
	}
}

func parseLink(m netlink.Message) (linkInfo, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return linkInfo{}, errors.New("netlink: a short answer about an interface")
	}
	l := linkInfo{index: int(binary.NativeEndian.Uint32(m.Data[4:]))}
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_IFALIAS:
			l.alias = ad.String()
		}
	}
	return l, ad.Err()
}
