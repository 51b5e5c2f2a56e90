package enforce

import (
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

// Denial is something that a policy refused.
type Denial struct {
	// Sandbox is its id, Address its address.
	Sandbox string
	Address netip.Addr
	// Source is the sandbox's port of a connection; 0 if there is none.
	Source uint16
	// Protocol is "dns", "tls", "http", "http2", "tcp", "udp", "icmp", or an IP
	// protocol's number.
	Protocol string
	// Name is what was asked for, if it was a name.
	Name string
	// To is where it was to go; not valid for a name that was not looked up.
	To netip.AddrPort
	// Rule is the number of the rule that decided, -1 for the default action or
	// for what no rule has a say in.
	Rule int
	// Target is that rule's.
	Target string
	Reason string
	// Audit says that it was let through all the same.
	Audit bool
	// Process is the program that asked for the name, where it was found.
	Process string
}

// Denials are those of all sandboxes. One that nobody takes in time is counted
// by Lost and forgotten, as are those of a sandbox that has too many.
func (e *Enforcer) Denials() <-chan Denial { return e.denials }

// A sandbox's denials are told so many times a second, after a burst, so that one
// sandbox does not hide those of others.
const reportRate, reportBurst = 20, 100

func (s *sandbox) mayReport(now time.Time) bool {
	s.telling.Lock()
	defer s.telling.Unlock()
	return s.told.take(now)
}

// Lost counts the denials that were not told or not taken.
func (e *Enforcer) Lost() int64 { return e.lost.Load() }

// NameAskers has find tell which program of a sandbox asks for a name that is
// about to be refused. The answer waits for it, so it must be quick; it is called
// from many goroutines at once, for denials that are told only.
func (e *Enforcer) NameAskers(find func(sandbox string, from egress.Asker) string) {
	e.asker.Store(&find)
}

// reportName is report for a name, while its asker still waits.
func (e *Enforcer) reportName(s *sandbox, from egress.Asker, d Denial) {
	if !s.mayReport(e.now()) {
		e.lost.Add(1)
		return
	}
	if find := e.asker.Load(); find != nil {
		d.Process = (*find)(s.id, from)
	}
	e.tell(s, d)
}

func (e *Enforcer) report(s *sandbox, d Denial) {
	if !s.mayReport(e.now()) {
		e.lost.Add(1)
		return
	}
	e.tell(s, d)
}

func (e *Enforcer) tell(s *sandbox, d Denial) {
	d.Sandbox, d.Address = s.id, s.addr
	if rules := s.state(); d.Rule >= 0 && rules != nil {
		if list := rules.Policy().Egress; d.Rule < len(list) {
			d.Target = list[d.Rule].Target
		}
	}
	select {
	case e.denials <- d:
	default:
		e.lost.Add(1)
	}
}

// Connection reports what the proxy refused.
func (e *Enforcer) Connection(d proxy.Denial) {
	protocol := string(d.Claim.Protocol)
	if d.Claim.Protocol == proxy.Unknown {
		protocol = string(proxy.Opaque)
	}
	s := e.find(d.Source.Addr())
	if s == nil {
		return
	}
	e.report(s, Denial{Source: d.Source.Port(), Protocol: protocol,
		Name: d.Claim.Name, To: d.To, Rule: d.Rule, Reason: d.Reason})
}

// Packet reports what the packet filter refused.
func (e *Enforcer) Packet(src netip.AddrPort, protocol byte, to netip.AddrPort) {
	s := e.find(src.Addr())
	if s == nil {
		return
	}
	rules := s.state()
	if rules == nil {
		return
	}
	d := rules.Connect("", to.Addr())
	e.report(s, Denial{Source: src.Port(), Protocol: protocolName(protocol), To: to, Rule: d.Rule, Reason: s.whyNot(d, protocol, to)})
}

// Ports that packets are not let through to although their address is allowed.
const (
	dnsPort  = 53
	quicPort = 443
	dotPort  = 853
	mdnsPort = 5353
)

// whyNot says why a packet was refused.
func (s *sandbox) whyNot(d policy.Decision, protocol byte, to netip.AddrPort) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !d.Allow && s.learned[to.Addr()] == nil {
		return denied(d)
	}
	switch udp := protocol == unix.IPPROTO_UDP; {
	case to.Port() == dotPort, to.Port() == dnsPort, udp && to.Port() == mdnsPort:
		return "other resolvers than the sandbox's own are not let through where a policy has names"
	case udp && to.Port() == quicPort:
		return "QUIC is not let through to named hosts, for its names can't be checked; use TLS over TCP"
	case !d.Allow && (udp || protocol == unix.IPPROTO_TCP):
		return "the address is no longer known by a name: look the name up again"
	}
	return "the address or the protocol is closed to sandboxes"
}

func protocolName(n byte) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return "icmp"
	}
	return strconv.Itoa(int(n))
}
