package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// portServer is a web server on 127.0.0.1 in a sandbox that shows what it is
// asked, keeps what it is sent, and speaks WebSocket.
const portServer = `
import base64, hashlib, http.server, json, struct, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def answer(self, body, status=200, headers=()):
        self.send_response(status)
        for k, v in headers: self.send_header(k, v)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)
    def show(self):
        n = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(n) if n else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while True:
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size); self.rfile.readline()
                if not size: break
        if self.path == "/redirect": return self.answer(b"", 302, [("Location", "/there"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        if self.path == "/big":
            self.send_response(200); self.send_header("Content-Length", str(64 << 20)); self.end_headers()
            for _ in range(64): self.wfile.write(b"x" * (1 << 20))
            return
        if self.path == "/ws": return self.websocket()
        self.answer(json.dumps({"method": self.command, "path": self.path, "headers": [[k.lower(), v] for k, v in self.headers.items()],
            "sha": hashlib.sha256(body).hexdigest(), "length": len(body)}).encode())
    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = show
    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        if "Sec-WebSocket-Protocol" in self.headers: self.send_header("Sec-WebSocket-Protocol", self.headers["Sec-WebSocket-Protocol"].split(",")[0].strip())
        self.end_headers(); self.wfile.flush()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2: return
            op, n = head[0] & 15, head[1] & 127
            if n == 126: n = struct.unpack(">H", self.rfile.read(2))[0]
            elif n == 127: n = struct.unpack(">Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(n)))
            size = bytes([n]) if n < 126 else (b"\x7e" + struct.pack(">H", n) if n < 65536 else b"\x7f" + struct.pack(">Q", n))
            self.wfile.write(bytes([0x80 | op]) + size + data); self.wfile.flush()
            if op == 8: return
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
`

type shown struct {
	Method, Path, SHA string
	Headers           [][2]string
	Length            int64
}

func (s shown) header(name string) string {
	for _, h := range s.Headers {
		if h[0] == name {
			return h[1]
		}
	}
	return ""
}

// startPortServer makes a sandbox with a web server and returns its endpoint.
func startPortServer(t *testing.T, s *harness.Server, bind string) (*client.Sandbox, *client.Endpoint) {
	t.Helper()
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: []string{"python3", "-c", portServer, bind, "8000"}})
	ep, err := s.Client.Endpoint(t.Context(), sb.ID, 8000)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the web server to listen", func() bool {
		return s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+"/proxy/8000/", nil).Status == http.StatusOK
	})
	return sb, ep
}

func TestPortsOverTheGateway(t *testing.T) {
	s := withStarter(t)
	for _, bind := range []string{"127.0.0.1", "0.0.0.0"} {
		t.Run(bind, func(t *testing.T) {
			sb, _ := startPortServer(t, s, bind)
			proxy := "/v1/sandboxes/" + sb.ID + "/proxy/8000"
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
				var got shown
				r := s.Do(t, method, proxy+"/a%2Fb/c?x=1&y=%20z", nil, "X-Mine", "yes")
				if r.Status != http.StatusOK {
					t.Errorf("%s: %d %s", method, r.Status, r.Body)
					continue
				}
				r.JSON(t, &got)
				if got.Method != method || got.Path != "/a%2Fb/c?x=1&y=%20z" || got.header("x-mine") != "yes" {
					t.Errorf("%s arrived as %+v", method, got)
				}
			}
			if r := s.Do(t, http.MethodHead, proxy+"/", nil); r.Status != http.StatusOK || len(r.Body) != 0 {
				t.Errorf("HEAD: %d", r.Status)
			}
			r := s.Do(t, http.MethodGet, proxy+"/redirect", nil)
			if got := r.Header.Get("Location"); r.Status != http.StatusFound || got != proxy+"/there" {
				t.Errorf("a redirect: %d to %q", r.Status, got)
			}
			if got := r.Header.Values("Set-Cookie"); len(got) != 2 {
				t.Errorf("cookies %q, want two", got)
			}
		})
	}
}

