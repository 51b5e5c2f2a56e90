package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// tunnelFront serves tunnels to a port; errors are answered with their status
// and code.
func tunnelFront(t testing.TB, g *Gateway, target Target) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := target
		_, err := g.Tunnel(w, r, &to)
		var own *Error
		var typed *sandbox.Error
		switch {
		case errors.As(err, &own):
			w.WriteHeader(own.Status)
			io.WriteString(w, own.Code+" "+own.Message)
		case errors.As(err, &typed):
			w.WriteHeader(590 + int(typed.Kind))
			io.WriteString(w, typed.Code+" "+typed.Message)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// open asks for a tunnel; early is sent together with the request.
func openTunnel(t testing.TB, f *httptest.Server, early string) (*http.Response, *net.TCPConn, *bufio.Reader) {
	t.Helper()
	c := dialRaw(t, f)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: TCP\r\n\r\n"+early)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp, c.(*net.TCPConn), in
}

// Bytes go both ways from the first on, and each direction ends by itself.
func TestTunnel(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn) {
		io.WriteString(c, "220 ready\r\n")
		all, _ := io.ReadAll(c) // until the client has ended its side
		fmt.Fprintf(c, "got %q", all)
	})
	for _, hold := range []bool{false, true} {
		f := tunnelFront(t, newGateway(t, Options{Dialer: dialTo(addr)}), Target{ID: "sb", Port: 22, Hold: hold})
		resp, c, in := openTunnel(t, f, "early \x00\xff")
		if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "tcp" {
			t.Fatalf("%d %v", resp.StatusCode, resp.Header)
		}
		if line, err := in.ReadString('\n'); line != "220 ready\r\n" {
			t.Errorf("%q, %v", line, err)
		}
		io.WriteString(c, "late")
		c.CloseWrite()
		if got, err := io.ReadAll(in); err != nil || string(got) != `got "early \x00\xfflate"` {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// The sandbox may end its side first.
func TestTunnelBackendEndsFirst(t *testing.T) {
	got := make(chan string, 1)
	addr := rawBackend(t, func(c net.Conn) {
		io.WriteString(c, "bye")
		c.(*net.TCPConn).CloseWrite()
		all, _ := io.ReadAll(c)
		got <- string(all)
	})
	f := tunnelFront(t, newGateway(t, Options{Dialer: dialTo(addr)}), Target{ID: "sb", Port: 22})
	_, c, in := openTunnel(t, f, "")
	if b, err := io.ReadAll(in); string(b) != "bye" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	io.WriteString(c, "still here")
	c.Close()
	if s := <-got; s != "still here" {
		t.Errorf("%q", s)
	}
}

func TestTunnelRefused(t *testing.T) {
	refusing := dialFunc(func(context.Context, string, int) (net.Conn, error) { return nil, syscall.ECONNREFUSED })
	gone := dialFunc(func(context.Context, string, int) (net.Conn, error) {
		return nil, sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotRunning, "It has ended.")
	})
	for name, tc := range map[string]struct {
		dial   dialFunc
		port   int
		status int
		want   string
	}{
		"nothing listens": {refusing, 22, http.StatusBadGateway, "Nothing listens on port 22"},
		"ended":           {gone, 22, 590 + int(sandbox.KindConflict), "It has ended"},
		"execd":           {refusing, sandbox.ExecdPort, 590 + int(sandbox.KindInvalid), "proxy only"},
	} {
		f := tunnelFront(t, newGateway(t, Options{Dialer: tc.dial}), Target{ID: "sb", Port: tc.port})
		resp, _, _ := openTunnel(t, f, "")
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != tc.status || !strings.Contains(string(b), tc.want) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
	}
}

// What is no request for a tunnel dials nothing.
func TestTunnelNotAskedFor(t *testing.T) {
	dials := 0
	g := newGateway(t, Options{Dialer: dialFunc(func(context.Context, string, int) (net.Conn, error) {
		dials++
		return nil, syscall.ECONNREFUSED
	})})
	f := tunnelFront(t, g, Target{ID: "sb", Port: 22})
	for _, head := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
		"GET / HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 1\r\n",
	} {
		c := dialRaw(t, f)
		io.WriteString(c, head+"\r\nx") // the byte is the last one's body
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Upgrade") != "tcp" {
			t.Errorf("%q: %v, %v", head, resp, err)
		}
	}
	if dials != 0 {
		t.Errorf("%d dials", dials)
	}
}

// A tunnel goes with its sandbox.
func TestTunnelEvicted(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	g := newGateway(t, Options{Dialer: dialTo(addr)})
	_, _, in := openTunnel(t, tunnelFront(t, g, Target{ID: "sb", Port: 22}), "")
	g.Evict("sb")
	if _, err := in.ReadByte(); err == nil {
		t.Error("the tunnel lives on")
	}
	if n := g.Stats().Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
}
