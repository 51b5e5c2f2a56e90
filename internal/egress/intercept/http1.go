package intercept

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/vault"
)

const (
	readSize  = 4 << 10
	writeSize = 32 << 10
	// watchAfter is how long an exchange, or the wait for the next request, may
	// take before the side that is not read is watched for its end.
	watchAfter = time.Second
	// lingerTime is how long a client may take to read a refusal, and
	// lingerBytes how much of what it still sends is read meanwhile.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// side is one end of a session over HTTP/1.
type side struct {
	net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	wire *wire
	// unwatch ends what watch began. It must be called before the next read.
	unwatch func()
}

// newSide makes the side of a connection over a wire, or of the wire itself.
func newSide(c net.Conn, w *wire) *side {
	return &side{Conn: c, wire: w, r: bufio.NewReaderSize(c, readSize), w: bufio.NewWriterSize(batched{c, w}, writeSize), unwatch: func() {}}
}

// watch calls gone when the side ends while nobody reads from it. That takes a
// goroutine, so it begins only after a while: most exchanges are over by then.
func (d *side) watch(gone func()) {
	done := make(chan struct{})
	t := time.AfterFunc(watchAfter, func() {
		defer close(done)
		if _, err := d.r.Peek(1); err != nil {
			gone()
		}
	})
	d.unwatch = func() {
		if !t.Stop() {
			<-done
		}
		d.unwatch = func() {}
	}
}

// serveHTTP1 passes requests on, one after another.
func (s *session) serveHTTP1(conn net.Conn) {
	client := newSide(conn, s.clientWire)
	var server *side
	if s.server != nil {
		server = newSide(s.server, s.serverWire)
	}
	for {
		_ = conn.SetReadDeadline(time.Now().Add(s.i.o.IdleTimeout))
		client.unwatch()
		req, err := readRequest(client.r)
		_ = conn.SetReadDeadline(time.Time{})
		var bad malformed
		if errors.As(err, &bad) {
			r := &refusal{400, codeMalformed, string(bad), -1}
			s.refused(r)
			s.say(client, r, "")
			return
		}
		if err != nil {
			return
		}
		s.i.stats.requests.Add(1)
		if r := s.prepare(req); r != nil {
			s.refused(r)
			s.say(client, r, req.method)
			return
		}
		if !s.exchange(req, client, server) {
			return
		}
		server.watch(func() { conn.Close() })
	}
}

// prepare checks a request's address and what the policy says about it.
func (s *session) prepare(req *request) *refusal {
	hosts := 0
	for i := range req.fields {
		if req.fields[i].is("host") {
			hosts++
		}
	}
	if hosts != 1 {
		return &refusal{400, codeMalformed, "a request must have exactly one Host line", -1}
	}
	host := req.get("host")
	if rest, ok := cutFold(req.target, s.scheme+"://"); ok {
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if why := s.misdirected(rest[:end]); why != "" {
			return &refusal{421, codeMisdirected, why, -1}
		}
		target := rest[end:]
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
		req.retarget(target)
	}
	return s.check(req.method, req.target, host)
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// say answers with a refusal and ends the connection. What the client still
// sends is read for a moment: if some were left, the kernel would answer with a
// reset, which overtakes the answer.
func (s *session) say(client *side, r *refusal, method string) {
	_ = client.SetDeadline(time.Now().Add(lingerTime))
	client.w.Write(s.answer1(r, method))
	if client.w.Flush() != nil {
		return
	}
	if c, ok := client.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	_, _ = io.CopyN(io.Discard, client.r, lingerBytes)
}

// exchange passes one request on, and its answers back. It reports whether
// another request may follow.
func (s *session) exchange(req *request, client, server *side) bool {
	rules := s.current()
	in, refused := s.injection(rules, req.method, req.target)
	var out *outgoing
	if refused == nil {
		out, refused = s.outgoing(req, in, rules, client)
	}
	if refused != nil {
		s.refused(refused)
		s.say(client, refused, req.method)
		return false
	}
	if out == nil {
		return false
	}
	if in != nil {
		s.i.stats.injected.Add(1)
		s.i.o.Logger.Debug("put credentials into a request", "sandbox", s.c.Sandbox, "host", s.name, "binding", in.Binding)
	}
	req.write(server.w)
	sent, ok := out.send(server)
	if !ok {
		return false
	}
	if sent == nil {
		client.watch(func() { server.Close() })
	}
	server.unwatch()
	next, upgraded := s.answers(req, rules, client, server)
	if sent != nil {
		if !next && !upgraded {
			// The answer is whole. The rest of the request is of no use to
			// anybody, and its sender is told by the end of the connection.
			_ = client.SetReadDeadline(time.Now().Add(lingerTime))
			_ = server.SetWriteDeadline(time.Now().Add(lingerTime))
		}
		if err := <-sent; err != nil {
			return false
		}
	}
	if upgraded {
		s.tunnel(client, server)
		return false
	}
	return next
}

// outgoing is the body of a request on its way.
type outgoing struct {
	client *side
	// whole is a body that was held; else what is read from src through from.
	whole  []byte
	src    *source
	from   io.Reader
	chunks bool
}

// outgoing prepares head and body of a request. Nil without a refusal means that
// the client is gone.
func (s *session) outgoing(req *request, in *vault.Injection, rules *rules, client *side) (*outgoing, *refusal) {
	if rules.masks {
		if accept := req.get("accept-encoding"); accept != "" {
			req.set("Accept-Encoding", acceptedEncodings(accept))
		}
	}
	var changes []change
	if in != nil {
		changes = bodyChanges(in, req.get("content-type"))
		target, refused := inject(req.head, req.target, in)
		if refused != nil {
			return nil, refused
		}
		req.retarget(target)
	}
	out := &outgoing{client: client, src: newSource(client.r, req.length), chunks: req.length == chunked}
	out.from = out.src
	if len(changes) == 0 || req.length == 0 {
		return out, nil
	}
	if e := req.get("content-encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, &refusal{415, codeEncoding, "a credential goes into the body of this request, which must not be compressed; leave out Content-Encoding", -1}
	}
	out.from = &replacing{from: out.src, r: newPatterns(changes).replacer(nil)}
	if req.length == chunked || req.length > maxBuffered {
		if req.old {
			return nil, &refusal{413, codeSubstitute, "a credential goes into the body of this request; one this long must be sent over HTTP/1.1", -1}
		}
		if req.length != chunked {
			req.del("Content-Length")
			req.set("Transfer-Encoding", "chunked")
			out.chunks = true
		}
		return out, nil
	}
	if req.lists("expect", "100-continue") {
		// The body is needed before the destination can be asked.
		req.del("Expect")
		client.w.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
		if client.w.Flush() != nil {
			return nil, nil
		}
	}
	body, err := io.ReadAll(io.LimitReader(out.from, maxSubstituted+1))
	if err != nil {
		return nil, nil
	}
	if len(body) > maxSubstituted {
		return nil, &refusal{413, codeSubstitute, "with the credentials in it the body of this request is too long", -1}
	}
	req.set("Content-Length", strconv.Itoa(len(body)))
	out.whole, out.from = body, nil
	return out, nil
}

// send passes the body on. One that is here already is sent at once, with its
// head; another one from a goroutine, whose end is told to sent.
func (o *outgoing) send(server *side) (sent chan error, ok bool) {
	if o.from == nil {
		server.w.Write(o.whole)
		return nil, server.w.Flush() == nil
	}
	to := &sink{w: server.w, chunks: o.chunks}
	if !o.src.chunks && o.src.left <= int64(o.src.r.Buffered()) {
		if o.src.left > 0 {
			if err := stream(to, o.from, nil, o.client); err != nil {
				return nil, false
			}
		}
		return nil, to.end(nil) == nil
	}
	if server.w.Flush() != nil {
		return nil, false
	}
	sent = make(chan error, 1)
	go func() {
		err := stream(to, o.from, nil, o.client)
		if err == nil {
			err = to.end(o.src.trailer)
		}
		if err != nil {
			// The request has no end, so that it must not have an answer.
			server.Close()
		}
		sent <- err
	}()
	return sent, true
}

// answers passes the answers to a request back: interim ones and the last.
func (s *session) answers(req *request, rules *rules, client, server *side) (next, upgraded bool) {
	for {
		a, err := readAnswer(server.r, req.method)
		var bad malformed
		if errors.As(err, &bad) {
			client.w.Write(s.answer1(&refusal{502, codeUnreachable, "the answer of " + s.name + " is malformed: " + string(bad), -1}, req.method))
			client.w.Flush()
			return false, false
		}
		if err != nil || a.status == 101 && !req.upgrade {
			return false, false
		}
		for i := range a.fields {
			a.fields[i].value = s.masked(rules, a.fields[i].value)
		}
		a.first = s.masked(rules, a.first)
		if a.status == 101 {
			a.write(client.w)
			return false, client.w.Flush() == nil
		}
		if a.status < 200 {
			a.write(client.w)
			if client.w.Flush() != nil {
				return false, false
			}
			continue
		}
		if s.answer(req, a, rules, client, server) != nil {
			s.abort(a.length == untilEnd)
			return false, false
		}
		return !a.last && !req.last, false
	}
}

// answer passes one answer back. When it fails in the middle the connection must
// end, so that the client sees that something is missing.
func (s *session) answer(req *request, a *answer, rules *rules, client, server *side) error {
	src := newSource(server.r, a.length)
	how := opaque
	if rules.masks && a.length != 0 {
		how = inspect(a.status, a.get("content-type"), a.get("content-encoding"))
	}
	to := &sink{w: client.w, chunks: a.length == chunked}
	if how == unzipped {
		a.del("Content-Encoding")
		a.del("Content-Length")
		if to.chunks = !req.old && !a.old; to.chunks {
			a.set("Transfer-Encoding", "chunked")
		} else {
			a.del("Transfer-Encoding")
			a.set("Connection", "close")
			a.last = true
		}
	}
	a.write(client.w)
	var from io.Reader = src
	if how == unzipped {
		// Only now: it reads, and the head must not wait for that.
		if err := client.w.Flush(); err != nil {
			return err
		}
		zip, err := gzip.NewReader(src)
		switch {
		case errors.Is(err, io.EOF): // nothing, not even a header
		case err != nil:
			return err
		default:
			from = zip
		}
	}
	var masker *replacer
	if how != opaque {
		masker = s.masker(rules)
	}
	if err := stream(to, from, masker, server); err != nil {
		return err
	}
	if how == unzipped {
		// What is behind the compressed data, and the trailer.
		if _, err := io.Copy(io.Discard, src); err != nil {
			return err
		}
	}
	for i := range src.trailer {
		src.trailer[i].value = s.masked(rules, src.trailer[i].value)
	}
	return to.end(src.trailer)
}

// abort ends the client's connection such that a body which ends with it is not
// taken for whole: TLS without its closing alert, TCP with a reset. Other bodies
// say themselves that they are not whole.
func (s *session) abort(untilEnd bool) {
	if untilEnd && s.scheme == "http" {
		_ = s.c.SetLinger(0)
	}
	_ = s.c.Close()
}

// masker masks what must not come back in a body.
func (s *session) masker(rules *rules) *replacer {
	return rules.masking.replacer(func() { s.i.stats.masked.Add(1) })
}

// tunnel goes on without HTTP, with what both sides have sent already. Its
// frames are not looked into.
func (s *session) tunnel(client, server *side) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(server, client)
	}()
	pass(client, server)
	<-done
}

// pass copies one way and passes the end on.
func pass(to, from *side) {
	from.unwatch()
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	rest := io.MultiReader(bytes.NewReader(peeked(from.r)), from.Conn)
	// Only Read and Write: nothing must reach around the TLS connection.
	_, err := io.CopyBuffer(struct{ io.Writer }{to.Conn}, struct{ io.Reader }{rest}, buf[:])
	if c, ok := to.Conn.(interface{ CloseWrite() error }); ok && err == nil && c.CloseWrite() == nil {
		return
	}
	to.Close()
	from.Close()
}

// peeked returns what is in a buffer that is not used any more.
func peeked(r *bufio.Reader) []byte {
	b, _ := r.Peek(r.Buffered())
	return bytes.Clone(b)
}
