package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages of the kernel's connection tracking
// (linux/netfilter/nfnetlink_conntrack.h).
const (
	trackGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	trackDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	trackOriginal = 1  // CTA_TUPLE_ORIG
	trackReply    = 2  // CTA_TUPLE_REPLY
	trackID       = 12 // CTA_ID
	trackZone     = 18 // CTA_ZONE

	tupleAddresses = 1 // CTA_TUPLE_IP
	tupleProtocol  = 2 // CTA_TUPLE_PROTO
	tupleSource4   = 1 // CTA_IP_V4_SRC
	tupleTo4       = 2 // CTA_IP_V4_DST
	tupleSource6   = 3 // CTA_IP_V6_SRC
	tupleTo6       = 4 // CTA_IP_V6_DST
	protocolNumber = 1 // CTA_PROTO_NUM
)

// flowsTimeout bounds the going through the tracked connections.
const flowsTimeout = 10 * time.Second

// flow is a tracked connection.
type flow struct {
	source, to netip.Addr
	// answers is where the replies come from: another address than "to" when the
	// connection was diverted.
	answers  netip.Addr
	protocol byte
	// family and key name it to the kernel.
	family byte
	key    []netlink.Attribute
}

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
	if err := n.cut(func(f flow) bool { return n.forbids(sandbox, in, f) }); err != nil {
		n.closeFlows()
		return fmt.Errorf("cutting connections of %s: %w", sandbox, err)
	}
	return nil
}

// ForgetFlows forgets every connection of the sandboxes' addresses that are picked:
// of sandboxes that have ended, before their addresses are another's. What the
// other side still sends would reach that one otherwise.
func (n *Network) ForgetFlows(ended func(sandbox netip.Addr) bool) error {
	n.tracking.Lock()
	defer n.tracking.Unlock()
	isOf := func(a netip.Addr) bool {
		a = n.Sandbox(a)
		return a.IsValid() && a != n.gateway && ended(a)
	}
	if err := n.cut(func(f flow) bool { return isOf(f.source) || isOf(f.to) }); err != nil {
		n.closeFlows()
		return fmt.Errorf("forgetting connections of sandboxes that have ended: %w", err)
	}
	return nil
}

// closeFlows closes the socket, which may hold answers that nobody has read;
// n.tracking is held.
func (n *Network) closeFlows() {
	if n.flows != nil {
		_ = n.flows.Close()
		n.flows = nil
	}
}

// cut forgets the connections that are picked; n.tracking is held.
func (n *Network) cut(picked func(flow) bool) error {
	if n.flows == nil {
		// Kept open for the reason that socket is.
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return fmt.Errorf("opening a netlink socket for connections: %w", err)
		}
		n.flows = &conn{c}
	}
	ctx, cancel := context.WithTimeout(context.Background(), flowsTimeout)
	defer cancel()
	if err := n.flows.SetDeadline(deadline(ctx)); err != nil {
		return err
	}
	// Both families at once: the kernel's going through its table is what costs.
	answers, err := n.flows.dump(message(trackGet, dump, []byte{unix.AF_UNSPEC, 0, 0, 0}))
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	for _, m := range answers {
		f, ok := parseFlow(m.Data)
		if !ok || !picked(f) {
			continue
		}
		key, err := netlink.MarshalAttributes(f.key)
		if err != nil {
			return err
		}
		_, err = n.flows.do(message(trackDelete, 0, append([]byte{f.family, 0, 0, 0}, key...)))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// forbids picks the connections to cut.
func (n *Network) forbids(sandbox netip.Addr, in *installed, f flow) bool {
	// Those to other sandboxes and to the host are no matter of policies, and
	// those that go to the proxy end there.
	if n.Sandbox(f.source) != sandbox || n.Sandbox(f.to).IsValid() || n.Sandbox(f.answers).IsValid() {
		return false
	}
	switch {
	case inSpans(in.closed, f.to):
		return true
	case in.inspected && f.protocol == unix.IPPROTO_TCP:
		return true
	case inSpans(in.opened, f.to):
		return f.protocol != unix.IPPROTO_TCP && f.protocol != unix.IPPROTO_UDP
	}
	// One to an address that is learned is cut too: it is found again with
	// the sandbox's next packet.
	n.firewall.Lock()
	defer n.firewall.Unlock()
	return !in.permissive || inSpans(n.shut, f.to) || n.isNear(f.to)
}

// parseFlow reads a connection from a listing.
func parseFlow(b []byte) (flow, bool) {
	if len(b) < genHeader {
		return flow{}, false
	}
	f := flow{family: b[0]}
	ad, err := netlink.NewAttributeDecoder(b[genHeader:])
	if err != nil {
		return flow{}, false
	}
	for ad.Next() {
		switch typ := ad.Type(); typ {
		case trackOriginal:
			f.key = append(f.key, netlink.Attribute{Type: typ | netlink.Nested, Data: ad.Bytes()})
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				f.source, f.to, f.protocol = parseTuple(in)
				return in.Err()
			})
		case trackReply:
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				f.answers, _, _ = parseTuple(in)
				return in.Err()
			})
		case trackID, trackZone:
			f.key = append(f.key, netlink.Attribute{Type: typ, Data: ad.Bytes()})
		}
	}
	return f, ad.Err() == nil && f.source.IsValid() && f.to.IsValid()
}

// parseTuple reads the one direction of a connection.
func parseTuple(ad *netlink.AttributeDecoder) (source, to netip.Addr, protocol byte) {
	for ad.Next() {
		switch ad.Type() {
		case tupleAddresses:
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				for in.Next() {
					switch in.Type() {
					case tupleSource4, tupleSource6:
						source, _ = netip.AddrFromSlice(in.Bytes())
					case tupleTo4, tupleTo6:
						to, _ = netip.AddrFromSlice(in.Bytes())
					}
				}
				return nil
			})
		case tupleProtocol:
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				for in.Next() {
					if in.Type() == protocolNumber {
						protocol = in.Uint8()
					}
				}
				return nil
			})
		}
	}
	return source, to, protocol
}
