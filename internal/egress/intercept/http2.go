package intercept

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"

	"github.com/paddock-sandbox/paddock/internal/vault"
)

const (
	maxStreams = 250 // at a time, from one connection
	// streamWindow is what may be under way of one stream's body, in bytes, and
	// connWindow that of all of a connection.
	streamWindow = 1 << 20
	connWindow   = 4 << 20
	maxFrame     = 64 << 10
	// smallBody is the length, in bytes, up to which a body goes together with
	// its head.
	smallBody = 16 << 10
)

// serveHTTP2 passes the streams of a connection on, each to one of the
// connection to the destination.
func (s *session) serveHTTP2(client *tls.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	if !s.i.enter(s.c.Sandbox) {
		s.i.o.Logger.Debug("a sandbox has as many inspected HTTP/2 connections as it may", "sandbox", s.c.Sandbox)
		return
	}
	defer s.i.leave(s.c.Sandbox)
	transport, err := s.transport2()
	if err != nil {
		s.i.o.Logger.Error("HTTP/2 towards destinations can't be set up", "error", err)
		return
	}
	h := &handler2{s: s, first: s.server, transport: transport}
	defer h.close()
	(&http2.Server{
		MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame,
		MaxUploadBufferPerStream: streamWindow, MaxUploadBufferPerConnection: connWindow,
		IdleTimeout: s.i.o.IdleTimeout, WriteByteTimeout: s.i.o.HandshakeTimeout,
	}).ServeConn(client, &http2.ServeConnOpts{
		Context: ctx, Handler: h,
		BaseConfig: &http.Server{MaxHeaderBytes: maxHead, ErrorLog: discard},
	})
}

// transport2 speaks with the destination. Its windows bound what the sandbox can
// have this process keep by not reading: by themselves they are 1 GiB.
func (s *session) transport2() (*http2.Transport, error) {
	t, err := http2.ConfigureTransports(&http.Transport{HTTP2: &http.HTTP2Config{
		MaxReceiveBufferPerConnection: connWindow, MaxReceiveBufferPerStream: streamWindow,
	}})
	if err != nil {
		return nil, err
	}
	// Encodings are between the sandbox and its destination.
	t.DisableCompression = true
	t.MaxHeaderListSize, t.MaxReadFrameSize = maxHead, maxFrame
	t.StrictMaxConcurrentStreams = true // wait, rather than fail
	t.WriteByteTimeout, t.ReadIdleTimeout = s.i.o.HandshakeTimeout, s.i.o.IdleTimeout/2
	return t, nil
}

// maxConns2 bounds the connections of one sandbox: each can keep connWindow in
// both directions.
const maxConns2 = 64

func (i *Interceptor) enter(sandbox string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conns2[sandbox] >= maxConns2 {
		return false
	}
	if i.conns2 == nil {
		i.conns2 = make(map[string]int)
	}
	i.conns2[sandbox]++
	return true
}

func (i *Interceptor) leave(sandbox string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conns2[sandbox]--; i.conns2[sandbox] == 0 {
		delete(i.conns2, sandbox)
	}
}

// handler2 serves the streams of one connection.
type handler2 struct {
	s         *session
	transport *http2.Transport

	mu       sync.Mutex
	revision *vault.Active
	rules    *rules
	first    net.Conn // made with the handshake, not used yet
	to       *http2.ClientConn
	closed   bool
}

// conn returns a connection to the destination that takes another request. A
// server may end one when it likes, which its client should not have to know.
func (h *handler2) conn(ctx context.Context) (*http2.ClientConn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, net.ErrClosed
	}
	if h.to != nil && h.to.CanTakeNewRequest() {
		return h.to, nil
	}
	server := h.first
	if h.first = nil; server == nil {
		ctx, cancel := context.WithTimeout(ctx, h.s.i.o.HandshakeTimeout)
		defer cancel()
		raw, err := h.s.dial(ctx)
		if err != nil {
			return nil, err
		}
		config := h.s.i.client.Clone()
		config.ServerName, config.NextProtos = h.s.name, []string{"h2"}
		c := tls.Client(raw, config)
		if err := c.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		if c.ConnectionState().NegotiatedProtocol != "h2" {
			raw.Close()
			return nil, errors.New("it does not speak HTTP/2 any more")
		}
		server = c
	}
	to, err := h.transport.NewClientConn(server)
	if err != nil {
		server.Close()
		return nil, err
	}
	if h.to != nil {
		go h.to.Shutdown(h.s.ctx) // when its streams have ended
	}
	h.to = to
	return to, nil
}

