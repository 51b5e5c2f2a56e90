package egress

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxAliases is how many aliases are followed in an answer. Resolvers stop
	// at 8 to 16.
	maxAliases = 16
	// maxAddresses is how many addresses of one answer are passed on; more fit
	// no datagram.
	maxAddresses = 64
)

// strict answers with what was asked for and nothing else, once Options.Learn
// knows the addresses.
func (r *Resolver) strict(ctx context.Context, q *query, got *dns.Msg) []byte {
	question := q.msg.Question[0]
	out := &dns.Msg{MsgHdr: got.MsgHdr}
	out.AuthenticatedData = false // what is left out can't be verified
	if got.Rcode != dns.RcodeSuccess && got.Rcode != dns.RcodeNameError {
		out.Rcode = dns.RcodeServerFailure
		if isPoor(got.Rcode) {
			out.Rcode = got.Rcode
		}
		r.stats.failed.Add(1)
		return q.pack(out, nil)
	}
	if got.Rcode == dns.RcodeNameError {
		r.stats.answered.Add(1)
		return q.pack(out, nil)
	}
	ttl := MaxTTL
	for _, rr := range relevant(got.Answer, question) {
		if h := rr.Header(); time.Duration(h.Ttl)*time.Second > MaxTTL {
			h.Ttl = uint32(MaxTTL / time.Second)
		}
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		out.Answer = append(out.Answer, rr)
	}
	addrs := addresses(out.Answer)
	if len(addrs) == 0 || r.opts.Learn == nil {
		r.stats.answered.Add(1)
		return q.pack(out, nil)
	}
	kept, err := r.opts.Learn(ctx, q.src, question.Name, addrs, ttl)
	if err != nil {
		r.stats.failed.Add(1)
		return q.fail(dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "the addresses of this name could not be opened; ask again later")
	}
	out.Answer = slices.DeleteFunc(out.Answer, func(rr dns.RR) bool {
		a, ok := addressOf(rr)
		return ok && !slices.Contains(kept, a)
	})
	if len(kept) == 0 {
		r.stats.denied.Add(1)
		return q.fail(dns.RcodeSuccess, dns.ExtendedErrorCodeFiltered, "no address of this name may be reached from this sandbox")
	}
	r.stats.answered.Add(1)
	return q.pack(out, nil)
}

// relevant are the records of the type that was asked for, behind the aliases
// that lead to them.
func relevant(list []dns.RR, q dns.Question) []dns.RR {
	var out []dns.RR
	name := q.Name
	for range maxAliases {
		var alias *dns.CNAME
		for _, rr := range list {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
				continue
			}
			if h.Rrtype == q.Qtype {
				out = append(out, rr)
			} else if c, ok := rr.(*dns.CNAME); ok && alias == nil {
				alias = c
			}
		}
		if alias == nil {
			return out
		}
		out = append(out, alias)
		name = alias.Target
	}
	return out
}

// addresses are those of the records, each once.
func addresses(list []dns.RR) []netip.Addr {
	var out []netip.Addr
	for _, rr := range list {
		if a, ok := addressOf(rr); ok && len(out) < maxAddresses && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func addressOf(rr dns.RR) (netip.Addr, bool) {
	var a netip.Addr
	var ok bool
	switch rr := rr.(type) {
	case *dns.A:
		a, ok = netip.AddrFromSlice(rr.A)
		a = a.Unmap()
	case *dns.AAAA:
		// Not unmapped: a mapped address in an AAAA record is an oddity
		// that nobody gets.
		a, ok = netip.AddrFromSlice(rr.AAAA)
	}
	return a, ok
}
