package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func TestWebSocket(t *testing.T) {
	origins := make(chan string, 1)
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		origins <- r.Header.Get("Origin")
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"second"}, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(msg) == "bye" {
				c.Close(4321, "so long")
				return
			}
			if c.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(f.URL, "http")+"/sb/80/ws?x=1",
		&websocket.DialOptions{Subprotocols: []string{"first", "second"}, HTTPHeader: http.Header{"Origin": {"https://page.example"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	if got := wait(t, origins, "the handshake"); got != "https://page.example" {
		t.Errorf("Origin = %q", got)
	}
	if c.Subprotocol() != "second" {
		t.Errorf("sub-protocol = %q", c.Subprotocol())
	}
	for kind, msg := range map[websocket.MessageType]string{websocket.MessageText: "héllo", websocket.MessageBinary: strings.Repeat("\x00\xff", 1<<20)} {
		if err := c.Write(ctx, kind, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		gotKind, got, err := c.Read(ctx)
		if err != nil || gotKind != kind || string(got) != msg {
			t.Fatalf("echo of %d bytes: %v, %d bytes, %v", len(msg), gotKind, len(got), err)
		}
	}
	c.Write(ctx, websocket.MessageText, []byte("bye"))
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != 4321 {
		t.Errorf("close = %v, want code 4321", err)
	}
}

// upgradeRaw sends an upgrade and returns the answer's header and its stream.
func upgradeRaw(t *testing.T, addr, protocol string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	c := dialRaw(t, f)
	fmt.Fprintf(c, "POST /sb/80/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 2\r\n\r\n{}early", protocol)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp, c, in
}

// Other protocols are tunnelled too, with bytes that came early, and with ends
// that are passed on one by one.
func TestUpgradeToAnyProtocol(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nX-App: 1\r\nServer: x\r\n\r\nhello ")
		all, _ := io.ReadAll(in) // until the client has ended its side
		fmt.Fprintf(c, "got %q", all)
	})
	resp, c, in := upgradeRaw(t, addr, "tcp")
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "tcp" || resp.Header.Get("X-App") != "1" || resp.Header.Get("Server") != "" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	io.WriteString(c, " late")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(in); err != nil || string(got) != `hello got "early late"` {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUpgradeRefused(t *testing.T) {
	addr := rawBackend(t, answerWith("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"))
	resp, _, _ := upgradeRaw(t, addr, "tcp")
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 426 || string(b) != "no" || err != nil {
		t.Errorf("%d %q %v", resp.StatusCode, b, err)
	}
}

func TestUpgradeToAnotherProtocol(t *testing.T) {
	for _, answer := range []string{"Connection: Upgrade\r\nUpgrade: h2c\r\n", "Connection: Upgrade\r\n", ""} {
		addr := rawBackend(t, answerWith("HTTP/1.1 101 Switching Protocols\r\n"+answer+"\r\n"))
		resp, _, _ := upgradeRaw(t, addr, "tcp")
		if resp.StatusCode != 502 {
			t.Errorf("%q: %d", answer, resp.StatusCode)
		}
	}
}

func TestTunnelEndsWithItsSandbox(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn) {
		answerWith("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")(c)
		io.Copy(io.Discard, c)
	})
	g := newGateway(t, Options{Dialer: dialTo(addr)})
	f := front(t, g)
	c := dialRaw(t, f)
	io.WriteString(c, "GET /sb/80/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n")
	in := bufio.NewReader(c)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v %v", resp, err)
	}
	g.Evict("sb")
	if _, err := in.ReadByte(); err == nil {
		t.Error("the tunnel lives on")
	}
}
