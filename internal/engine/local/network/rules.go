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

// Offsets in the IPv4 header (RFC 791).
const (
	srcOffset = 12
	dstOffset = 16
)

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

func (t *table) ipv4(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
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

// load puts the address at offset of an IPv4 header into register 1.
func (t *table) load(offset uint32) []expr.Any {
	return append(t.ipv4(expr.CmpOpEq),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4})
}

func (t *table) inSubnet(offset uint32) []expr.Any {
	return append(t.load(offset),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(t.subnet.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: t.subnet.Addr().AsSlice()})
}

func (t *table) dstIs(a netip.Addr) []expr.Any {
	return append(t.load(dstOffset), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})
}

func (t *table) dstIn(set *nftables.Set) []expr.Any {
	return append(t.load(dstOffset), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
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

// over matches when the packet's IPv4 source has more than max connections. The
// kernel keeps the count, in the set.
func over(set *nftables.Set, limit uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: srcOffset, Len: 4},
		&expr.Dynset{
			SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_ADD,
			Exprs: []expr.Any{&expr.Connlimit{Count: limit, Flags: expr.NFT_CONNLIMIT_F_INV}},
		},
	}
}
