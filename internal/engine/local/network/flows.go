package network

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CutForbidden forgets the connections of a sandbox that its policy does not let
// pass. The sandbox's own packets are stopped by the rules, which look at each;
// this stops those of the other side, which are let in as replies to a
// connection that is known. The kernel goes through the tracked connections of
// the whole host for it, which takes some milliseconds.
func (n *Network) CutForbidden(sandbox netip.Addr) error {
	n.firewall.Lock()
	in := n.policies[sandbox]
	n.firewall.Unlock()
	if in == nil {
		return nil
	}
	n.tracking.Lock()
	defer n.tracking.Unlock()
	if n.flows == nil {
		// Kept open for the reason that socket is.
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("opening a netlink socket for connections: %w", err)
		}
		if err := h.SetSocketTimeout(flowsTimeout); err != nil {
			h.Close()
			return err
		}
		n.flows = h
	}
	for _, f := range n.families() {
		family := netlink.InetFamily(unix.AF_INET)
		if f.is6() {
			family = unix.AF_INET6
		}
		if _, err := n.flows.ConntrackDeleteFilters(netlink.ConntrackTable, family, forbidden{n, f, sandbox, in}); err != nil {
			n.flows.Close()
			n.flows = nil
			return fmt.Errorf("cutting connections of %s: %w", sandbox, err)
		}
	}
	return nil
}

// flowsTimeout bounds each step of going through the tracked connections.
const flowsTimeout = 10 * time.Second

// forbidden picks the connections to cut.
type forbidden struct {
	n       *Network
	family  *family
	sandbox netip.Addr
	in      *installed
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	src, dst = src.Unmap(), dst.Unmap()
	if f.n.Sandbox(src) != f.sandbox || f.family.subnet.Contains(dst) {
		return false
	}
	// Those that go to the proxy end there.
	if reply, _ := netip.AddrFromSlice(flow.Reverse.SrcIP); reply.Unmap() == f.family.gateway {
		return false
	}
	switch {
	case inSpans(f.in.closed, dst):
		return true
	case f.in.inspected && flow.Forward.Protocol == unix.IPPROTO_TCP:
		return true
	case inSpans(f.in.opened, dst):
		return flow.Forward.Protocol != unix.IPPROTO_TCP && flow.Forward.Protocol != unix.IPPROTO_UDP
	}
	// One to an address that is learned is cut too: it is found again with
	// the sandbox's next packet.
	return !f.in.permissive || inSpans(f.n.shut, dst) || f.n.isNear(dst)
}
