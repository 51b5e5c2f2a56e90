package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// patience bounds what should take no time at all; it only matters for tests
// that fail.
const patience = 20 * time.Second

// dialFunc is a Dialer.
type dialFunc func(ctx context.Context, id string, port int) (net.Conn, error)

func (f dialFunc) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	return f(ctx, id, port)
}

// dialTo dials the same address for every sandbox.
func dialTo(addr string) dialFunc {
	return func(ctx context.Context, _ string, _ int) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// counting counts the dials of a dialer.
func counting(d dialFunc, n *atomic.Int64) dialFunc {
	return func(ctx context.Context, id string, port int) (net.Conn, error) {
		n.Add(1)
		return d(ctx, id, port)
	}
}

func newGateway(t testing.TB, opts Options) *Gateway {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	g, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// front serves /{id}/{port}/… through the gateway, as the server does under its
// own paths. The query "hold" marks the sandbox as not running yet.
func front(t testing.TB, g *Gateway) *httptest.Server {
	t.Helper()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "request-1")
		parts := strings.SplitN(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/", 3)
		port, _ := strconv.Atoi(parts[1])
		target := &Target{ID: parts[0], Port: port, Path: "/", Token: "token-of-" + parts[0],
			Prefix: "/" + parts[0] + "/" + parts[1], Hold: r.URL.Query().Has("hold")}
		if len(parts) == 3 {
			target.Path = "/" + parts[2]
		}
		_, err := g.Proxy(w, r, target)
		if err == nil {
			return
		}
		status, code := 599, err.Error()
		var own *Error
		var typed *sandbox.Error
		switch {
		case errors.As(err, &own):
			status, code = own.Status, own.Code
		case errors.As(err, &typed):
			status, code = 590+int(typed.Kind), typed.Code
		}
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"code": code, "message": err.Error()})
	})
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// backend is a program in a sandbox.
func backend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// rawBackend accepts connections and lets serve do with each what it likes.
func rawBackend(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

// answerWith reads one request's header and writes a fixed answer.
func answerWith(text string) func(net.Conn) {
	return func(c net.Conn) {
		readHeader(c)
		io.WriteString(c, text)
	}
}

func readHeader(c net.Conn) string {
	var b strings.Builder
	one := make([]byte, 1)
	for !strings.HasSuffix(b.String(), "\r\n\r\n") {
		if _, err := c.Read(one); err != nil {
			break
		}
		b.Write(one)
	}
	return b.String()
}

func do(t testing.TB, method, url string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	tr := &http.Transport{DisableCompression: true, ExpectContinueTimeout: patience}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func text(t testing.TB, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return string(b)
}

func wait[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

// frontFor sends every request to one target.
func frontFor(t testing.TB, g *Gateway, target *Target) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.Proxy(w, r, target); err != nil {
			http.Error(w, err.Error(), 599)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}
