package intercept

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"
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
