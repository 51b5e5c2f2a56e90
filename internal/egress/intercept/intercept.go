package intercept

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// Options configure an Interceptor. Authority is required.
type Options struct {
	Authority *Authority
	// Vaults may be nil: then only conditions of policies are seen to.
	Vaults *vault.Vaults
	// Roots verify destinations; nil means those of the host.
	Roots *x509.CertPool
	// HandshakeTimeout bounds the TLS handshakes with both sides together
	// (default 20 s), IdleTimeout the wait for the next request (default 10
	// min).
	HandshakeTimeout, IdleTimeout time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// Interceptor implements proxy.Interceptor.
type Interceptor struct {
	o      Options
	client tls.Config // towards destinations
	server tls.Config // towards sandboxes

	tenants tenants
	stats   counters
}

var _ proxy.Interceptor = (*Interceptor)(nil)

// Stats is a view of what an Interceptor has done.
type Stats struct {
	Conns, Requests int64
	// Injected is requests with credentials, Refused those that were not passed
	// on, Masked answers in which a credential came back.
	Injected, Refused, Masked int64
}

// New checks the options.
func New(o Options) (*Interceptor, error) {
	if o.Authority == nil {
		return nil, errors.New("intercept: an authority is needed")
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 20 * time.Second
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 10 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	i := &Interceptor{o: o}
	i.tenants.all = map[string]*list.Element{}
	i.stats.init()
	// Records are as large as they may be: one that is sent in pieces has several
	// times the cost.
	i.client = tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	i.server = tls.Config{MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	return i, nil
}

// Stats may be called at any time.
func (i *Interceptor) Stats() Stats {
	s := &i.stats
	refused := int64(0)
	for _, n := range s.refused {
		refused += n.Load()
	}
	return Stats{s.conns.Load(), s.requests.Load(), s.injected.Load(), refused, s.masked.Load()}
}

// Wants reports whether a credential of the sandbox may be meant for this name
// and port.
func (i *Interceptor) Wants(sandbox, name string, port uint16) bool {
	host := i.active(sandbox).Host(name)
	return host != nil && host.Uses(port)
}

func (i *Interceptor) active(sandbox string) *vault.Active {
	if i.o.Vaults == nil {
		return nil
	}
	return i.o.Vaults.Active(sandbox)
}

// Serve handles a connection until it ends.
func (i *Interceptor) Serve(ctx context.Context, c *proxy.Conn, dial func(context.Context) (net.Conn, error)) {
	i.stats.conns.Add(1)
	i.stats.open.Add(1)
	defer i.stats.open.Add(-1)
	defer c.Close()
	s := &session{i: i, c: c, name: c.Name, ctx: ctx, dial: dial, scheme: "http", clientWire: &wire{Conn: c}}
	s.tenant = i.tenants.enter(c.Sandbox)
	defer i.tenants.leave(s.tenant)
	defer s.hangUp()
	if c.Protocol == proxy.TLS {
		s.scheme = "https"
		s.serveTLS()
		return
	}
	if s.name == "" {
		s.name = c.Original.String() // until a request says it
	}
	server, err := dial(ctx)
	if err != nil {
		s.failed = failure(err, s.name)
	}
	if server != nil {
		s.serverWire = &wire{Conn: server}
		s.setServer(s.serverWire)
	}
	if c.Protocol == proxy.HTTP2 {
		s.serveHTTP2(s.clientWire, s.server)
		return
	}
	s.serveHTTP1(s.clientWire)
}

// session is one connection, and the one to its destination.
type session struct {
	i      *Interceptor
	c      *proxy.Conn
	name   string
	scheme string
	ctx    context.Context
	tenant *tenant
	dial   func(context.Context) (net.Conn, error)

	clientWire, serverWire *wire
	server                 net.Conn // over serverWire, which it may be itself
	stop                   func() bool
	// failed, when not nil, is the answer to every request: the destination
	// could not be reached.
	failed *refusal

	// The bindings as they were last looked up. Used by HTTP/1, which has one
	// request at a time.
	revision *vault.Active
	rules    *rules
}

// setServer makes the connection to the destination end with the session's
// context.
func (s *session) setServer(server net.Conn) {
	s.server = server
	s.stop = context.AfterFunc(s.ctx, func() { server.Close() })
}

func (s *session) hangUp() {
	if s.server != nil {
		s.stop()
		s.server.Close()
	}
}

// serveTLS shakes hands with the destination first, so that the sandbox is
// offered the protocol that the destination has chosen.
func (s *session) serveTLS() {
	ctx, cancel := context.WithTimeout(s.ctx, s.i.o.HandshakeTimeout)
	defer cancel()
	config := s.i.server.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")) != s.name {
			return nil, errors.New("the server name is another one than was checked")
		}
		cert, err := s.i.o.Authority.leaf(s.name)
		if err != nil {
			return nil, err
		}
		config := s.i.server.Clone()
		config.Certificates = []tls.Certificate{*cert}
		config.SetSessionTicketKeys(s.tenant.ticketKeys(time.Now()))
		if protocol := s.connect(ctx, hello.SupportedProtos); protocol != "" {
			config.NextProtos = []string{protocol}
		}
		return config, nil
	}
	client := tls.Server(s.clientWire, config)
	if err := client.HandshakeContext(ctx); err != nil {
		s.i.stats.errors[errHandshake].Add(1)
		s.i.o.Logger.Debug("a TLS handshake with a sandbox failed", "sandbox", s.c.Sandbox, "host", s.name, "error", err)
		return
	}
	defer client.Close()
	if client.ConnectionState().NegotiatedProtocol == "h2" {
		s.serveHTTP2(client, s.server)
		return
	}
	s.serveHTTP1(client)
}

// connect makes the connection to the destination, and returns the protocol for
// the sandbox. When it fails the sandbox gets an explanation in a protocol that
// it speaks.
func (s *session) connect(ctx context.Context, offered []string) string {
	config := s.i.client.Clone()
	config.ServerName, config.ClientSessionCache = s.name, s.tenant.sessions
	for _, p := range offered {
		if p == "h2" || p == "http/1.1" {
			config.NextProtos = append(config.NextProtos, p)
		}
	}
	fallback := ""
	if slices.Contains(offered, "http/1.1") {
		fallback = "http/1.1"
	} else if len(config.NextProtos) > 0 {
		fallback = config.NextProtos[0]
	}
	raw, err := s.dial(ctx)
	if err != nil {
		s.failed = failure(err, s.name)
		return fallback
	}
	s.serverWire = &wire{Conn: raw}
	server := tls.Client(s.serverWire, config)
	if err := server.HandshakeContext(ctx); err != nil {
		raw.Close()
		s.failed = failure(err, s.name)
		return fallback
	}
	s.setServer(server)
	chosen := server.ConnectionState().NegotiatedProtocol
	if chosen == "" && slices.Contains(offered, "http/1.1") {
		return "http/1.1" // what a server without ALPN speaks
	}
	return chosen
}

// failure explains why a destination could not be reached.
func failure(err error, name string) *refusal {
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &cert):
		return &refusal{502, codeCertificate, fmt.Sprintf("the certificate of %s could not be verified by the server of this sandbox: %s", name, cert.Err), -1}
	case errors.Is(err, context.DeadlineExceeded):
		return &refusal{504, codeUnreachable, name + " did not answer in time", -1}
	}
	return &refusal{502, codeUnreachable, fmt.Sprintf("no connection to %s could be made: %s", name, err), -1}
}

