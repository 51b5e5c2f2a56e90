package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// open lets every request for its host through. What it does to bodies depends
// on their paths.
type open struct {
	requests atomic.Int64
	held     atomic.Int64
	mostHeld int64 // 0 for no limit
}

const host = "api.example.com"

func (o *open) Request(q *Request) (*Exchange, *Refusal) {
	o.requests.Add(1)
	if q.Authority != host || q.TwoHosts || !strings.HasPrefix(q.Path, "/") {
		return nil, &Refusal{Status: 403, Fields: []Field{{Name: "x-why", Value: "host"}}, Body: []byte("not for you\n")}
	}
	x := &Exchange{}
	if strings.HasPrefix(q.Path, "/upper") {
		x.Body = func(b []byte, _ bool) []byte { return bytes.ToUpper(b) }
	}
	if strings.HasPrefix(q.Path, "/double") {
		x.Body = func(b []byte, _ bool) []byte { return append(bytes.Clone(b), b...) }
		q.Fields = Del(q.Fields, "content-length")
	}
	if strings.HasPrefix(q.Path, "/whole") {
		x.Body = func(b []byte, _ bool) []byte { return append(bytes.Clone(b), b...) }
		x.Whole, x.Most, x.TooLong = true, 1<<20, &Refusal{Status: 413, Body: []byte("too long\n")}
	}
	x.Answer = func(a *Response) Filter {
		switch Get(a.Fields, "x-filter") {
		case "lower":
			return Filter{Change: func(b []byte, _ bool) []byte { return bytes.ToLower(b) }}
		case "expand":
			a.Fields = Del(a.Fields, "content-length")
			return Filter{Expand: &tenfold{}}
		case "bomb":
			return Filter{Expand: &bomb{}}
		}
		return Filter{}
	}
	return x, nil
}

func (o *open) Lost(error) *Refusal { return &Refusal{Status: 502, Body: []byte("lost\n")} }

func (o *open) hold(n int) bool {
	v := o.held.Add(int64(n))
	return o.mostHeld == 0 || v <= o.mostHeld
}

// tenfold says everything ten times.
type tenfold struct {
	in    []byte
	last  bool
	times int
	now   []byte
}

func (x *tenfold) Push(b []byte, last bool) { x.in, x.last = append(x.in, b...), last }
func (x *tenfold) Close()                   {}
func (x *tenfold) Next() ([]byte, bool, error) {
	if x.times == 0 {
		x.now, x.in, x.times = x.in, nil, 10
	}
	if len(x.now) == 0 {
		x.times = 0
		return nil, x.last, nil
	}
	x.times--
	return x.now, false, nil
}

// bomb makes a piece out of each byte.
type bomb struct {
	in   int
	last bool
}

const bombPiece = 32 << 10

func (x *bomb) Push(b []byte, last bool) { x.in, x.last = x.in+len(b), last }
func (x *bomb) Close()                   {}
func (x *bomb) Next() ([]byte, bool, error) {
	if x.in == 0 {
		return nil, x.last, nil
	}
	x.in--
	return make([]byte, bombPiece), false, nil
}

// pair is the two ends of a connection.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp4", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// relayed makes a relay between the two connections that it returns.
func relayed(t testing.TB, h *open, change func(*Options)) (client, server net.Conn) {
	t.Helper()
	client, inner := pair(t)
	outer, server := pair(t)
	o := Options{Client: inner, Server: outer, Handler: h, Hold: h.hold}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Relay(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("the relay does not end")
		}
		if n := h.held.Load(); n != 0 {
			t.Errorf("%d bytes are still counted as held", n)
		}
	})
	return client, server
}

// served is a relay to a real server; the result is its client's end.
func served(t testing.TB, h *open, handler http.Handler, change func(*Options)) net.Conn {
	t.Helper()
	client, server := relayed(t, h, change)
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&http2.Server{}).ServeConn(server, &http2.ServeConnOpts{Handler: handler, BaseConfig: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}})
	}()
	t.Cleanup(func() { server.Close(); <-done })
	return client
}

// real is a real client on a connection.
func real(t testing.TB, c net.Conn) *http2.ClientConn {
	t.Helper()
	cc, err := (&http2.Transport{DisableCompression: true}).NewClientConn(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func request(t testing.TB, method, path string, body io.Reader) *http.Request {
	t.Helper()
	q, err := http.NewRequest(method, "https://"+host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return q.WithContext(ctx)
}

// do makes a request and reads the answer.
func do(t testing.TB, cc *http2.ClientConn, q *http.Request) (*http.Response, string) {
	t.Helper()
	a, err := cc.RoundTrip(q)
	if err != nil {
		t.Fatalf("%s %s: %v", q.Method, q.URL.Path, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", q.Method, q.URL.Path, err)
	}
	return a, string(b)
}

// bare is a client, or a server, that writes what it likes.
type bare struct {
	t testing.TB
	c net.Conn
	*http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newBare(t testing.TB, c net.Conn) *bare {
	b := &bare{t: t, c: c, Framer: http2.NewFramer(c, c)}
	b.AllowIllegalWrites = true
	b.enc = hpack.NewEncoder(&b.buf)
	b.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return b
}

// greet begins as a client.
func (b *bare) greet(settings ...http2.Setting) *bare {
	_, _ = io.WriteString(b.c, http2.ClientPreface)
	_ = b.WriteSettings(settings...)
	return b
}

func (b *bare) block(pairs ...string) []byte {
	b.buf.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = b.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(b.buf.Bytes())
}

func (b *bare) headers(id uint32, end bool, pairs ...string) {
	_ = b.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.block(pairs...), EndStream: end, EndHeaders: true})
}

var get = []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", "/"}

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

// outcome is what becomes of what a bare client does: "goaway CODE", "reset CODE"
// or "status N", of the stream; or "closed".
func (b *bare) outcome(id uint32) string {
	for {
		f, err := b.ReadFrame()
		if err != nil {
			var reset http2.StreamError
			if errors.As(err, &reset) {
				continue
			}
			return "closed"
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset " + f.ErrCode.String()
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return "status " + f.PseudoValue("status")
			}
		}
	}
}
