package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The machines beside the host have private addresses with IPv4, and are closed to
// sandboxes for that. With IPv6 they have public ones, so the networks that the
// host is directly attached to are closed by what the routes say: those of its
// local network, and of containers and virtual machines on it.

// minNear is the shortest prefix of such a network. Larger ones are routes to
// everywhere, as virtual private networks set them.
const minNear = 32

// globalUnicast is what IANA gives out.
var globalUnicast = netip.MustParsePrefix("2000::/3")

func (n *Network) nearSet() *nftables.Set {
	return n.family6().rangeSet(n.nftTable(), "near", nearID)
}

// nearby reads the networks that the host is directly attached to.
func (n *Network) nearby(ctx context.Context) ([]span, error) {
	c, err := dialHost(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	answers, err := c.dump(message(unix.RTM_GETROUTE, dump, routeHeader(unix.AF_INET6, 0, 0, 0).b))
	if err != nil {
		return nil, fmt.Errorf("listing routes of IPv6: %w", err)
	}
	var list []netip.Prefix
	for _, m := range answers {
		if p, ok := nearRoute(m); ok {
			list = append(list, p)
		}
	}
	return spans(list), nil
}

// nearRoute returns the destination of a route to a network without a gateway.
func nearRoute(m netlink.Message) (netip.Prefix, bool) {
	if len(m.Data) < unix.SizeofRtMsg || m.Data[0] != unix.AF_INET6 || m.Data[7] != unix.RTN_UNICAST {
		return netip.Prefix{}, false
	}
	bits := int(m.Data[1])
	if bits < minNear {
		return netip.Prefix{}, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Prefix{}, false
	}
	var to netip.Addr
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			return netip.Prefix{}, false
		}
	}
	if ad.Err() != nil || !to.Is6() || !globalUnicast.Contains(to) {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(to, bits), true
}

// WatchRoutes keeps the networks closed that the host is directly attached to,
// until the context ends. After an error, which it logs, it begins again. It does
// nothing where sandboxes have no IPv6.
func (n *Network) WatchRoutes(ctx context.Context) {
	if !n.subnet6.IsValid() {
		return
	}
	for {
		err := n.watchRoutes(ctx)
		if ctx.Err() != nil {
			return
		}
		n.log.Error("networks that this host joins now are open to sandboxes over IPv6; trying again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
	}
}

// watchPause is between an error and another try.
const watchPause = 5 * time.Second

func (n *Network) watchRoutes(ctx context.Context) error {
	const routes = 1 << (unix.RTNLGRP_IPV6_ROUTE - 1)
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: routes})
	if err != nil {
		return fmt.Errorf("opening a netlink socket for routes: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	// What changed before the socket was there.
	changed := true
	for {
		if changed {
			if err := n.updateNear(ctx); err != nil {
				return err
			}
		}
		messages, err := c.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			changed = true // some were lost
			continue
		}
		if err != nil {
			return fmt.Errorf("reading changes of routes: %w", err)
		}
		// The routes to sandboxes come and go with them and are none of these.
		changed = slices.ContainsFunc(messages, func(m netlink.Message) bool {
			_, near := nearRoute(m)
			return near
		})
	}
}

// updateNear closes the networks that there are now, also to sandboxes whose
// policies have a wider range.
func (n *Network) updateNear(ctx context.Context) error {
	list, err := n.nearby(ctx)
	if err != nil {
		return err
	}
	n.firewall.Lock()
	defer n.firewall.Unlock()
	if slices.Equal(list, n.near) {
		return nil
	}
	old := n.near
	x, err := n.begin(ctx)
	if err != nil {
		return err
	}
	x.c.FlushSet(named(n.nearSet()))
	x.add(named(n.nearSet()), n.family6().rangeElements(list))
	if err := n.commit(x); err != nil {
		return fmt.Errorf("closing the networks of the host: %w", err)
	}
	n.near = list
	for sandbox, in := range n.policies {
		if err := n.recompile(ctx, sandbox, in); err != nil {
			n.near = old // so that it is tried again
			return fmt.Errorf("closing the networks of the host to %s: %w", sandbox, err)
		}
	}
	n.log.Info("the networks that this host is attached to have changed, and are closed to sandboxes", "networks", len(list))
	return nil
}

// recompile applies a policy again; n.firewall is held.
func (n *Network) recompile(ctx context.Context, sandbox netip.Addr, in *installed) error {
	next, err := n.compile(in.policy)
	if err != nil || slices.Equal(next.opened, in.opened) {
		return err
	}
	x, err := n.begin(ctx)
	if err != nil {
		return err
	}
	n.replace(x, sandbox, in, next)
	if err := n.commit(x); err != nil {
		return err
	}
	n.policies[sandbox] = next
	return nil
}
