package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// firstRead is how much is read at a time before a decision, in bytes.
	firstRead = 4 << 10
	// lingerTime is how long a client that was refused may take to read why,
	// and lingerBytes how much of what it still sends is read meanwhile.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
	// keepAlive is how often a silent peer is asked whether it lives.
	keepAlive = 60 * time.Second
)

// longAgo makes what waits on a connection return.
var longAgo = time.Unix(1, 0)

// session is one connection.
type session struct {
	p      *Proxy
	ctx    context.Context
	cancel context.CancelFunc

	client *net.TCPConn
	source netip.AddrPort
	to     netip.AddrPort
	id     string

	mu sync.Mutex
	// claim is what was allowed last, for Recheck; names are those that were
	// allowed on a connection over HTTP2.
	claim Claim
	names map[string]struct{}
	// intercepted is set for a connection that was handed over, and conditional
	// when that was under conditions on its requests.
	intercepted, conditional bool

	// server is set once dialled is closed, unless dialErr is.
	dialled chan struct{}
	server  *net.TCPConn
	dialErr error
}

// serve handles the connection from its beginning to its end.
func (s *session) serve() {
	defer s.client.Close()
	// Whatever is going on ends with the context.
	stop := context.AfterFunc(s.ctx, func() { reset(s.client) })
	defer stop()
	var err error
	if s.to, err = s.p.o.Original(s.client); err != nil || s.to == unmapped(s.client.LocalAddr()) {
		reset(s.client) // nobody was redirected here
		return
	}
	var ok bool
	if s.id, ok = s.p.o.Judge.Sandbox(s.source.Addr()); !ok {
		reset(s.client)
		return
	}
	if v := s.judge(Claim{To: s.to}); !v.Allow {
		s.deny(Claim{To: s.to}, v)
		reset(s.client)
		return
	}
	_ = s.client.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3})
	s.dial()
	defer s.hangUp()
	s.run()
}

// judge asks about a claim, and remembers one that is allowed.
func (s *session) judge(c Claim) Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, before := s.names[c.Name]
	c.Bound = c.Name != "" && (c.Name == s.claim.Name || before)
	if c.Protocol == HTTP2 && c.Name != "" && !before && len(s.names) >= maxNames {
		return Verdict{Rule: -1, Reason: fmt.Sprintf("the connection has requests for more than %d names", maxNames)}
	}
	v := s.p.o.Judge.Judge(s.source.Addr(), c)
	if v.Allow {
		c.Bound = true
		if c.Name == "" && c.Protocol == Opaque {
			c.Name = v.Name
		}
		if c.Protocol == HTTP2 && c.Name != "" && !before {
			if s.names == nil {
				s.names = map[string]struct{}{}
			}
			s.names[c.Name] = struct{}{}
		}
		s.claim = c
	}
	return v
}

func (s *session) recheck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.claim.To.IsValid() {
		return
	}
	for name := range s.names {
		c := s.claim
		if c.Name = name; !s.p.o.Judge.Judge(s.source.Addr(), c).Allow {
			s.cancel()
			return
		}
	}
	v := s.p.o.Judge.Judge(s.source.Addr(), s.claim)
	// An intercepted connection keeps the verdict of its beginning, whose
	// conditions on requests may be others now.
	if !v.Allow || s.intercepted && (s.conditional || v.Request != nil || !v.Named) {
		s.cancel()
	}
}

func (s *session) deny(c Claim, v Verdict) {
	s.p.stats.denied.Add(1)
	s.p.o.Denied(Denial{Sandbox: s.id, Source: s.source, To: s.to, Claim: c, Rule: v.Rule, Reason: v.Reason})
}

// dial begins to connect to the destination; the client's first bytes come
// meanwhile.
func (s *session) dial() {
	s.dialled = make(chan struct{})
	go func() {
		defer close(s.dialled)
		d := net.Dialer{Timeout: s.p.o.DialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3}}
		c, err := d.DialContext(s.ctx, "tcp", s.to.String())
		if err != nil {
			s.dialErr = err
			s.p.stats.failed.Add(1)
			reset(s.client) // wakes who waits for the client
			return
		}
		s.server = c.(*net.TCPConn)
	}()
}

