package local

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

// FuzzExecdAnswer lets an execd that was taken over answer whatever it likes. The
// host must read no more than it has said and come to an end.
func FuzzExecdAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"code\":1}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{\"running\":true,\"hooks\":[{}]}",
		"HTTP/1.1 422 No\r\n\r\n{\"code\":\"USER_NOT_FOUND\",\"message\":\"m\"}",
		"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/9.9 x", "\x00", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for _, ask := range []func(c *execdConn) error{
			func(c *execdConn) error { return c.ping(ctx) },
			func(c *execdConn) error { _, err := c.claim(ctx, &hostapi.Claim{ID: "x"}); return err },
			func(c *execdConn) error { _, err := c.awaitExit("token", 0); return err },
		} {
			host, sandbox := net.Pipe()
			go func() {
				buf := make([]byte, 64<<10)
				_, _ = sandbox.Read(buf) // the request, in one piece
				_, _ = sandbox.Write(answer)
				sandbox.Close()
			}()
			if err := ask(&execdConn{conn: host}); ctx.Err() != nil {
				t.Errorf("it went on for too long: %v", err)
			}
			host.Close()
		}
		host, sandbox := net.Pipe()
		defer host.Close()
		go func() {
			_, _ = sandbox.Write(answer)
			sandbox.Close()
		}()
		if _, body, err := (&execdConn{conn: host}).receive(); err == nil && len(body) > maxExecdAnswer {
			t.Errorf("%d bytes were taken", len(body))
		}
	})
}
