package enforce

import (
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
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
}

// Denials are those of all sandboxes. One that nobody takes in time is counted
// by Lost and forgotten.
func (e *Enforcer) Denials() <-chan Denial { return e.denials }

// Lost counts the denials that were not taken.
func (e *Enforcer) Lost() int64 { return e.lost.Load() }

func (e *Enforcer) report(s *sandbox, d Denial) {
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
	why := denied(d)
	switch {
	case d.Allow && to.Port() == dotPort:
		why = "encrypted DNS is not let through under a policy"
	case d.Allow:
		why = "the address or the protocol is closed to sandboxes"
	}
	e.report(s, Denial{Source: src.Port(), Protocol: protocolName(protocol), To: to, Rule: d.Rule, Reason: why})
}

const dotPort = 853

func protocolName(n byte) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	}
	return strconv.Itoa(int(n))
}
