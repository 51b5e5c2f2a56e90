package egress

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	// headerSize is that of a DNS message (RFC 1035, 4.1.1), in bytes.
	headerSize = 12
	// maxQuery is the largest question that is read, in bytes. A name has at
	// most 255, and what else belongs to a question is a few options.
	maxQuery = 4096
	// maxReason is how much of a reason is sent, in bytes.
	maxReason = 200
)

// query is a question that has been checked.
type query struct {
	msg    *dns.Msg
	src    netip.Addr
	port   uint16
	stream bool // came by TCP
}

// parse checks what a sandbox sent. A nil query with an answer means that the
// answer is all there is to do; with none, that the message deserves none.
func parse(raw []byte, from netip.AddrPort, stream bool) (*query, []byte) {
	// Answering an answer could go on for ever between two servers.
	if len(raw) < headerSize || raw[2]&0x80 != 0 {
		return nil, nil
	}
	msg := new(dns.Msg)
	if opcode := int(raw[2]>>3) & 0xf; opcode != dns.OpcodeQuery {
		return nil, headerOnly(raw, dns.RcodeNotImplemented)
	}
	if err := msg.Unpack(raw); err != nil || len(msg.Question) != 1 ||
		len(msg.Answer) > 0 || len(msg.Ns) > 0 || tooManyOPT(msg) {
		return nil, headerOnly(raw, dns.RcodeFormatError)
	}
	q := &query{msg: msg, src: from.Addr(), port: from.Port(), stream: stream}
	switch question := msg.Question[0]; {
	case msg.IsEdns0() != nil && msg.IsEdns0().Version() != 0:
		return nil, q.fail(dns.RcodeBadVers, 0, "")
	case question.Qclass != dns.ClassINET:
		// CHAOS would ask the host's resolver about itself.
		return nil, q.fail(dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, "only the internet class is served")
	case question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		return nil, q.fail(dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, "zone transfers are not served")
	}
	return q, nil
}

// tooManyOPT finds messages with more than the one OPT record that RFC 6891
// (6.1.1) allows.
func tooManyOPT(m *dns.Msg) bool {
	n := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n > 1
}

// headerOnly answers a message that couldn't be understood with its header and
// no question.
func headerOnly(raw []byte, rcode int) []byte {
	out := make([]byte, headerSize)
	copy(out, raw[:4])
	out[2] = raw[2]&0x79 | 0x80 // keep opcode and recursion desired; an answer
	out[3] = byte(rcode)
	return out
}

// answer does what a question asks for: it consults the policy, then upstream.
// It answers in every case.
func (r *Resolver) answer(ctx context.Context, q *query) []byte {
	var v Verdict
	if r.opts.Decide != nil {
		v = r.opts.Decide(Asker{At: netip.AddrPortFrom(q.src, q.port), Stream: q.stream}, q.msg.Question[0])
	}
	switch v.Action {
	case Allow:
	case Empty:
		r.stats.answered.Add(1)
		return q.fail(dns.RcodeSuccess, dns.ExtendedErrorCodeFiltered, v.Reason)
	case NameError:
		r.stats.denied.Add(1)
		return q.fail(dns.RcodeNameError, dns.ExtendedErrorCodeProhibited, v.Reason)
	default:
		r.stats.denied.Add(1)
		return q.fail(dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, v.Reason)
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	got, err := forward(ctx, r.upstreams.current(), q.upstream(), q.stream, r.log)
	if err != nil {
		r.stats.failed.Add(1)
		if errors.Is(err, errNoUpstream) {
			return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady, err.Error())
		}
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, "no DNS resolver of the host answers")
	}
	if v.Strict {
		return r.strict(ctx, q, got)
	}
	r.stats.answered.Add(1)
	return q.reply(got)
}

// upstream is the question to send on: written anew, so that nothing travels
// with it but the name, its type, and the flags that change an answer.
func (q *query) upstream() *dns.Msg {
	out := new(dns.Msg)
	out.RecursionDesired = q.msg.RecursionDesired
	out.CheckingDisabled = q.msg.CheckingDisabled
	out.AuthenticatedData = q.msg.AuthenticatedData
	out.Question = []dns.Question{q.msg.Question[0]}
	dnssec := false
	if opt := q.msg.IsEdns0(); opt != nil {
		dnssec = opt.Do()
	}
	out.SetEdns0(udpSize, dnssec)
	return out
}

// reply turns an upstream's answer into ours.
func (q *query) reply(got *dns.Msg) []byte {
	out := new(dns.Msg)
	out.MsgHdr = got.MsgHdr
	if got.Rcode > 0xf {
		// Between us and the upstream only (a bad version, a bad cookie).
		out.Rcode = dns.RcodeServerFailure
	}
	out.Answer, out.Ns = got.Answer, got.Ns
	var extended *dns.EDNS0_EDE
	for _, rr := range got.Extra {
		opt, ok := rr.(*dns.OPT)
		if !ok {
			out.Extra = append(out.Extra, rr)
			continue
		}
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				extended = &dns.EDNS0_EDE{InfoCode: e.InfoCode, ExtraText: shorten(e.ExtraText)}
			}
		}
	}
	return q.pack(out, extended)
}

// fail answers without upstream. The reason and its code (RFC 8914) are sent if
// the reason isn't empty and the question allows for one.
func (q *query) fail(rcode int, code uint16, reason string) []byte {
	out := new(dns.Msg)
	out.Rcode = rcode
	out.RecursionAvailable = true
	var extended *dns.EDNS0_EDE
	if reason != "" {
		extended = &dns.EDNS0_EDE{InfoCode: code, ExtraText: shorten(reason)}
	}
	return q.pack(out, extended)
}

// pack completes an answer to the question and writes it, cut to what the asker
// can take.
func (q *query) pack(out *dns.Msg, extended *dns.EDNS0_EDE) []byte {
	out.Id = q.msg.Id
	out.Response = true
	out.Opcode = dns.OpcodeQuery
	out.RecursionDesired = q.msg.RecursionDesired
	out.CheckingDisabled = q.msg.CheckingDisabled
	out.Question = []dns.Question{q.msg.Question[0]}
	out.Compress = true

	size := dns.MinMsgSize
	if opt := q.msg.IsEdns0(); opt != nil {
		size = max(size, min(int(opt.UDPSize()), udpSize))
		out.SetEdns0(udpSize, opt.Do())
		if extended != nil {
			own := out.IsEdns0()
			own.Option = append(own.Option, extended)
		}
	}
	if q.stream {
		size = dns.MaxMsgSize
	}
	out.Truncate(size)
	raw, err := out.Pack()
	if err == nil && len(raw) <= size {
		return raw
	}
	// A record that can be read but not written, or whose length was
	// misjudged. Its sender is to blame, not the asker.
	empty := new(dns.Msg)
	empty.SetRcode(q.msg, dns.RcodeServerFailure)
	if err == nil {
		empty.Rcode, empty.Truncated = dns.RcodeSuccess, true
	}
	if raw, err = empty.Pack(); err != nil {
		return nil
	}
	return raw
}

// shorten keeps a text for people within bounds and to one line of valid UTF-8.
func shorten(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	s = strings.ToValidUTF8(s, "")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