func (s *session) hangUp() {
	s.cancel()
	<-s.dialled
	if s.server != nil {
		_ = s.server.Close()
	}
}

// run waits for the client's first message and does what it calls for.
func (s *session) run() {
	early := s.beginEarly()
	f, b, err := s.readFirst()
	early.stop(s)
	if s.dialErr != nil {
		return
	}
	var bad badRequest
	switch {
	case errors.As(err, &bad) || errors.Is(err, errHello):
		s.refuse(f, Claim{To: s.to, Protocol: f.protocol}, Verdict{Rule: -1, Reason: err.Error()})
		return
	case err != nil && !errors.Is(err, io.EOF):
		if errors.Is(err, errSlow) {
			s.refuse(f, Claim{To: s.to, Protocol: f.protocol}, Verdict{Rule: -1, Reason: err.Error()})
		}
		reset(s.client)
		return
	case err != nil: // nothing but an end, or an unfinished line and an end
		f.protocol = Opaque
		if len(b) > 0 && b[0] == recordHandshake {
			reset(s.client)
			return
		}
	}
	if early.err != nil {
		reset(s.client)
		return
	}
	if f.protocol == HTTP2 && s.p.o.Interceptor != nil {
		// Each of its requests is judged by itself.
		s.p.stats.served.Add(1)
		s.intercept(b, Claim{To: s.to, Protocol: HTTP2}, Verdict{Rule: -1}, early.settings)
		return
	}
	if len(early.settings) > 0 {
		if _, err := s.client.Write(early.settings); err != nil {
			reset(s.client)
			return
		}
	}
	s.decide(f, b)
}

var errSlow = errors.New("the first message did not come to its end in time")

// readFirst reads until it is known what the client speaks.
func (s *session) readFirst() (first, []byte, error) {
	_ = s.client.SetReadDeadline(time.Now().Add(s.p.o.FirstByteTimeout))
	b := make([]byte, 0, firstRead)
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, len(b))...)[:len(b)]
		}
		n, err := s.client.Read(b[len(b):cap(b)])
		if n > 0 && len(b) == 0 {
			_ = s.client.SetReadDeadline(time.Now().Add(s.p.o.HelloTimeout))
		}
		b = b[:len(b)+n]
		if n > 0 {
			f, ok, bad := classify(b)
			if ok || bad != nil {
				_ = s.client.SetReadDeadline(time.Time{})
				return f, b, bad
			}
		}
		if err != nil {
			var slow net.Error
			if len(b) > 0 && errors.As(err, &slow) && slow.Timeout() {
				err = errSlow
			}
			_ = s.client.SetReadDeadline(time.Time{})
			return first{}, b, err
		}
	}
}

// early passes the server's bytes on while the client's are not decided upon:
// in many protocols the server speaks first.
type early struct {
	stopped chan struct{}
	// settings is what an HTTP/2 server sent at once. It is not passed on early:
	// a client of such a server doesn't wait for it, and has it from an
	// Interceptor otherwise.
	settings []byte
	// err is why no more can be passed on; io.EOF is none.
	err error
}

func (s *session) beginEarly() *early {
	e := &early{stopped: make(chan struct{})}
	go func() {
		defer close(e.stopped)
		<-s.dialled
		if s.dialErr != nil {
			return
		}
		b := make([]byte, firstRead)
		for first := true; ; {
			n, err := s.server.Read(b)
			if first && isSettings(b[:n]) {
				e.settings = b[:n]
				return
			}
			if first = false; n > 0 {
				if _, werr := s.client.Write(b[:n]); werr != nil {
					e.err = werr
					return
				}
			}
			var slow net.Error
			if errors.As(err, &slow) && slow.Timeout() || errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				e.err = err
				return
			}
		}
	}()
	return e
}

// isSettings recognises a SETTINGS frame, with which an HTTP/2 server begins (RFC
// 9113, 3.4 and 6.5).
func isSettings(b []byte) bool {
	return len(b) >= 9 && b[0] == 0 && b[1] == 0 && b[2]%6 == 0 && bytes.Equal(b[3:9], []byte{4, 0, 0, 0, 0, 0})
}

