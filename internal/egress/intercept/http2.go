package intercept

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/paddock-sandbox/paddock/internal/egress/h2"
)

// serveHTTP2 relays a connection. server is nil when there is none, and every
// request gets s.failed.
func (s *session) serveHTTP2(client, server net.Conn) {
	t := s.tenant
	if !t.enter2() {
		s.i.stats.errors[errTooMany].Add(1)
		s.i.o.Logger.Debug("a sandbox has as many inspected HTTP/2 connections as it may", "sandbox", s.c.Sandbox)
		return
	}
	defer t.leave2()
	o := h2.Options{Client: batched{client, s.clientWire}, Handler: &handler2{s: s}, Start: s.i.o.HandshakeTimeout, Idle: s.i.o.IdleTimeout, Hold: t.hold,
		ClientWaits: s.clientWire.onWait}
	if server != nil {
		o.Server, o.ServerWaits = batched{server, s.serverWire}, s.serverWire.onWait
	}
	if err := h2.Relay(s.ctx, o); err != nil {
		s.i.stats.errors[errProtocol].Add(1)
		s.i.o.Logger.Debug("an HTTP/2 connection ended early", "sandbox", s.c.Sandbox, "host", s.name, "error", err)
	}
}

// handler2 decides about the requests of one connection.
type handler2 struct {
	s *session
	// hosts are what is known of each name of a connection without TLS, whose
	// requests may be for several. The proxy bounds how many.
	hosts map[string]*session
	// over, when not nil, is why the connection to the destination was ended.
	over *refusal
}

// Lost implements h2.Handler.
func (h *handler2) Lost(error) *h2.Refusal {
	r := h.over
	if r == nil {
		r = failure(errors.New("the connection was lost, or takes no more requests"), h.s.name)
	}
	h.s.refused(r)
	return h.s.refusal2(r)
}

// Request implements h2.Handler.
func (h *handler2) Request(q *h2.Request) (*h2.Exchange, *h2.Refusal) {
	h.s.i.stats.requests.Add(1)
	method := q.Method
	if q.Protocol != "" {
		method = "GET" // what it is over HTTP/1 (RFC 8441, 5)
	}
	s, refused := h.s, (*refusal)(nil)
	if s.scheme == "https" {
		refused = s.check(method, q.Path, q.Authority)
	} else {
		s, refused = h.judge(q, method)
	}
	if refused == nil && q.TwoHosts {
		refused = &refusal{421, codeMisdirected, "the request has a Host header that differs from its :authority", -1}
	}
	var x *h2.Exchange
	if refused == nil {
		x, refused = s.pass2(q, method, h.outgrown)
	}
	if refused != nil {
		s.refused(refused)
		return nil, s.refusal2(refused)
	}
	return x, nil
}

// judge decides about a request that came without TLS: nothing before it has said
// what it is for. The session that it returns is that of its name.
func (h *handler2) judge(q *h2.Request, method string) (*session, *refusal) {
	name, v := h.s.c.Judge(q.Authority, method, q.Path)
	s := h.hosts[name]
	if s == nil {
		c := *h.s.c
		s = &session{i: h.s.i, c: &c, name: name, scheme: h.s.scheme, failed: h.s.failed}
		if c.Name = name; name == "" {
			s.name = h.s.name
		}
		if v.Allow {
			if h.hosts == nil {
				h.hosts = map[string]*session{}
			}
			h.hosts[name] = s
		}
	}
	s.c.Verdict = v
	switch r := checkTarget(method, q.Path); {
	case !v.Allow:
		return s, notAllowed(v.Reason, v.Rule)
	case r != nil:
		return s, r
	}
	return s, h.s.failed
}

// outgrown ends the connection to the destination, which has the head of a
// request and some of its body already: it must not take that for the whole. All
// requests on it that have no answer yet get this one.
func (h *handler2) outgrown() {
	h.over = &refusal{413, codeSubstitute, fmt.Sprintf("with the credentials in it a part of a request's body on this connection became longer than %d bytes; "+
		"write fewer placeholders", maxGrown), -1}
	if h.s.serverWire != nil {
		_ = h.s.serverWire.Close() // not through TLS, which could wait
	}
}

