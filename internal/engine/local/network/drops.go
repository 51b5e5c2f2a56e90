package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Drop is a packet of a sandbox that its policy refused.
type Drop struct {
	Sandbox netip.Addr
	// Protocol is the IP protocol's number.
	Protocol byte
	// Source is the sandbox's port, To where the packet was to go; the ports
	// are 0 unless the protocol is TCP or UDP.
	Source uint16
	To     netip.AddrPort
}

// Messages of the kernel's packet log (linux/netfilter/nfnetlink_log.h).
const (
	logPacket  = unix.NFNL_SUBSYS_ULOG<<8 | 0
	logConfig  = unix.NFNL_SUBSYS_ULOG<<8 | 1
	logCommand = 1 // NFULA_CFG_CMD
	logMode    = 2 // NFULA_CFG_MODE
	logTimeout = 4 // NFULA_CFG_TIMEOUT
	logBind    = 1 // NFULNL_CFG_CMD_BIND
	logCopy    = 2 // NFULNL_COPY_PACKET
	logPayload = 9 // NFULA_PAYLOAD
	// logDelay is how long the kernel may collect packets, in 1/100 s.
	logDelay = 10
	// genHeader is the size of struct nfgenmsg, in bytes.
	genHeader = 4
)

// CanReport reports whether this kernel can report refused packets.
func CanReport(ctx context.Context) bool {
	c, err := dialNFT(ctx)
	if err != nil {
		return false
	}
	// Made and taken away within one transaction.
	t := &table{Table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "paddock-log-probe"}), c: c}
	t.rule(t.chain("probe"), report(probeGroup))
	c.DelTable(t.Table)
	return c.Flush() == nil
}

// probeGroup is a log group that nothing is ever sent to.
const probeGroup = 28699

// Reports says whether there is something for Drops.
func (n *Network) Reports() bool { return n.reportGroup != 0 }

// Drops calls f for packets that policies refused, at most some for each
// sandbox and second, until the context ends. It needs Options.ReportGroup.
// Call it once; a second caller is refused by the kernel (EBUSY).
func (n *Network) Drops(ctx context.Context, f func(Drop)) error {
	if n.reportGroup == 0 {
		return errors.New("network: without a report group the kernel reports nothing")
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("opening a netlink socket for refused packets: %w", err)
	}
	defer c.Close()
	if err := n.bindLog(c); err != nil {
		return fmt.Errorf("asking the kernel for refused packets: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // some were lost, as some are to the rate anyway
		case err != nil:
			return fmt.Errorf("reading refused packets: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != logPacket {
				continue
			}
			d, ok := parseDrop(m.Data)
			if d.Sandbox = n.Sandbox(d.Sandbox); ok && d.Sandbox.IsValid() {
				f(d)
			}
		}
	}
}

func (n *Network) bindLog(c *netlink.Conn) error {
	mode := binary.BigEndian.AppendUint32(nil, reportBytes)
	for _, a := range []netlink.Attribute{
		{Type: logCommand, Data: []byte{logBind}},
		{Type: logMode, Data: append(mode, logCopy, 0)},
		{Type: logTimeout, Data: binary.BigEndian.AppendUint32(nil, logDelay)},
	} {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{a})
		if err != nil {
			return err
		}
		head := []byte{unix.AF_UNSPEC, 0, 0, 0}
		binary.BigEndian.PutUint16(head[2:], n.reportGroup)
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: logConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(head, b...),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// parseDrop reads a report. What is in the packet comes from a sandbox.
func parseDrop(b []byte) (Drop, bool) {
	if len(b) < genHeader {
		return Drop{}, false
	}
	ad, err := netlink.NewAttributeDecoder(b[genHeader:])
	if err != nil {
		return Drop{}, false
	}
	for ad.Next() {
		if ad.Type() == logPayload {
			return parsePacket(ad.Bytes())
		}
	}
	return Drop{}, false
}

// parsePacket reads the headers of a packet. The sandbox is its source.
func parsePacket(b []byte) (Drop, bool) {
	if len(b) == 0 {
		return Drop{}, false
	}
	var d Drop
	var rest []byte
	var ok bool
	switch b[0] >> 4 {
	case 4:
		d, rest, ok = parseHeader4(b)
	case 6:
		d, rest, ok = parseHeader6(b)
	}
	if !ok || d.Protocol != unix.IPPROTO_TCP && d.Protocol != unix.IPPROTO_UDP {
		return d, ok
	}
	if len(rest) >= 4 {
		d.Source = binary.BigEndian.Uint16(rest)
		d.To = netip.AddrPortFrom(d.To.Addr(), binary.BigEndian.Uint16(rest[2:]))
	}
	return d, true
}

// parseHeader4 reads a header of IPv4 (RFC 791) and returns what follows it.
func parseHeader4(b []byte) (Drop, []byte, bool) {
	const minHeader = 20
	if len(b) < minHeader {
		return Drop{}, nil, false
	}
	size := int(b[0]&0xf) * 4
	if size < minHeader || len(b) < size {
		return Drop{}, nil, false
	}
	return Drop{
		Sandbox:  netip.AddrFrom4([4]byte(b[12:16])),
		Protocol: b[9],
		To:       netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0),
	}, b[size:], true
}

// parseHeader6 reads a header of IPv6 (RFC 8200), and those of its extensions that
// are in what is reported.
func parseHeader6(b []byte) (Drop, []byte, bool) {
	const header = 40
	if len(b) < header {
		return Drop{}, nil, false
	}
	d := Drop{
		Sandbox:  netip.AddrFrom16([16]byte(b[8:24])),
		Protocol: b[6],
		To:       netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0),
	}
	rest := b[header:]
	for len(rest) >= 8 {
		size := (int(rest[1]) + 1) * 8
		switch d.Protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS:
		case unix.IPPROTO_FRAGMENT:
			size = 8
		default:
			return d, rest, true
		}
		d.Protocol = rest[0]
		rest = rest[min(size, len(rest)):]
	}
	return d, rest, true
}