// stop returns when nothing more is passed on early.
func (e *early) stop(s *session) {
	<-s.dialled
	if s.server != nil {
		_ = s.server.SetReadDeadline(longAgo)
		<-e.stopped
		_ = s.server.SetReadDeadline(time.Time{})
	}
}

// decide judges what was read and serves the connection accordingly.
func (s *session) decide(f first, b []byte) {
	if f.protocol == Unknown {
		// Asked about that, the policy would only say whether anything could be
		// allowed.
		f.protocol = Opaque
	}
	claim := Claim{To: s.to, Protocol: f.protocol}
	switch f.protocol {
	case TLS:
		claim.Name = f.hello.name
	case HTTP1:
		if why := f.request.misdirected(s.to); why != "" {
			s.refuse(f, claim, Verdict{Rule: -1, Reason: why})
			return
		}
		claim.Name = f.request.name
	}
	v := s.judge(claim)
	if !v.Allow {
		s.refuse(f, claim, v)
		return
	}
	intercept := (f.protocol == TLS || f.protocol == HTTP1) && s.p.o.Interceptor != nil &&
		(s.p.o.Interceptor.Wants(s.id, claim.Name, s.to.Port()) || v.Request != nil && f.protocol == TLS)
	if v.Request != nil && !intercept && f.protocol != HTTP1 {
		v.Reason = fmt.Sprintf("rule %d has conditions on requests, which can't be seen in this connection", v.Rule)
		s.refuse(f, claim, v)
		return
	}
	s.p.stats.served.Add(1)
	switch {
	case intercept:
		s.mu.Lock()
		s.intercepted, s.conditional = true, v.Request != nil
		s.mu.Unlock()
		s.intercept(b, claim, v, nil)
	case f.protocol == HTTP1:
		s.serveHTTP(b)
	default:
		if _, err := s.server.Write(b); err != nil {
			reset(s.client)
			return
		}
		splice(s.client, s.server)
	}
}

// intercept hands the connection over; early is what the server has sent already.
func (s *session) intercept(b []byte, claim Claim, v Verdict, early []byte) {
	c := &Conn{TCPConn: s.client, peeked: b, Sandbox: s.id, Source: s.source, Original: s.to,
		Name: claim.Name, Protocol: claim.Protocol, Verdict: v, session: s}
	var once sync.Once
	s.p.o.Interceptor.Serve(s.ctx, c, func(ctx context.Context) (net.Conn, error) {
		var first net.Conn
		once.Do(func() {
			if first = s.server; len(early) > 0 {
				first = &Conn{TCPConn: s.server, peeked: early}
			}
		})
		if first != nil {
			return first, nil
		}
		d := net.Dialer{Timeout: s.p.o.DialTimeout}
		return d.DialContext(ctx, "tcp", s.to.String())
	})
}

// refuse reports a refusal and tells the client in its own protocol.
func (s *session) refuse(f first, c Claim, v Verdict) {
	s.deny(c, v)
	switch f.protocol {
	case TLS:
		s.say(accessDenied)
	case HTTP1:
		s.say(forbidden(s.id, s.to, c.Name, v))
	case HTTP2:
		s.say(goAway(v.Reason))
	}
	reset(s.client)
}

// say sends a last message. The client's bytes are read for a moment: if some
// were left, the kernel would answer with a reset, which overtakes the message.
func (s *session) say(b []byte) {
	_ = s.client.SetDeadline(time.Now().Add(lingerTime))
	if _, err := s.client.Write(b); err != nil {
		return
	}
	_ = s.client.CloseWrite()
	_, _ = io.CopyN(io.Discard, s.client, lingerBytes)
}

// splice passes bytes both ways until both sides have ended or one has failed.
func splice(a, b *net.TCPConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(a, b)
	}()
	pass(b, a)
	<-done
}

// pass copies one way, in the kernel, and passes the end on.
func pass(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		reset(to)
		reset(from)
		return
	}
	if to.CloseWrite() != nil {
		reset(from)
	}
}
