package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The pieces of rules. Each piece is a list of the kernel's expressions, which
// leave a value in register 1 and compare it there; a rule goes on to its next
// piece while comparisons hold.

func (t *table) hook(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return t.c.AddChain(&nftables.Chain{Name: name, Table: t.Table, Type: typ, Hooknum: hook, Priority: prio, Policy: &policy})
}

func (t *table) chain(name string) *nftables.Chain {
	return t.c.AddChain(&nftables.Chain{Name: name, Table: t.Table})
}

func (t *table) rule(chain *nftables.Chain, pieces ...[]expr.Any) {
	t.c.AddRule(&nftables.Rule{Table: t.Table, Chain: chain, Exprs: slices.Concat(pieces...)})
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func jump(to *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}
}

// in and out match packets that come from and go to sandboxes.
func (t *table) in() []expr.Any  { return ifPrefix(expr.MetaKeyIIFNAME, t.prefix) }
func (t *table) out() []expr.Any { return ifPrefix(expr.MetaKeyOIFNAME, t.prefix) }

// ifPrefix matches interfaces by the beginning of their name: only as many
// bytes as are given are compared.
func ifPrefix(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)},
	}
}

// lo matches the loopback interface; the whole name is compared.
func (t *table) lo(key expr.MetaKey) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return ifPrefix(key, string(name))
}

// only matches packets of the family.
func (f *family) only() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.number}},
	}
}

// spoofed matches packets to whose source the host would send by another
// interface than the one they came from.
func (t *table) spoofed() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// routed matches packets of IPv6 with a routing header (IPPROTO_ROUTING).
func routed() []expr.Any {
	const present = 1 // NFT_EXTHDR_F_PRESENT
	return []expr.Any{
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_ROUTING, Offset: 0, Len: 1, Flags: present, Op: expr.ExthdrOpIpv6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
	}
}

// load puts some of the header of a packet of the family into register 1.
func (f *family) load(offset, size uint32) []expr.Any {
	return append(f.only(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
}

// inSubnet matches packets of the family whose address at the offset is one of a
// sandbox or the gateway, and notInSubnet the others.
func (f *family) inSubnet(offset uint32) []expr.Any    { return f.subnetIs(offset, expr.CmpOpEq) }
func (f *family) notInSubnet(offset uint32) []expr.Any { return f.subnetIs(offset, expr.CmpOpNeq) }

func (f *family) subnetIs(offset uint32, op expr.CmpOp) []expr.Any {
	return append(f.load(offset, f.size),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size,
			Mask: net.CIDRMask(f.subnet.Bits(), int(f.size)*8), Xor: make([]byte, f.size)},
		&expr.Cmp{Op: op, Register: 1, Data: f.subnet.Addr().AsSlice()})
}

func (f *family) destinationIs(a netip.Addr) []expr.Any {
	return append(f.load(f.destination, f.size), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func (f *family) destinationIn(set *nftables.Set) []expr.Any {
	return append(f.load(f.destination, f.size), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

// selfIn matches packets whose source is in a set of sandboxes, or isn't.
func (f *family) selfIn(set *nftables.Set, is bool) []expr.Any {
	return append(f.load(f.self, selfSize), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: !is})
}

// pairIn matches packets whose source and destination, which stand next to each
// other in the header, are in the set.
func (f *family) pairIn(set *nftables.Set) []expr.Any {
	return append(f.load(f.self, f.keySize()), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

// state matches packets whose connection is in one of the states.
func state(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// reply matches packets that go against the direction of their connection's
// first (IP_CT_DIR_REPLY).
func reply() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
	}
}

func port(protocol byte, number uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, number)},
	}
}

// over matches when the packet's source has more than limit connections, of both
// families. The kernel keeps the count, in the set.
func (f *family) over(set *nftables.Set, limit uint32) []expr.Any {
	return append(f.load(f.self, selfSize), &expr.Dynset{
		SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV}},
	})
}
