package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// attemptTimeout is how long one upstream may take before the next is
	// asked. A lost packet costs this much.
	attemptTimeout = 1500 * time.Millisecond
	// rounds is how many times each upstream is asked.
	rounds = 2
	// fairTime is how long an upstream must have had before its silence is
	// held against it.
	fairTime = 500 * time.Millisecond
	// coolDown is how long an upstream that didn't answer is asked last.
	coolDown = 10 * time.Second
	// udpSize is the largest UDP message that we ask for or send: what fits
	// one packet on nearly every path (DNS flag day 2020).
	udpSize = 1232
	// maxStray is how many datagrams that don't answer the question are
	// skipped before an attempt is given up.
	maxStray = 16
)

// upstream is a resolver that we ask.
type upstream struct {
	addr netip.AddrPort
	// silentUntil is when an upstream that failed is worth a try again, in
	// nanoseconds of Unix time; 0 while it answers.
	silentUntil atomic.Int64
}

var errNoUpstream = errors.New("the host has no DNS resolver configured")

// forward asks upstream until somebody gives a usable answer or the context
// ends. An answer of SERVFAIL, REFUSED or NOTIMP counts as usable only when
// nobody has a better one.
//
// stream says that the answer may be of any length; otherwise one that was cut
// to the size of a datagram is good enough.
func forward(ctx context.Context, list []*upstream, q *dns.Msg, stream bool, log *slog.Logger) (*dns.Msg, error) {
	if len(list) == 0 {
		return nil, errNoUpstream
	}
	var poor *dns.Msg
	var lastErr error
	for range rounds {
		lost := false
		for _, up := range byHealth(list) {
			began := time.Now()
			answer, err := up.ask(ctx, q, stream)
			switch {
			case err != nil && ctx.Err() != nil && time.Since(began) < fairTime:
				// Our time was up; that says nothing about the upstream.
				return nil, err
			case err != nil:
				up.note(err, log)
				lastErr, lost = err, lost || isTimeout(err)
			case isPoor(answer.Rcode):
				up.note(nil, log)
				poor = answer
			default:
				up.note(nil, log)
				return answer, nil
			}
			if ctx.Err() != nil {
				break
			}
		}
		// Another round helps against lost packets only.
		if poor != nil || !lost || ctx.Err() != nil {
			break
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, lastErr
}

// isPoor finds answers that say more about the resolver than about the name.
func isPoor(rcode int) bool {
	return rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused || rcode == dns.RcodeNotImplemented
}

// byHealth puts the upstreams that recently failed last, else keeps the order.
func byHealth(list []*upstream) []*upstream {
	now := time.Now().UnixNano()
	out := make([]*upstream, 0, len(list))
	for _, up := range list {
		if up.silentUntil.Load() <= now {
			out = append(out, up)
		}
	}
	for _, up := range list {
		if len(out) == len(list) {
			break
		}
		if up.silentUntil.Load() > now {
			out = append(out, up)
		}
	}
	return out
}

// note remembers whether the upstream answers and logs when that changes.
func (u *upstream) note(err error, log *slog.Logger) {
	if err == nil {
		if u.silentUntil.Swap(0) != 0 {
			log.Info("DNS upstream answers again", "upstream", u.addr)
		}
		return
	}
	if u.silentUntil.Swap(time.Now().Add(coolDown).UnixNano()) == 0 {
		log.Warn("DNS upstream does not answer", "upstream", u.addr, "error", err)
	}
}

// ask makes one attempt: by UDP, and by TCP if the answer was cut and the caller
// can take a longer one. A resolver that is too old for EDNS is asked without.
func (u *upstream) ask(ctx context.Context, q *dns.Msg, stream bool) (*dns.Msg, error) {
	answer, err := u.exchange(ctx, "udp", q)
	if err == nil && answer.Rcode == dns.RcodeFormatError && answer.IsEdns0() == nil && len(q.Extra) > 0 {
		plain := *q
		plain.Extra = nil
		q = &plain
		answer, err = u.exchange(ctx, "udp", q)
	}
	if err != nil || !answer.Truncated || !stream {
		return answer, err
	}
	whole, err := u.exchange(ctx, "tcp", q)
	if err != nil {
		return nil, err
	}
	return whole, nil
}

// exchange sends the question from a socket of its own, so from a port that
// can't be guessed, and waits for the answer to it.
func (u *upstream) exchange(ctx context.Context, network string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, network, u.addr.String())
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: raw, UDPSize: udpSize}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	sent := *q
	sent.Id = dns.Id()
	if err := conn.WriteMsg(&sent); err != nil {
		return nil, err
	}
	for range maxStray {
		answer, err := conn.ReadMsg()
		switch {
		case err == nil && isAnswerTo(&sent, answer):
			return answer, nil
		case err != nil && (network != "udp" || !isMalformed(err)):
			return nil, err
		case network != "udp":
			return nil, errors.New("the upstream answered another question")
		}
		// On UDP anybody on the path can send rubbish; wait for the real
		// one.
	}
	return nil, errors.New("the upstream sent too many messages that answer nothing")
}

// isMalformed tells errors of parsing a message from those of the socket.
func isMalformed(err error) bool {
	var netErr net.Error
	return !errors.As(err, &netErr)
}

func isTimeout(err error) bool {
	var netErr net.Error
	return errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &netErr) && netErr.Timeout())
}

// isAnswerTo compares what an answer has to repeat. Names are compared without
// case: some resolvers change it.
func isAnswerTo(q, a *dns.Msg) bool {
	return a.Response && a.Id == q.Id && a.Opcode == q.Opcode && len(a.Question) == 1 &&
		a.Question[0].Qtype == q.Question[0].Qtype && a.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(a.Question[0].Name, q.Question[0].Name)
}
