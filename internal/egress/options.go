package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Options configure a Resolver. Listen and Sources are required.
type Options struct {
	// Listen is where to serve, over UDP and TCP each. The addresses must be
	// particular ones (no 0.0.0.0), because answers have to come from the
	// address that was asked. Port 0 takes a free port, see Resolver.Addrs.
	Listen []netip.AddrPort

	// Sources are the networks whose questions are answered. Packets and
	// connections from elsewhere are dropped without an answer.
	Sources []netip.Prefix

	// Upstreams are the resolvers to ask, in order of preference: addresses
	// with or without a port (53). Empty means those of ResolvConf.
	Upstreams []string

	// ResolvConf is the file that lists the host's resolvers, by default
	// /etc/resolv.conf. It is read again whenever it has changed.
	ResolvConf string

	// Timeout bounds the answer to one question, all attempts included.
	// Default 4 s: less than the 5 s after which stub resolvers ask again.
	Timeout time.Duration

	// MaxInflight bounds the questions being answered at a time (default
	// 1024), MaxInflightPerSource those of one source address (default 64).
	// A question beyond them is answered SERVFAIL at once.
	MaxInflight          int
	MaxInflightPerSource int

	// MaxConns bounds the open TCP connections (default 256) and
	// MaxConnsPerSource those of one source address (default 8). A
	// connection beyond them is closed.
	MaxConns          int
	MaxConnsPerSource int

	// Decide is asked about every question before anything is sent
	// upstream. nil allows all. It is called from many goroutines at once
	// and must not block, but for some milliseconds before a refusal. The name
	// is as the sandbox spelt it: in any case of letters, fully qualified.
	Decide func(from Asker, q dns.Question) Verdict

	// Learn is told the addresses of a name before a sandbox is, if its Verdict
	// was Strict, and returns those that the sandbox may know. The answer waits
	// for it; an error makes it SERVFAIL. The name is the one that was asked for,
	// also when others lead from it to the addresses. The sandbox may use the
	// addresses for ttl, at most MaxTTL. nil keeps all.
	Learn func(ctx context.Context, src netip.Addr, name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error)

	// Logger gets one line when an upstream stops or starts answering.
	// Default slog.Default(). Names that sandboxes ask for are not logged.
	Logger *slog.Logger
}

// Asker is who asked a question. Its socket is open for as long as the answer is
// held back, unless it has given up.
type Asker struct {
	// At is the address of the sandbox, and the port of the socket in it.
	At netip.AddrPort
	// Stream is set when it asked over TCP.
	Stream bool
}

// Action is what to do with a question. The zero value allows it.
type Action int

const (
	// Allow asks upstream.
	Allow Action = iota
	// Refuse answers REFUSED. Stub resolvers take that for a trouble of this
	// server, ask again, and report a temporary failure.
	Refuse
	// NameError answers NXDOMAIN. Programs report at once that there is no
	// such name.
	NameError
	// Empty answers that the name has no such record, without asking whether
	// there is such a name.
	Empty
)

// MaxTTL is the longest time to live in a strict answer.
const MaxTTL = 300 * time.Second

// Verdict is the decision about one question.
type Verdict struct {
	Action Action
	// Reason says why a question was not allowed. It reaches the sandbox as
	// an extended DNS error (RFC 8914) if the question allows for one, so it
	// must hold no secret.
	Reason string
	// Strict passes on of an answer only what was asked for: the records of that
	// type and the aliases that lead to them. Addresses go through Options.Learn.
	Strict bool
}

const (
	defaultResolvConf    = "/etc/resolv.conf"
	defaultTimeout       = 4 * time.Second
	defaultMaxInflight   = 1024
	defaultPerSource     = 64
	defaultMaxConns      = 256
	defaultConnPerSource = 8
	dnsPort              = 53
)

// complete checks the options and fills in defaults.
func (o *Options) complete() error {
	if len(o.Listen) == 0 {
		return errors.New("egress: no address to listen on: give the gateway address of the sandboxes' network")
	}
	for _, a := range o.Listen {
		if !a.Addr().IsValid() || a.Addr().IsUnspecified() {
			return fmt.Errorf("egress: cannot listen on %s: give a particular address of this host", a)
		}
	}
	if len(o.Sources) == 0 {
		return errors.New("egress: no source network: nobody would be answered")
	}
	for _, p := range o.Sources {
		if !p.IsValid() {
			return errors.New("egress: a source network is not valid: give an address and a prefix length, as in 10.0.0.0/20")
		}
	}
	for _, n := range []struct {
		name  string
		value *int
		def   int
	}{
		{"MaxInflight", &o.MaxInflight, defaultMaxInflight},
		{"MaxInflightPerSource", &o.MaxInflightPerSource, defaultPerSource},
		{"MaxConns", &o.MaxConns, defaultMaxConns},
		{"MaxConnsPerSource", &o.MaxConnsPerSource, defaultConnPerSource},
	} {
		if *n.value < 0 {
			return fmt.Errorf("egress: %s is %d: it must be positive, or 0 for %d", n.name, *n.value, n.def)
		}
		if *n.value == 0 {
			*n.value = n.def
		}
	}
	if o.Timeout < 0 {
		return fmt.Errorf("egress: Timeout is %s: it must be positive, or 0 for %s", o.Timeout, defaultTimeout)
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.ResolvConf == "" {
		o.ResolvConf = defaultResolvConf
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// answers says whether questions from this address are answered.
func (o *Options) answers(src netip.Addr) bool {
	for _, p := range o.Sources {
		if p.Contains(src) {
			return true
		}
	}
	return false
}
