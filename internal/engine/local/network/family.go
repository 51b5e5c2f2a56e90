package network

import (
	"crypto/sha256"
	"fmt"
	"math"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// family is what differs between the two versions of IP in the packet filter.
//
// A sandbox is known by its IPv4 address in both. Its IPv6 address ends with
// that, so that one set of sandboxes serves both: the four bytes are read where
// they stand in either header, and the destination follows them.
type family struct {
	// number is the kernel's (NFPROTO_IPV4, NFPROTO_IPV6).
	number byte
	// source and destination are the offsets of the addresses in the header,
	// size their size, and self the offset of the four bytes by which the
	// source is known (RFC 791, RFC 8200).
	source, destination, size, self uint32
	// subnet has the sandboxes, gateway is the host's address to them.
	subnet  netip.Prefix
	gateway netip.Addr
	// suffix ends the names of chains and sets, ids is added to the numbers of
	// the latter.
	suffix string
	ids    uint32
	denied []netip.Prefix
}

func (n *Network) family4() *family {
	return &family{
		number: unix.NFPROTO_IPV4, source: 12, destination: 16, size: 4, self: 12,
		subnet: n.subnet, gateway: n.gateway, denied: denied4,
	}
}

func (n *Network) family6() *family {
	return &family{
		number: unix.NFPROTO_IPV6, source: 8, destination: 24, size: 16, self: 20,
		subnet: n.subnet6, gateway: n.gateway6, suffix: "6", ids: familyIDs, denied: denied6,
	}
}

// families are those that sandboxes have.
func (n *Network) families() []*family {
	if !n.subnet6.IsValid() {
		return []*family{n.family4()}
	}
	return []*family{n.family4(), n.family6()}
}

func (f *family) is6() bool { return f.number == unix.NFPROTO_IPV6 }

// keySize is the size of a key of a sandbox and an address.
func (f *family) keySize() uint32 { return selfSize + f.size }

// selfSize is the size of what a sandbox is known by.
const selfSize = 4

// rangeSet is a set of ranges of the family.
func (f *family) rangeSet(t *nftables.Table, name string, id uint32) *nftables.Set {
	typ := nftables.TypeIPAddr
	if f.is6() {
		typ = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: t, Name: name + f.suffix, ID: id + f.ids, KeyType: typ, Interval: true}
}

// shards is the number of parts that a set of ranges of all sandboxes is cut into.
// The kernel goes through the whole of such a set whenever it is changed, some 10
// ns for each range; what all sandboxes pay for is a look-up in a small map.
const shards = 16

// shardOf is the part that a sandbox's ranges are in, by the last bits of its
// address.
func shardOf(sandbox netip.Addr) int { return int(sandbox.AsSlice()[selfSize-1]) % shards }

// pairRanges is a part of a set of ranges for each sandbox. Its keys are taken as
// one number, so that the kernel keeps them in a tree: what it has for ranges of
// several fields is copied as a whole with every change.
func (f *family) pairRanges(t *nftables.Table, name string, id uint32, shard int) *nftables.Set {
	typ := nftables.TypeInteger
	typ.Bytes = f.keySize()
	return &nftables.Set{Table: t, Name: fmt.Sprintf("%s%s-%d", name, f.suffix, shard), ID: id + f.ids + uint32(shard), KeyType: typ, Interval: true}
}

// timedPairs is a set of addresses for each sandbox, with times to live.
func (f *family) timedPairs(t *nftables.Table, name string, id uint32) *nftables.Set {
	to := nftables.TypeIPAddr
	if f.is6() {
		to = nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: t, Name: name + f.suffix, ID: id + f.ids, HasTimeout: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, to)}
}

func (n *Network) allowedSet(f *family) *nftables.Set {
	return f.rangeSet(n.nftTable(), "allowed", allowedID)
}

func (n *Network) deniedSet(f *family) *nftables.Set {
	return f.rangeSet(n.nftTable(), "denied", deniedID)
}

func (n *Network) openedSet(f *family, shard int) *nftables.Set {
	return f.pairRanges(n.nftTable(), "opened", openedID, shard)
}

func (n *Network) closedSet(f *family, shard int) *nftables.Set {
	return f.pairRanges(n.nftTable(), "closed", closedID, shard)
}

func (n *Network) learnedSet(f *family) *nftables.Set {
	return f.timedPairs(n.nftTable(), "learned", learnedID)
}

func (n *Network) datagramsSet(f *family) *nftables.Set {
	return f.timedPairs(n.nftTable(), "datagrams", datagramsID)
}

// Sets of sandboxes, for both families.

func (n *Network) sandboxSet(name string, id uint32) *nftables.Set {
	return &nftables.Set{Table: n.nftTable(), Name: name, ID: id, KeyType: nftables.TypeIPAddr}
}

func (n *Network) policedSet() *nftables.Set    { return n.sandboxSet("policed", policedID) }
func (n *Network) permissiveSet() *nftables.Set { return n.sandboxSet("permissive", permissiveID) }
func (n *Network) inspectSet() *nftables.Set    { return n.sandboxSet("inspect", inspectID) }

func (n *Network) connectionsSet() *nftables.Set {
	s := n.sandboxSet("connections", connectionsID)
	s.Dynamic, s.Size = true, math.MaxUint16
	return s
}

func (n *Network) talkativeSet() *nftables.Set {
	s := n.sandboxSet("talkative", talkativeID)
	s.Dynamic, s.Size, s.HasTimeout, s.Timeout = true, math.MaxUint16, true, reportMemory
	return s
}

// rangeElements are the elements of the family's ranges among these, which are
// joined. Sets of ranges hold the first address of each and, marked as an end,
// the first one behind it.
func (f *family) rangeElements(list []span) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range ofFamily(list, f.is6()) {
		out = append(out, nftables.SetElement{Key: s.first.AsSlice()})
		// A range that reaches the last address has no end.
		if next := s.last.Next(); next.IsValid() {
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// pairElements are the elements of a sandbox's ranges. The last address of all
// is in none of them, so that those of two sandboxes never touch.
func (f *family) pairElements(sandbox netip.Addr, list []span) []nftables.SetElement {
	list = ofFamily(list, f.is6())
	out := make([]nftables.SetElement, 0, 2*len(list))
	for _, s := range list {
		end := behind(s.last)
		if end == s.first {
			continue
		}
		out = append(out,
			nftables.SetElement{Key: pairKey(sandbox, s.first)},
			nftables.SetElement{Key: pairKey(sandbox, end), IntervalEnd: true})
	}
	return out
}

func pairKey(sandbox, other netip.Addr) []byte {
	return append(sandbox.AsSlice(), other.AsSlice()...)
}

// prefix6 is the range of IPv6 addresses of an instance's sandboxes: a unique
// local one (RFC 4193), whose global number comes from what tells the instance
// apart, so that a later process finds the same. The last 32 bits are a sandbox's
// IPv4 address.
func prefix6(name string, subnet netip.Prefix) netip.Prefix {
	sum := sha256.Sum256([]byte("paddock\n" + name + "\n" + subnet.Masked().String()))
	b := [16]byte{0: 0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 96)
}

// within6 is the IPv6 address of the sandbox, or gateway, with that IPv4 address.
func within6(subnet6 netip.Prefix, a netip.Addr) netip.Addr {
	b := subnet6.Addr().As16()
	copy(b[12:], a.AsSlice())
	return netip.AddrFrom16(b)
}