// rules are the bindings for the name of a connection, ready to be used.
type rules struct {
	host    *vault.Host
	masking *patterns // nil when there is nothing to mask
	masks   bool
}

// current returns the bindings as they are now. It is for one goroutine.
func (s *session) current() *rules {
	now := s.i.active(s.c.Sandbox)
	if s.rules == nil || now != s.revision {
		s.revision, s.rules = now, newRules(now, s.name)
	}
	return s.rules
}

func newRules(active *vault.Active, name string) *rules {
	r := &rules{host: active.Host(name)}
	if r.host != nil {
		if forms := r.host.Masked(); len(forms) > 0 {
			r.masking, r.masks = newPatterns(masking(forms)), true
		}
	}
	return r
}

// check decides about a request: who it is for, and what the policy says.
func (s *session) check(method, target, host string) *refusal {
	if why := s.misdirected(host); why != "" {
		return &refusal{421, codeMisdirected, why, -1}
	}
	if r := checkTarget(method, target); r != nil {
		return r
	}
	v := &s.c.Verdict
	if v.Request != nil {
		if why := v.Request(method, target); why != "" {
			return notAllowed(why, v.Rule)
		}
	}
	return s.failed
}

func notAllowed(why string, rule int) *refusal {
	return &refusal{403, codePolicy, "the network policy of this sandbox does not allow this request: " + why, rule}
}

// checkTarget refuses what is no path.
func checkTarget(method, target string) *refusal {
	if !strings.HasPrefix(target, "/") && (target != "*" || method != "OPTIONS") {
		return &refusal{400, codeMalformed, "the target of the request must be a path", -1}
	}
	if len(target) > maxTarget {
		return &refusal{414, codeMalformed, fmt.Sprintf("the target of the request is longer than %d bytes", maxTarget), -1}
	}
	return nil
}

// misdirected says why a Host or :authority is not for this connection, or "".
func (s *session) misdirected(host string) string {
	name, port := host, ""
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		name, port = host[:at], host[at+1:]
		if port != fmt.Sprint(s.c.Original.Port()) {
			return fmt.Sprintf("the request is for another port than %d, where the connection goes", s.c.Original.Port())
		}
	}
	if strings.ToLower(strings.TrimSuffix(name, ".")) != s.name {
		return fmt.Sprintf("the request is for another host than %s, for which the connection was made", s.name)
	}
	return ""
}

// injection finds what a request gets.
func (s *session) injection(r *rules, method, target string) (*vault.Injection, *refusal) {
	// Where a rule allows the address only, nothing says that it is the host's.
	if r.host == nil || !s.c.Verdict.Named {
		return nil, nil
	}
	path, _, _ := strings.Cut(target, "?")
	plain, ok := policy.PlainPath(path)
	if !ok && r.host.PathSensitive() {
		return nil, &refusal{400, codePath, "a credential for this host depends on the path, and the path of this request can be read in more than one way; " +
			"send it without encoded slashes, backslashes and percents, and without empty and dot segments", -1}
	}
	if !ok {
		plain = "/" // every binding here is for all paths
	}
	return r.host.Match(s.scheme, s.c.Original.Port(), method, plain), nil
}

// refused reports a refusal to whoever listens.
func (s *session) refused(r *refusal) {
	s.i.stats.refused[r.code].Add(1)
	if r.code != codePolicy && r.code != codeMisdirected {
		return // not the policy's doing
	}
	s.c.Deny(proxy.Claim{To: s.c.Original, Name: s.c.Name, Protocol: s.c.Protocol, Bound: true},
		proxy.Verdict{Rule: r.rule, Reason: r.message})
}

// masked masks what must not come back, in one value.
func (s *session) masked(r *rules, value string) string {
	if !r.masks {
		return value
	}
	out := mask(value, r.masking.changes)
	if out != value {
		s.i.stats.masked.Add(1)
	}
	return out
}