// pass2 prepares a request and what is to be done with its answer. outgrown is
// called when its body becomes too long after its head was sent.
func (s *session) pass2(q *h2.Request, method string, outgrown func()) (*h2.Exchange, *refusal) {
	rules := s.current()
	in, refused := s.injection(rules, method, q.Path)
	if refused != nil {
		return nil, refused
	}
	q.Scheme = s.scheme
	if rules.masks {
		if accept := h2.Get(q.Fields, "accept-encoding"); accept != "" {
			q.Fields = h2.Set(q.Fields, h2.Field{Name: "accept-encoding", Value: acceptedEncodings(accept)})
		}
	}
	x := &h2.Exchange{}
	if rules.masks || q.Protocol != "" {
		x.Answer = func(a *h2.Response) h2.Filter { return s.answer2(a, rules, q.Protocol != "") }
	}
	if rules.masks {
		x.Trailer = func(fields []h2.Field) { s.mask2(fields, rules) }
	}
	if in == nil {
		return x, nil
	}
	var changes []change
	if q.Protocol == "" {
		changes = bodyChanges(in, h2.Get(q.Fields, "content-type"))
	}
	target, refused := inject(headers2{q}, q.Path, in)
	if refused != nil {
		return nil, refused
	}
	q.SecretPath = target != q.Path
	q.Path = target
	if refused := s.substitute2(q, x, changes, outgrown); refused != nil {
		return nil, refused
	}
	s.i.stats.injected.Add(1)
	s.i.o.Logger.Debug("put credentials into a request", "sandbox", s.c.Sandbox, "host", s.name, "binding", in.Binding)
	return x, nil
}

// headers2 is the head of a request over HTTP/2. What was put into it is kept
// out of header tables.
type headers2 struct{ q *h2.Request }

func (m headers2) values(visit func(name, value string) string) {
	for i := range m.q.Fields {
		f := &m.q.Fields[i]
		if v := visit(f.Name, f.Value); v != f.Value {
			f.Value, f.Sensitive = v, true
		}
	}
}

func (m headers2) set(name, value string) {
	m.q.Fields = h2.Set(m.q.Fields, hpack.HeaderField{Name: strings.ToLower(name), Value: value, Sensitive: true})
}

// substitute2 puts credentials into a body as it streams.
func (s *session) substitute2(q *h2.Request, x *h2.Exchange, changes []change, outgrown func()) *refusal {
	if len(changes) == 0 || q.Ended || q.Length == 0 {
		return nil
	}
	if e := h2.Get(q.Fields, "content-encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return &refusal{415, codeEncoding, "a credential goes into the body of this request, which must not be compressed; leave out Content-Encoding", -1}
	}
	r := newPatterns(changes).replacer(nil)
	r.most = maxGrown
	x.Body = func(b []byte, last bool) []byte {
		was := r.over
		if b = r.replace(b, last); !r.over || was {
			return b
		}
		if x.Whole {
			x.Most = -1 // even nothing is too long now
		} else {
			outgrown()
		}
		return nil
	}
	if q.Length < 0 || q.Length > maxBuffered {
		q.Fields = h2.Del(q.Fields, "content-length")
		return nil
	}
	x.Whole, x.Most = true, maxSubstituted
	x.TooLong = s.refusal2(&refusal{413, codeSubstitute, "with the credentials in it the body of this request is too long", -1})
	if strings.EqualFold(h2.Get(q.Fields, "expect"), "100-continue") {
		// The body is needed before the destination can be asked.
		q.Fields, x.Continue = h2.Del(q.Fields, "expect"), true
	}
	return nil
}

func (s *session) mask2(fields []h2.Field, rules *rules) {
	for i := range fields {
		fields[i].Value = s.masked(rules, fields[i].Value)
	}
}

// answer2 masks the head of an answer, and says how its body is to be. What
// follows the answer to an extended CONNECT is no body but the frames of another
// protocol: they pass as those after a 101 do, whatever the head says about their
// length (RFC 9110, 9.3.6), and none is held back.
func (s *session) answer2(a *h2.Response, rules *rules, connect bool) h2.Filter {
	s.mask2(a.Fields, rules)
	if connect && a.Status >= 200 && a.Status < 300 {
		a.Fields = h2.Del(a.Fields, "content-length")
		return h2.Filter{}
	}
	if !rules.masks || a.Bodiless || a.Length == 0 {
		return h2.Filter{}
	}
	switch inspect(a.Status, h2.Get(a.Fields, "content-type"), h2.Get(a.Fields, "content-encoding")) {
	case inspected:
		return h2.Filter{Change: s.masker(rules).replace}
	case unzipped:
		a.Fields = h2.Del(h2.Del(a.Fields, "content-encoding"), "content-length")
		return h2.Filter{Expand: newUnzipper(s.masker(rules))}
	}
	return h2.Filter{}
}
