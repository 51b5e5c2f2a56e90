package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Protocol is what the first bytes of a connection are.
type Protocol string

// Protocols.
const (
	// Unknown is the protocol before the first bytes, and of a client that
	// never sends any.
	Unknown Protocol = ""
	TLS     Protocol = "tls"
	HTTP1   Protocol = "http"
	HTTP2   Protocol = "http2"
	Opaque  Protocol = "tcp"
)

// Claim is what a connection, or a request on one, says about itself.
type Claim struct {
	// To is where the connection goes.
	To netip.AddrPort
	// Name is the server's name in lower case and without a final dot; empty
	// when nothing names it.
	Name string
	// Protocol tells how the name was found.
	Protocol Protocol
	// Bound says that this connection was allowed with this name before, so
	// that the age of the name's answer matters no longer.
	Bound bool
}

// Verdict is the decision about a claim.
type Verdict struct {
	Allow bool
	// Rule is the number of the rule that decided, -1 for the default.
	Rule int
	// Name is the name that a connection is allowed by which gives none.
	Name string
	// Named says that a rule allows the name of the claim, and that the address
	// was given to the sandbox as one of it.
	Named bool
	// Reason says why something is denied, to the user and to the sandbox.
	Reason string
	// Request, if not nil, decides about each HTTP request: it returns why
	// one is denied, or "". It must be safe for concurrent use. target is the
	// path and query as sent.
	Request func(method, target string) string
}

// Judge decides. Its methods are called from many goroutines and must not
// block.
type Judge interface {
	// Sandbox is the id of the sandbox with that address.
	Sandbox(src netip.Addr) (id string, ok bool)
	// Judge decides about a claim. An Unknown protocol asks whether anything
	// at all could be allowed there.
	Judge(src netip.Addr, claim Claim) Verdict
}

// Interceptor takes connections over whose bytes must be looked into or changed.
type Interceptor interface {
	// Wants is asked for each connection over TLS or HTTP/1 that is allowed,
	// before anything of the client was passed on. Connections over TLS with
	// conditions on requests it gets unasked, and those over HTTP2, whose
	// requests it has c.Judge decide about. It is called from many goroutines and
	// must not block.
	Wants(sandbox, name string, port uint16) bool
	// Serve handles the connection until it ends, and closes it; c.Read begins
	// with the client's first byte. dial connects to c.Original and nowhere
	// else; the first call may return a connection that is open already. ctx
	// ends with the proxy, with the sandbox, and when a changed policy forbids
	// the connection; c is closed then, too.
	Serve(ctx context.Context, c *Conn, dial func(ctx context.Context) (net.Conn, error))
}

// Denial is a connection or request that was refused.
type Denial struct {
	Sandbox string
	// Source is the sandbox's end, To the destination that was asked for.
	Source, To netip.AddrPort
	Claim      Claim
	Rule       int
	Reason     string
}

// Options configure a Proxy. Listeners and Judge are required.
type Options struct {
	// Listeners are where the packet filter sends connections. The Proxy closes
	// them.
	Listeners []*net.TCPListener
	Judge     Judge
	// Identify turns the address that a connection comes from into the one that
	// its sandbox is known by; nil where each has one address only.
	Identify func(netip.Addr) netip.Addr
	// Interceptor may be nil.
	Interceptor Interceptor
	// Denied is told of each refusal. It must not block. It may be nil.
	Denied func(Denial)
	// Original finds where a connection was to go; nil asks the kernel's
	// connection tracking.
	Original func(*net.TCPConn) (netip.AddrPort, error)
	// MaxConns bounds the connections at a time (default 16384), and
	// MaxConnsPerSandbox those of one address (default 1024). One beyond them
	// is reset.
	MaxConns, MaxConnsPerSandbox int
	// DialTimeout bounds the connecting (default 10 s).
	DialTimeout time.Duration
	// FirstByteTimeout is how long a client may be silent at first (default 5
	// min), HelloTimeout how long its first message may take from its first
	// byte (default 10 s).
	FirstByteTimeout, HelloTimeout time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

func (o *Options) complete() error {
	if len(o.Listeners) == 0 || o.Judge == nil {
		return errors.New("proxy: a listener and a judge are needed")
	}
	if o.Original == nil {
		o.Original = originalDestination
	}
	if o.Denied == nil {
		o.Denied = func(Denial) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, n := range []struct {
		name  string
		value *int
		def   int
	}{{"MaxConns", &o.MaxConns, 16384}, {"MaxConnsPerSandbox", &o.MaxConnsPerSandbox, 1024}} {
		if *n.value < 0 {
			return fmt.Errorf("proxy: %s is %d: it must be positive, or 0 for %d", n.name, *n.value, n.def)
		}
		if *n.value == 0 {
			*n.value = n.def
		}
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&o.DialTimeout, 10 * time.Second},
		{&o.FirstByteTimeout, 5 * time.Minute},
		{&o.HelloTimeout, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	return nil
}
