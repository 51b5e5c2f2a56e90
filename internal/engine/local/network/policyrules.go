package network

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ports with a meaning for policies.
const (
	mdnsPort = 5353
	dotPort  = 853 // DNS over TLS, DTLS and QUIC (RFC 7858, 8094, 9250)
	quicPort = 443
)

const (
	// Denials are reported at most so many times a second for each sandbox.
	reportRate  = 10
	reportBurst = 20
	// reportBytes is how much of a packet is reported: the headers.
	reportBytes = 80
	// reportMemory is how long the kernel remembers the rate of a silent one.
	reportMemory = time.Minute
)

// The chains for sandboxes with a policy, as nft would print them for IPv4:
//
//	set policed { type ipv4_addr; }      # sandboxes with a policy
//	set permissive { type ipv4_addr; }   # of those, allowed by default
//	set inspect { type ipv4_addr; }      # of those, all TCP to the proxy
//	set opened-0 { type sandbox . address; flags interval; }   # in parts 0 to 15
//	set closed-0 { type sandbox . address; flags interval; }
//	set learned { type ipv4_addr . ipv4_addr; flags timeout; }
//	set datagrams { type ipv4_addr . ipv4_addr; flags timeout; }   # of those, over UDP
//	set talkative { type ipv4_addr; flags dynamic,timeout; timeout 1m; }
//
//	chain refuse {
//		update @talkative { ip saddr limit rate 10/second burst 20 } log group N
//		meta l4proto tcp reject with tcp reset
//		reject with icmpx admin-prohibited
//	}
//	chain policed {
//		oifname "pd0-*" goto refuse
//		ip daddr 10.213.0.0/20 goto refuse
//		meta l4proto { tcp, udp } th dport 853 goto refuse
//		meta l4proto udp ip saddr . ip daddr @datagrams udp dport != { 443, 53, 5353 } accept
//		meta l4proto tcp ip saddr @inspect goto refuse
//		ip saddr & 0.0.0.15 vmap @policed-closed     # jump policed-closed-N
//		meta l4proto { tcp, udp } ip saddr & 0.0.0.15 vmap @policed-opened
//		ip saddr != @permissive goto refuse
//		ip saddr @inspect meta l4proto udp udp dport { 443, 53, 5353 } goto refuse
//		ip daddr @allowed accept
//		ip daddr @denied goto refuse
//		accept
//	}
//	chain policed-closed-0 {
//		ip saddr . ip daddr @closed-0 goto refuse
//	}
//	chain policed-opened-0 {
//		ip saddr . ip daddr @opened-0 accept
//	}
//	chain divert {
//		type nat hook prerouting priority dstnat;
//		iifname "pd0-*" ip saddr @policed meta l4proto tcp fib daddr type != local goto proxied
//	}
//	chain proxied {
//		ip daddr 10.213.0.0/20 return
//		tcp dport 853 return
//		tcp dport 53 ip saddr @inspect ip saddr & 0.0.0.15 vmap @proxied-opened
//		tcp dport 53 return
//		ip saddr . ip daddr @learned dnat ip to GATEWAY:PORT
//		ip saddr != @inspect return
//		ip saddr & 0.0.0.15 vmap @proxied-closed     # accept, which leaves it as it is
//		ip saddr & 0.0.0.15 vmap @proxied-opened     # dnat ip to GATEWAY:PORT
//		ip saddr != @permissive return
//		ip daddr @allowed dnat ip to GATEWAY:PORT
//		ip daddr @denied return
//		dnat ip to GATEWAY:PORT
//	}
//
// In "policed" the learned addresses come before the closed ranges: an address
// is learned only if the first rule that fits its name or itself allows it, so a
// rule about a name that stands before one about a range wins.
//
// Other resolvers are reached only where a rule about addresses opens them: port
// 53 is neither learned nor allowed by default to a sandbox whose names are
// judged, over UDP or TCP.
//
// TCP to learned addresses never gets as far as "policed", for it goes to the
// proxy; what "divert" returns does, and is judged there. Destination "local"
// is excepted first: those are the host's own addresses, where the proxy, which
// is on the host, must never connect on a sandbox's behalf.
func (t *table) policedChain(n *Network, f *family, refuse *nftables.Chain) *nftables.Chain {
	policed := t.chain("policed" + f.suffix)
	var (
		isInspected    = f.selfIn(n.inspectSet(), true)
		refuseClosed   = t.ifInShard(f, policed.Name+"-closed", n.closedSet, goTo(refuse))
		acceptIfOpened = t.ifInShard(f, policed.Name+"-opened", n.openedSet, accept())
	)
	t.rule(policed, t.out(), goTo(refuse))
	t.rule(policed, f.inSubnet(f.destination), goTo(refuse))
	t.rule(policed, port(unix.IPPROTO_TCP, dotPort), goTo(refuse))
	t.rule(policed, port(unix.IPPROTO_UDP, dotPort), goTo(refuse))
	t.rule(policed, f.pairIn(n.datagramsSet(f)), notPort(unix.IPPROTO_UDP, quicPort, dnsPort, mdnsPort), accept())
	t.rule(policed, protocol(unix.IPPROTO_TCP), isInspected, goTo(refuse))
	t.rule(policed, refuseClosed)
	t.rule(policed, protocol(unix.IPPROTO_TCP), acceptIfOpened)
	t.rule(policed, protocol(unix.IPPROTO_UDP), acceptIfOpened)
	t.rule(policed, f.selfIn(n.permissiveSet(), false), goTo(refuse))
	for _, p := range []uint16{quicPort, dnsPort, mdnsPort} {
		t.rule(policed, isInspected, port(unix.IPPROTO_UDP, p), goTo(refuse))
	}
	t.rule(policed, f.destinationIn(n.allowedSet(f)), accept())
	for _, set := range n.shutSets(f) {
		t.rule(policed, f.destinationIn(set), goTo(refuse))
	}
	t.rule(policed, accept())
	return policed
}

