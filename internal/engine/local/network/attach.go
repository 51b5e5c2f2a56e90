package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Attach when the index's interface or address is still
// there: the kernel removes those of an ended sandbox a while after it. Take
// another index.
var ErrBusy = errors.New("the network index is still in use")

// peerName is the interface in the sandbox.
const peerName = "eth0"

// hostMAC is the hardware address of the host's end of every pair; each is a
// segment of its own. Locally administered, as all here.
var hostMAC = []byte{0x02, 'p', 'a', 'd', 0, 1}

// peerMAC is the hardware address of eth0. It differs from sandbox to sandbox
// because programs make identifiers of it.
func peerMAC(a netip.Addr) []byte {
	b := a.As4()
	return []byte{0x02, 'p', b[0], b[1], b[2], b[3]}
}

// Attach gives the network namespace netnsFD its eth0, with address and
// default route, and lo. The index must be used by no other sandbox. alias is
// put on the host's end, at most 255 bytes. When it fails nothing is left;
// ErrBusy is wrapped when the index is not free yet. The caller keeps netnsFD.
func (n *Network) Attach(ctx context.Context, netnsFD int, index int, alias string) (netip.Addr, error) {
	addr, err := n.Addr(index)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(alias) > 255 {
		return netip.Addr{}, fmt.Errorf("interface alias of %d bytes: at most 255 are allowed", len(alias))
	}
	if err := n.attach(ctx, netnsFD, index, addr, alias); err != nil {
		return netip.Addr{}, fmt.Errorf("attaching interface %s: %w", n.link(index), err)
	}
	return addr, nil
}

func (n *Network) attach(ctx context.Context, netnsFD, index int, addr netip.Addr, alias string) error {
	host, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer host.Close()
	inside, err := dialIn(ctx, netnsFD)
	if err != nil {
		return err
	}
	defer inside.Close()

	name := n.link(index)
	// Both ends are born down, so that nothing passes before all is set.
	answers, err := host.do(n.newPair(netnsFD, name, addr), getLink(name))
	var refused *batchError
	if errors.As(err, &refused) && refused.at == 0 {
		switch {
		case !errors.Is(err, unix.EEXIST):
			return err
		case len(answers) == 0:
			return fmt.Errorf("the network namespace has an %s already: %w", peerName, err)
		}
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err == nil {
		err = n.configure(host, inside, answers, addr, alias)
	}
	if err == nil {
		return nil
	}
	// The context may be what has ended.
	if derr := n.Detach(context.WithoutCancel(ctx), index); derr != nil {
		err = errors.Join(err, derr)
	}
	return err
}

// newPair makes both ends: the host's here, the other in the namespace. One
// queue each, since every queue costs memory and the default is one for each
// CPU.
func (n *Network) newPair(netnsFD int, name string, addr netip.Addr) netlink.Message {
	// Without ARP the host answers no sandbox that asks for addresses.
	b := linkHeader(0, unix.IFF_NOARP, unix.IFF_NOARP)
	b.str(unix.IFLA_IFNAME, name)
	b.attr(unix.IFLA_ADDRESS, hostMAC)
	b.u32(unix.IFLA_GROUP, n.group())
	b.u32(unix.IFLA_NUM_TX_QUEUES, 1)
	b.u32(unix.IFLA_NUM_RX_QUEUES, 1)
	b.nest(unix.IFLA_LINKINFO, func(info *body) {
		info.str(unix.IFLA_INFO_KIND, "veth")
		info.nest(unix.IFLA_INFO_DATA, func(data *body) {
			peer := linkHeader(0, 0, 0)
			peer.str(unix.IFLA_IFNAME, peerName)
			peer.attr(unix.IFLA_ADDRESS, peerMAC(addr))
			peer.u32(unix.IFLA_NUM_TX_QUEUES, 1)
			peer.u32(unix.IFLA_NUM_RX_QUEUES, 1)
			peer.u32(unix.IFLA_NET_NS_FD, uint32(netnsFD))
			data.attr(vethInfoPeer|unix.NLA_F_NESTED, peer.b)
		})
	})
	return message(unix.RTM_NEWLINK, create|excl, b.b)
}

func getLink(name string) netlink.Message {
	b := linkHeader(0, 0, 0)
	b.str(unix.IFLA_IFNAME, name)
	b.u32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	return message(unix.RTM_GETLINK, 0, b.b)
}

// configure does the rest: the inside first, so that the sandbox is whole when
// the host's end comes up.
func (n *Network) configure(host, inside *conn, pair []netlink.Message, addr netip.Addr, alias string) error {
	out, err := onlyLink(pair)
	if err != nil {
		return err
	}
	answers, err := inside.do(up(loopback), getLink(peerName))
	if err != nil {
		return fmt.Errorf("looking into the sandbox's network namespace: %w", err)
	}
	in, err := onlyLink(answers)
	if err != nil {
		return err
	}
	mac := peerMAC(addr)
	requests := []netlink.Message{n.settings(in, "", nil), up(in)}
	requests = append(requests, insideEnd(in, addr, n.gateway)...)
	if n.subnet6.IsValid() {
		requests = append(requests, insideEnd(in, n.Addr6(addr), n.gateway6)...)
	}
	if _, err = inside.do(requests...); err != nil {
		return fmt.Errorf("configuring %s in the sandbox: %w", peerName, err)
	}

	requests = []netlink.Message{n.settings(out, alias, hostSettings), up(out)}
	requests = append(requests, hostEnd(out, addr, n.gateway, mac)...)
	if n.subnet6.IsValid() {
		requests = append(requests, hostEnd(out, n.Addr6(addr), n.gateway6, mac)...)
	}
	_, err = host.do(requests...)
	var refused *batchError
	if errors.As(err, &refused) && errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the address %s has a route already: %w: %w", addr, ErrBusy, err)
	}
	if err != nil {
		return fmt.Errorf("configuring the host's end: %w", err)
	}
	return inside.awaitCarrier(peerName)
}

