package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cutForbidden forgets the connections of a sandbox that its policy no longer
// lets pass. The sandbox's own packets are stopped by the rules, which look at
// each; this stops those of the other side, which are let in as replies to a
// connection that is known.
func (n *Network) cutForbidden(sandbox netip.Addr, in *installed) error {
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, forbidden{n, sandbox, in})
	if err != nil {
		return fmt.Errorf("cutting connections of %s: %w", sandbox, err)
	}
	return nil
}

// forbidden picks the connections to cut.
type forbidden struct {
	n       *Network
	sandbox netip.Addr
	in      *installed
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	src, dst = src.Unmap(), dst.Unmap()
	if src != f.sandbox || f.n.subnet.Contains(dst) {
		return false
	}
	// Those that go to the proxy end there.
	if reply, _ := netip.AddrFromSlice(flow.Reverse.SrcIP); reply.Unmap() == f.n.gateway {
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
	return !f.in.permissive || inSpans(f.n.shut, dst)
}
