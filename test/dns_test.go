package test

import (
	"net"
	"strings"

	"github.com/miekg/dns"
)

// knownName is the one name that the tests' upstream resolver knows.
const (
	knownName    = "known.paddock.test."
	knownAddress = "198.51.100.7" // RFC 5737
)

// startUpstream starts a resolver on loopback for the life of the process and
// returns its address.
func startUpstream() (string, error) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if len(q.Question) != 1 || !strings.EqualFold(q.Question[0].Name, knownName) {
			m.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
				A:   net.ParseIP(knownAddress),
			}}
		}
		_ = w.WriteMsg(m)
	})
	go func() { _ = (&dns.Server{PacketConn: pc, Handler: handler}).ActivateAndServe() }()
	return pc.LocalAddr().String(), nil
}