func (h *handler2) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed = true; h.to != nil {
		_ = h.to.Close()
	}
}

func (h *handler2) current() *rules {
	now := h.s.i.active(h.s.c.Sandbox)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rules == nil || now != h.revision {
		h.revision, h.rules = now, newRules(now, h.s.name)
	}
	return h.rules
}

func (h *handler2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.s.i.stats.requests.Add(1)
	rules := h.current()
	out, refused := h.outgoing(r, rules)
	if refused != nil {
		h.s.refused(refused)
		h.s.answer2(w, refused)
		return
	}
	out = out.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code == http.StatusContinue {
				return nil // the server here says so itself when the body is read
			}
			h.copyHeader(w.Header(), http.Header(header), rules)
			w.WriteHeader(code)
			clear(w.Header())
			return nil
		},
	}))
	to, err := h.conn(r.Context())
	if err != nil {
		h.s.answer2(w, failure(err, h.s.name))
		return
	}
	resp, err := to.RoundTrip(out)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		h.s.answer2(w, failure(plain(err), h.s.name))
		return
	}
	defer resp.Body.Close()
	if err := h.answer(w, r, resp, rules); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// plain takes what the transport says about its own state; it names no header.
func plain(err error) error {
	var reset http2.StreamError
	if errors.As(err, &reset) {
		return errors.New("the stream was ended with " + reset.Code.String())
	}
	return errors.New("the connection was lost, or takes no more requests")
}

// headers2 is the head of a request over HTTP/2.
type headers2 http.Header

func (m headers2) values(visit func(name, value string) string) {
	for name, values := range m {
		for i := range values {
			values[i] = visit(name, values[i])
		}
	}
}

func (m headers2) set(name, value string) { http.Header(m).Set(name, value) }

// outgoing makes the request to the destination.
func (h *handler2) outgoing(r *http.Request, rules *rules) (*http.Request, *refusal) {
	target := r.RequestURI
	if refused := h.s.check(r.Method, target, r.Host); refused != nil {
		return nil, refused
	}
	for _, other := range r.Header["Host"] {
		if other != r.Host {
			return nil, &refusal{421, codeMisdirected, "the request has a Host header that differs from its :authority", -1}
		}
	}
	in, refused := h.s.injection(rules, r.Method, target)
	if refused != nil {
		return nil, refused
	}
	out := &http.Request{
		Method: r.Method, Host: r.Host, Header: r.Header.Clone(), Body: r.Body, ContentLength: r.ContentLength,
		Proto: "HTTP/2.0", ProtoMajor: 2, Trailer: r.Trailer,
	}
	out.Header.Del("Host")
	if r.Header.Get("User-Agent") == "" {
		out.Header["User-Agent"] = []string{""} // else the transport adds its own
	}
	if accept := r.Header.Get("Accept-Encoding"); rules.masks && accept != "" {
		out.Header.Set("Accept-Encoding", acceptedEncodings(strings.Join(r.Header["Accept-Encoding"], ",")))
	}
	if in != nil {
		if target, refused = inject(headers2(out.Header), target, in); refused != nil {
			return nil, refused
		}
		h.s.i.stats.injected.Add(1)
		h.s.i.o.Logger.Debug("put credentials into a request", "sandbox", h.s.c.Sandbox, "host", h.s.name, "binding", in.Binding)
		if refused := substituteBody(out, in); refused != nil {
			return nil, refused
		}
	}
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	out.URL = &url.URL{Scheme: "https", Host: r.Host}
	path, query, hasQuery := strings.Cut(target, "?")
	out.URL.RawQuery, out.URL.ForceQuery = query, hasQuery && query == ""
	if strings.HasPrefix(path, "//") {
		// As an opaque URL it would get a scheme.
		var err error
		if out.URL.Path, err = url.PathUnescape(path); err != nil {
			return nil, &refusal{400, codeMalformed, "the path of the request is malformed", -1}
		}
		out.URL.RawPath = path
	} else {
		out.URL.Opaque = path // byte for byte
	}
	return out, nil
}

