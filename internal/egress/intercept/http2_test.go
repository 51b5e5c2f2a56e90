package intercept

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/h2"
	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
)

// What a sandbox asks for and does not read is kept at the destination, not here.
func TestUnreadStreamsAreBounded(t *testing.T) {
	const streams, size = 40, 4 << 20
	var sent atomic.Int64
	progress := make(chan struct{}, 1)
	r := newRig(t, rigOptions{http2: true}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		block := make([]byte, 64<<10)
		for range size / len(block) {
			n, err := w.Write(block)
			sent.Add(int64(n))
			select {
			case progress <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}))
	r.bind("", bearer)
	sandbox := r.transport(true)
	// As small as the library lets it be.
	sandbox.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 16 << 10}
	for range streams {
		req := r.request("GET", "/", "")
		resp, err := sandbox.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			resp.Body.Close()
		}()
		if resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto)
		}
	}
	// Until nothing moves any more.
	for quiet := false; !quiet; {
		select {
		case <-progress:
		case <-time.After(time.Second):
			quiet = true
		}
	}
	// The sandbox's window, what lies in sockets, and what the server has taken
	// from its handlers.
	if got := sent.Load(); got > 24<<20 {
		t.Errorf("%d MiB of %d are under way", got>>20, streams*size>>20)
	}
}

// session2 is a connection over HTTP/2 as requests find it.
func (r *rig) session2() *session {
	c := &proxy.Conn{Sandbox: "sb1", Original: netip.AddrPortFrom(r.addr.Addr(), uint16(r.port)), Name: testHost, Verdict: proxy.Verdict{Allow: true, Named: true}}
	return &session{i: r.i, c: c, name: testHost, scheme: "https"}
}

// The frames of a WebSocket are no body: nothing is put into them, looked for in
// them or held back, as after a 101 over HTTP/1.
func TestExtendedConnectIsATunnel(t *testing.T) {
	r := newRig(t, rigOptions{http2: true}, http.NotFoundHandler())
	r.bind("", `"type":"bearer","credential":"c","substitutions":[{"credential":"c","placeholder":"{{KEY}}","in":["header","body"]}]`)
	q := &h2.Request{Method: "CONNECT", Protocol: "websocket", Path: "/chat", Length: -1, Fields: []h2.Field{{Name: "x-key", Value: "{{KEY}}"}}}
	x, refused := r.session2().pass2(q, "GET", nil)
	if refused != nil {
		t.Fatal(refused.message)
	}
	if x.Body != nil || x.Whole {
		t.Error("the frames of the client are treated as a body")
	}
	if got := h2.Get(q.Fields, "x-key"); got != testValue || h2.Get(q.Fields, "authorization") == "" {
		t.Errorf("the credentials are not in the head: %q", got)
	}
	for _, length := range []string{"", "0", "5"} {
		a := &h2.Response{Status: 200, Length: -1, Fields: []h2.Field{{Name: "x-echo", Value: testValue}}}
		if length != "" {
			a.Length = int64(length[0] - '0')
			a.Fields = append(a.Fields, h2.Field{Name: "content-length", Value: length})
		}
		if f := x.Answer(a); f.Change != nil || f.Expand != nil {
			t.Errorf("length %q: the frames of the destination are treated as a body", length)
		}
		if h2.Get(a.Fields, "content-length") != "" || h2.Get(a.Fields, "x-echo") == testValue {
			t.Errorf("length %q: the head is %v", length, a.Fields)
		}
	}
	// A refusal has a body like any other.
	if f := x.Answer(&h2.Response{Status: 403, Length: -1}); f.Change == nil {
		t.Error("the body of a refusal is not looked into")
	}
}

// Without anything to mask an answer's length is dropped all the same.
func TestExtendedConnectWithoutCredentials(t *testing.T) {
	r := newRig(t, rigOptions{http2: true}, http.NotFoundHandler())
	x, refused := r.session2().pass2(&h2.Request{Method: "CONNECT", Protocol: "websocket", Path: "/", Length: -1}, "GET", nil)
	if refused != nil || x.Answer == nil {
		t.Fatal("the answer is not looked at")
	}
	a := &h2.Response{Status: 200, Fields: []h2.Field{{Name: "content-length", Value: "0"}}}
	if f := x.Answer(a); f.Change != nil || len(a.Fields) != 0 {
		t.Errorf("%+v", a)
	}
	if f := x.Answer(&h2.Response{Status: 403, Length: -1}); f.Change != nil {
		t.Error("there is nothing to look for")
	}
}