// insideEnd gives the end in the sandbox an address, and a route by the gateway.
func insideEnd(link int, own, gateway netip.Addr) []netlink.Message {
	route := routeHeader(familyOf(own), 0, unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK)
	route.ip(unix.RTA_GATEWAY, gateway)
	route.u32(unix.RTA_OIF, uint32(link))
	return []netlink.Message{
		message(unix.RTM_NEWADDR, create|excl, address(link, own, unix.RT_SCOPE_UNIVERSE, "")),
		message(unix.RTM_NEWNEIGH, create|replace, neighbour(link, gateway, hostMAC)),
		message(unix.RTM_NEWROUTE, create|excl, route.b),
	}
}

// hostEnd gives the host's end a route to the sandbox's address.
func hostEnd(link int, sandbox, gateway netip.Addr, mac []byte) []netlink.Message {
	route := routeHeader(familyOf(sandbox), sandbox.BitLen(), unix.RT_SCOPE_LINK, 0)
	route.ip(unix.RTA_DST, sandbox)
	route.ip(unix.RTA_PREFSRC, gateway)
	route.u32(unix.RTA_OIF, uint32(link))
	return []netlink.Message{
		message(unix.RTM_NEWNEIGH, create|replace, neighbour(link, sandbox, mac)),
		message(unix.RTM_NEWROUTE, create|excl, route.b),
	}
}

// onlyLink is the index of the one interface in the answers.
func onlyLink(answers []netlink.Message) (int, error) {
	if len(answers) != 1 {
		return 0, fmt.Errorf("netlink: %d answers about one interface", len(answers))
	}
	l, err := parseLink(answers[0])
	return l.index, err
}

func up(link int) netlink.Message {
	return message(unix.RTM_SETLINK, 0, linkHeader(link, unix.IFF_UP, unix.IFF_UP).b)
}

// hostSettings are the IPv4 settings of a host's end. Given over netlink they
// hold before the interface comes up, and need no writable /proc.
var hostSettings = map[int]uint32{
	confForwarding:    1,
	confRPFilter:      1, // but see the filter: this one can be weakened
	confRedirects:     0,
	confSendRedirects: 0,
	confSourceRoute:   0,
	confProxyARP:      0,
	confARPAccept:     0,
	confAcceptLocal:   0,
	confRouteLocalnet: 0,
}

// settings gives an interface its alias and IPv4 settings, and keeps IPv6 from
// giving it an address by itself.
func (n *Network) settings(link int, alias string, ipv4 map[int]uint32) netlink.Message {
	b := linkHeader(link, 0, 0)
	if alias != "" {
		b.str(unix.IFLA_IFALIAS, alias)
	}
	b.nest(unix.IFLA_AF_SPEC, func(spec *body) {
		if len(ipv4) > 0 {
			spec.nest(unix.AF_INET, func(inet *body) {
				inet.nest(inetConf, func(conf *body) {
					for id, value := range ipv4 {
						conf.u32(id, value)
					}
				})
			})
		}
		if n.knowsIPv6 {
			spec.nest(unix.AF_INET6, func(inet6 *body) {
				inet6.attr(inet6AddrGenMode, []byte{addrGenModeNone})
			})
		}
	})
	return message(unix.RTM_SETLINK, 0, b.b)
}

// group is the interface group of the instance's host ends: its name as a
// number. The left-most byte is never 0, so it is no group that a person would
// choose.
func (n *Network) group() uint32 {
	var b [4]byte
	copy(b[:], n.name)
	return binary.BigEndian.Uint32(b[:])
}

// doomed is the group of interfaces that are about to be removed. Names are
// ASCII, so it is no instance's group.
func (n *Network) doomed() uint32 { return n.group() | 1<<31 }

// Detach removes the interfaces of these indexes; one that isn't there is no
// error. It is only needed for a namespace that lives on: the kernel removes a
// pair with its namespace. Many are removed together, for a removal waits for
// an RCU grace period of the kernel.
func (n *Network) Detach(ctx context.Context, indexes ...int) error {
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, index := range indexes {
		if _, err := n.Addr(index); err != nil {
			return err
		}
		b := linkHeader(0, 0, 0)
		b.str(unix.IFLA_IFNAME, n.link(index))
		typ := unix.RTM_DELLINK
		if len(indexes) > 1 {
			typ = unix.RTM_SETLINK
			b.u32(unix.IFLA_GROUP, n.doomed())
		}
		if _, err := c.do(message(typ, 0, b.b)); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("removing interface %s: %w", n.link(index), err)
		}
	}
	if len(indexes) > 1 {
		return n.removeGroup(ctx, n.doomed())
	}
	return nil
}

// removeGroup removes all interfaces of a group.
func (n *Network) removeGroup(ctx context.Context, group uint32) error {
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	b := linkHeader(0, 0, 0)
	b.u32(unix.IFLA_GROUP, group)
	if _, err := c.do(message(unix.RTM_DELLINK, 0, b.b)); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}