// substituteBody puts credentials into a body as it streams.
func substituteBody(out *http.Request, in *vault.Injection) *refusal {
	changes := bodyChanges(in, out.Header.Get("Content-Type"))
	if len(changes) == 0 || out.ContentLength == 0 {
		return nil
	}
	if e := out.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return &refusal{415, codeEncoding, "a credential goes into the body of this request, which must not be compressed; leave out Content-Encoding", -1}
	}
	replaced := newReplacer(out.Body, changes)
	if out.ContentLength < 0 || out.ContentLength > maxBuffered {
		out.ContentLength = -1
		out.Header.Del("Content-Length")
		out.Body = struct {
			io.Reader
			io.Closer
		}{replaced, out.Body}
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(replaced, maxSubstituted+1))
	if err != nil {
		return &refusal{400, codeMalformed, "the body of the request did not come to its end", -1}
	}
	if len(body) > maxSubstituted {
		return &refusal{413, codeSubstitute, "with the credentials in it the body of this request is too long", -1}
	}
	out.ContentLength = int64(len(body))
	out.Header.Set("Content-Length", strconv.Itoa(len(body)))
	out.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

func (h *handler2) copyHeader(to, from http.Header, rules *rules) {
	for name, values := range from {
		for _, v := range values {
			to[name] = append(to[name], h.s.masked(rules, v))
		}
	}
}

// answer passes an answer back.
func (h *handler2) answer(w http.ResponseWriter, r *http.Request, resp *http.Response, rules *rules) error {
	h.copyHeader(w.Header(), resp.Header, rules)
	how := opaque
	if rules.masks && r.Method != http.MethodHead && resp.ContentLength != 0 {
		how = inspect(resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Content-Encoding"))
	}
	if how == unzipped {
		w.Header().Del("Content-Encoding")
		w.Header().Del("Content-Length")
	}
	if resp.Header.Get("Date") == "" {
		w.Header()["Date"] = nil // else the server here adds one
	}
	if resp.Header.Get("Content-Type") == "" {
		w.Header()["Content-Type"] = nil
	}
	for name := range resp.Trailer {
		w.Header().Add("Trailer", name)
	}
	w.WriteHeader(resp.StatusCode)
	flusher := w.(http.Flusher)
	if resp.ContentLength < 0 || resp.ContentLength > smallBody || how == unzipped {
		flusher.Flush() // the body may be long in coming
	}
	var from io.Reader = resp.Body
	if how == unzipped {
		zip, err := gzip.NewReader(resp.Body)
		switch {
		case errors.Is(err, io.EOF):
		case err != nil:
			return err
		default:
			from = zip
		}
	}
	if how != opaque {
		from = h.s.maskingReader(from, rules)
	}
	if err := copyFlushing(w, flusher, from, resp.ContentLength); err != nil {
		return err
	}
	if how == unzipped {
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
	}
	for name, values := range resp.Trailer {
		for _, v := range values {
			w.Header().Add(http.TrailerPrefix+name, h.s.masked(rules, v))
		}
	}
	return nil
}

// copyFlushing passes on what comes as it comes, but for the last of a body whose
// length is known: that goes with the end of the stream.
func copyFlushing(w io.Writer, flusher http.Flusher, from io.Reader, length int64) error {
	done := int64(0)
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if done += int64(n); done != length {
				flusher.Flush()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