func TestGatewayKeepsSecretsAndForwardingTrue(t *testing.T) {
	s := withStarter(t)
	sb, ep := startPortServer(t, s, "127.0.0.1")
	var got shown
	s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+"/proxy/8000/", nil,
		"Authorization", "Bearer x", "Cookie", "c=1", "X-Forwarded-For", "1.2.3.4", "Forwarded", "for=1.2.3.4", "X-Real-IP", "1.2.3.4",
		"OpenSandbox-Secure-Access", ep.Headers["OpenSandbox-Secure-Access"], "Connection", "X-Hop", "X-Hop", "1",
		"X-EXECD-ACCESS-TOKEN", "mine").JSON(t, &got)
	for _, name := range []string{"open-sandbox-api-key", "authorization", "cookie", "forwarded", "x-real-ip", "opensandbox-secure-access", "x-hop"} {
		if v := got.header(name); v != "" {
			t.Errorf("the sandbox saw %s: %q", name, v)
		}
	}
	if got := got.header("x-forwarded-for"); got != "127.0.0.1" {
		t.Errorf("X-Forwarded-For %q, want the true one", got)
	}
	for _, h := range got.Headers {
		if strings.Contains(h[1], s.Key) || strings.Contains(h[1], ep.Headers["OpenSandbox-Secure-Access"]) {
			t.Errorf("the sandbox saw a secret in %s", h[0])
		}
	}
}

func TestLargeBodiesThroughTheGateway(t *testing.T) {
	s := withStarter(t)
	sb, _ := startPortServer(t, s, "127.0.0.1")
	url := s.URL + "/v1/sandboxes/" + sb.ID + "/proxy/8000"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/big", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("OPEN-SANDBOX-API-KEY", s.Key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != 64<<20 {
		t.Errorf("down: %d bytes, %v", n, err)
	}
	// Chunked, of unknown length.
	req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/up", io.MultiReader(bytes.NewReader(make([]byte, 16<<20))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("OPEN-SANDBOX-API-KEY", s.Key)
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(b), fmt.Sprintf(`"length": %d`, 16<<20)) {
		t.Errorf("up: %s", b)
	}
}

func TestWebSocketThroughTheGateway(t *testing.T) {
	s := withStarter(t)
	_, ep := startPortServer(t, s, "127.0.0.1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	headers := http.Header{}
	for k, v := range ep.Headers {
		headers.Set(k, v)
	}
	ws, resp, err := websocket.Dial(ctx, "ws://"+ep.Endpoint+"/ws", &websocket.DialOptions{HTTPHeader: headers, Subprotocols: []string{"echo.v1"}})
	if err != nil {
		t.Fatalf("%v (%+v)", err, resp)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	if ws.Subprotocol() != "echo.v1" {
		t.Errorf("sub-protocol %q", ws.Subprotocol())
	}
	for _, size := range []int{0, 1, 125, 126, 70000} {
		msg := bytes.Repeat([]byte("x"), size)
		if err := ws.Write(ctx, websocket.MessageBinary, msg); err != nil {
			t.Fatal(err)
		}
		kind, got, err := ws.Read(ctx)
		if err != nil || kind != websocket.MessageBinary || !bytes.Equal(got, msg) {
			t.Fatalf("%d bytes came back as %d: %v", size, len(got), err)
		}
	}
	if err := ws.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, _, err := websocket.Dial(ctx, "ws://"+ep.Endpoint+"/ws", nil); err == nil {
		t.Error("a WebSocket without key or token was let in")
	}
}

func TestNothingListens(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	r := s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+"/proxy/8123/", nil)
	code, message := r.Error(t)
	if r.Status != http.StatusBadGateway || code != "BACKEND_CONNECTION_FAILED" || !strings.Contains(message, "8123") {
		t.Errorf("%d %s %q", r.Status, code, message)
	}
}