// refuseChain tells of a packet, and its sender that it is refused.
func (t *table) refuseChain(n *Network) *nftables.Chain {
	refuse := t.chain("refuse")
	if n.reportGroup != 0 {
		for _, f := range n.families() {
			t.rule(refuse, f.quietly(n.talkativeSet()), report(n.reportGroup))
		}
	}
	t.rule(refuse, protocol(unix.IPPROTO_TCP), reject(unix.NFT_REJECT_TCP_RST, 0))
	t.rule(refuse, reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
	return refuse
}

// divertChains send to the proxy what it has to look at. Without one nobody checks
// names, so nobody is let through on account of one: "policed" refuses what is not
// opened by address.
func (t *table) divertChains(n *Network) {
	divert := t.hook("divert", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	if n.proxyPort == 0 {
		return
	}
	for _, f := range n.families() {
		proxied := t.proxiedChain(n, f)
		t.rule(divert, t.in(), f.selfIn(n.policedSet(), true), protocol(unix.IPPROTO_TCP), foreign(), goTo(proxied))
	}
}

func (t *table) proxiedChain(n *Network, f *family) *nftables.Chain {
	proxied := t.chain("proxied" + f.suffix)
	var (
		toProxy         = f.dnat(n.proxyPort)
		leaveClosed     = t.ifInShard(f, proxied.Name+"-closed", n.closedSet, accept())
		toProxyIfOpened = t.ifInShard(f, proxied.Name+"-opened", n.openedSet, toProxy)
	)
	t.rule(proxied, f.inSubnet(f.destination), back())
	t.rule(proxied, port(unix.IPPROTO_TCP, dotPort), back())
	t.rule(proxied, port(unix.IPPROTO_TCP, dnsPort), f.selfIn(n.inspectSet(), true), toProxyIfOpened)
	t.rule(proxied, port(unix.IPPROTO_TCP, dnsPort), back())
	t.rule(proxied, f.pairIn(n.learnedSet(f)), toProxy)
	t.rule(proxied, f.selfIn(n.inspectSet(), false), back())
	t.rule(proxied, leaveClosed)
	t.rule(proxied, toProxyIfOpened)
	t.rule(proxied, f.selfIn(n.permissiveSet(), false), back())
	t.rule(proxied, f.destinationIn(n.allowedSet(f)), toProxy)
	for _, set := range n.shutSets(f) {
		t.rule(proxied, f.destinationIn(set), back())
	}
	t.rule(proxied, toProxy)
	return proxied
}

// ifInShard is the end of a rule that looks a packet up in its sandbox's part of a
// set, and does what then says if it is there. It makes a chain for each part, and
// a map from the last bits of a sandbox's address to them.
func (t *table) ifInShard(f *family, name string, set func(*family, int) *nftables.Set, then []expr.Any) []expr.Any {
	nibble := nftables.TypeInteger
	nibble.Bytes = 1
	t.maps++
	toChain := &nftables.Set{Table: t.Table, Name: name, ID: shardMapsID + t.maps + f.ids, IsMap: true,
		KeyType: nibble, DataType: nftables.TypeVerdict}
	var elements []nftables.SetElement
	for shard := range shards {
		chain := t.chain(fmt.Sprintf("%s-%d", name, shard))
		t.rule(chain, f.pairIn(set(f, shard)), then)
		elements = append(elements, nftables.SetElement{
			Key: []byte{byte(shard)}, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name},
		})
	}
	if err := t.c.AddSet(toChain, elements); err != nil && t.err == nil {
		t.err = fmt.Errorf("making the map %s: %w", name, err)
	}
	return append(f.load(f.self+selfSize-1, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{shards - 1}, Xor: []byte{0}},
		&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: toChain.Name, SetID: toChain.ID})
}

func goTo(to *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to.Name}}
}

func back() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

func reject(typ uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: typ, Code: code}}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// notPort matches packets of the protocol to none of the ports.
func notPort(number byte, ports ...uint16) []expr.Any {
	list := append(protocol(number),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	for _, p := range ports {
		list = append(list, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, p)})
	}
	return list
}

// foreign matches packets to addresses that are not the host's own (RTN_LOCAL).
func foreign() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// dnat sends the connection to the proxy.
func (f *family) dnat(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: f.gateway.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: 1, RegProtoMin: 2},
	}
}

// diverted matches packets of connections that were sent to another address
// than they asked for (IPS_DST_NAT, nf_conntrack_common.h).
func diverted() []expr.Any {
	const dstNAT = 1 << 5
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// quietly matches while the packet's source is within its rate.
func (f *family) quietly(set *nftables.Set) []expr.Any {
	return append(f.load(f.self, selfSize), &expr.Dynset{
		SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: reportRate, Unit: expr.LimitTimeSecond, Burst: reportBurst}},
	})
}

func report(group uint16) []expr.Any {
	return []expr.Any{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN,
		Group: group, Snaplen: reportBytes,
	}}
}
