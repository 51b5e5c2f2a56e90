package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// execd serves the proxy as execd does: on a Unix socket, without a mux in
// front of /proxy/.
func execd(t testing.TB) *http.Client {
	t.Helper()
	a := New()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/proxy/") {
			a.serve(w, r)
			return
		}
		a.Tunnel(w, r)
	}))
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// dialExecd opens a raw connection to it.
func dialExecd(t testing.TB, c *http.Client) *net.UnixConn {
	t.Helper()
	conn, err := c.Transport.(*http.Transport).DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// service listens on loopback and gives each connection to f.
func service(t testing.TB, network, addr string, f func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("no %s here: %v", addr, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func webService(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	return port
}

func get(t testing.TB, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get("http://sandbox" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestForwards(t *testing.T) {
	c := execd(t)
	port := webService(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s host=%s for=%q proto=%q fhost=%q token=%q own=%q ua=%q",
			r.Method, r.RequestURI, r.Host, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"),
			r.Header.Get("X-Forwarded-Host"), r.Header.Get("X-EXECD-ACCESS-TOKEN"), r.Header.Get("X-Own"), r.Header.Get("User-Agent")))
		w.WriteHeader(http.StatusTeapot)
		w.Write(body)
	})
	for _, v := range []struct{ method, path, want string }{
		{"GET", "", "/"},
		{"GET", "/", "/"},
		{"GET", "/a/b?x=1;y=%zz&&z", "/a/b?x=1;y=%zz&&z"},
		{"PATCH", "/a%2Fb/%c3%bc%20", "/a%2Fb/%c3%bc%20"},
		{"DELETE", "//a/../b/./c", "//a/../b/./c"},
		{"PURGE", "/proxy/" + port + "/x", "/proxy/" + port + "/x"},
	} {
		req, _ := http.NewRequest(v.method, "http://sandbox/proxy/"+port+v.path, strings.NewReader("the body"))
		req.Host = "app.example"
		req.Header.Set("X-Forwarded-Host", "evil")
		req.Header.Set("X-EXECD-ACCESS-TOKEN", "secret")
		req.Header.Set("X-Own", "kept")
		req.Header["User-Agent"] = nil
		if v.path == "/" {
			req.Header.Set("X-Forwarded-For", "192.0.2.7")
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		want := fmt.Sprintf("%s %s host=app.example for=%q proto=\"http\" fhost=\"\" token=\"\" own=\"kept\" ua=\"\"",
			v.method, v.want, req.Header.Get("X-Forwarded-For"))
		if got := resp.Header.Get("X-Seen"); got != want || resp.StatusCode != http.StatusTeapot || string(body) != "the body" {
			t.Errorf("%s: %d %q\n got %s\nwant %s", v.path, resp.StatusCode, body, got, want)
		}
	}
}

func TestForwardedForIsThePeer(t *testing.T) {
	port := webService(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Forwarded-For"))
	})
	mux := http.NewServeMux()
	New().Routes(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/proxy/" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "127.0.0.1" {
		t.Errorf("forwarded for %q", body)
	}
}

func TestRefusesBadPorts(t *testing.T) {
	c := execd(t)
	for _, port := range []string{"", "0", "-1", "+80", "080", "65536", "99999999999999999999", "http", "80%20", "8%30", "0x50", "1e3", "٨٠"} {
		if status, body := get(t, c, "/proxy/"+port+"/x"); status != http.StatusBadRequest || !strings.Contains(body, "65535") {
			t.Errorf("port %q: %d %s", port, status, body)
		}
	}
}

func TestNothingListens(t *testing.T) {
	c := execd(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if status, body := get(t, c, "/proxy/"+port+"/"); status != 502 || !strings.Contains(body, "Bad Gateway") || !strings.Contains(body, port) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := get(t, c, "/?port="+port); status != 400 || !strings.Contains(body, "Upgrade") {
		t.Errorf("a tunnel without upgrade: %d %s", status, body)
	}
	conn := dialExecd(t, c)
	fmt.Fprintf(conn, "GET /?port=%s HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", port)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 502 {
		t.Errorf("%+v, %v", resp, err)
	}
}

func TestIPv6Loopback(t *testing.T) {
	c := execd(t)
	port := service(t, "tcp6", "[::1]:0", func(conn *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")
	})
	if status, body := get(t, c, "/proxy/"+port+"/"); status != 200 || body != "six" {
		t.Errorf("%d %s", status, body)
	}
}

// TestStreams: an event reaches the client while the answer goes on, and a part
// of the request reaches the service while the request goes on.
func TestStreams(t *testing.T) {
	c := execd(t)
	next := make(chan struct{})
	port := webService(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Content-Type", "text/plain") // not only event streams
		in := bufio.NewScanner(r.Body)
		for in.Scan() {
			fmt.Fprintf(w, "echo %s\n", in.Text())
			w.(http.Flusher).Flush()
		}
		close(next)
		<-r.Context().Done()
	})
	pr, pw := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://sandbox/proxy/"+port+"/", pr)
	go io.WriteString(pw, "0\n")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("echo %d", i) {
			t.Fatalf("line %q: %v", lines.Text(), lines.Err())
		}
		fmt.Fprintf(pw, "%d\n", i+1)
	}
	pw.Close()
	<-next
	// The service must see that the client goes: its handler ends.
	cancel()
}

func TestUpgrade(t *testing.T) {
	c := execd(t)
	port := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
		in := bufio.NewReader(conn)
		r, err := http.ReadRequest(in)
		if err != nil || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Key") != "k" {
			t.Errorf("%+v, %v", r, err)
			return
		}
		// The first frame comes with the answer.
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello ")
		io.Copy(conn, in)
	})
	conn := dialExecd(t, c)
	fmt.Fprintf(conn, "GET /proxy/%s/ws HTTP/1.1\r\nHost: s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n", port)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-Websocket-Accept") != "a" {
		t.Fatalf("%+v, %v", resp, err)
	}
	frames := make([]byte, 1<<20)
	rand.Read(frames)
	go conn.Write(frames)
	got := make([]byte, 6+len(frames))
	if _, err := io.ReadFull(in, got); err != nil || string(got[:6]) != "hello " || !bytes.Equal(got[6:], frames) {
		t.Errorf("the frames differ: %v", err)
	}
	conn.CloseWrite()
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after the client's end: %v", err)
	}
}

// TestHostileServices: execd answers or breaks off, and goes on serving.
func TestHostileServices(t *testing.T) {
	c := execd(t)
	for name, v := range map[string]struct {
		answer string
		status int // 0: the body is cut off
	}{
		"silence":          {"", 502},
		"garbage":          {"\x00\xff\x16\x03 garbage\r\n\r\n", 502},
		"endless header":   {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHeader), 502},
		"many headers":     {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", maxHeader/6+1000) + "\r\n", 502},
		"endless 103":      {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("y", 1000)+"\r\n\r\n", 2000), 502},
		"upgrade unasked":  {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502},
		"upgrade to other": {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: \r\n\r\n", 502},
		"short body":       {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 0},
		"bad chunk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\nabc", 0},
		"two lengths":      {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502},
		"injection":        {"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n", -1},
		"odd status":       {"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", 999},
		"bad status":       {"HTTP/1.1 7 What\r\nContent-Length: 0\r\n\r\n", 502},
		"to its end":       {"HTTP/1.0 200 OK\r\n\r\nall of it", 200},
	} {
		t.Run(name, func(t *testing.T) {
			port := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(conn))
				io.WriteString(conn, v.answer)
				conn.CloseWrite()
				io.Copy(io.Discard, conn)
			})
			resp, err := c.Get("http://sandbox/proxy/" + port + "/")
			if v.status == -1 {
				if err == nil && len(resp.Header.Values("Set-Cookie")) > 0 {
					t.Errorf("a header was injected: %v", resp.Header)
				}
				return
			}
			if err != nil && v.status == 0 {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
			if v.status == 0 {
				if err == nil {
					t.Error("a body that was cut off looks whole")
				}
				return
			}
			if err != nil || resp.StatusCode != v.status {
				t.Errorf("%d, %v", resp.StatusCode, err)
			}
		})
	}
	port := webService(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fine") })
	if status, body := get(t, c, "/proxy/"+port+"/"); status != 200 || body != "fine" {
		t.Errorf("%d %s", status, body)
	}
}

// TestPortChangesHands: no connection to the old owner is kept.
func TestPortChangesHands(t *testing.T) {
	c := execd(t)
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "first") }))
	addr := first.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	if _, body := get(t, c, "/proxy/"+port+"/"); body != "first" {
		t.Fatal(body)
	}
	first.Listener.Close()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	second := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "second") })}
	go second.Serve(l)
	defer second.Close()
	if _, body := get(t, c, "/proxy/"+port+"/"); body != "second" {
		t.Errorf("answered by the %s", body)
	}
	first.Close()
}

func tunnel(t *testing.T, port, early string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	conn := dialExecd(t, execd(t))
	fmt.Fprintf(conn, "GET /?port=%s HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n%s", port, early)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%+v, %v", resp, err)
	}
	return conn, in
}

func TestTunnelHalfCloses(t *testing.T) {
	// Each side ends first once; the other goes on.
	t.Run("client first", func(t *testing.T) {
		port := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
			all, err := io.ReadAll(conn)
			fmt.Fprintf(conn, "%d bytes, %v", len(all), err)
		})
		conn, in := tunnel(t, port, "early ")
		conn.Write(make([]byte, 1<<20))
		conn.CloseWrite()
		if got, err := io.ReadAll(in); err != nil || string(got) != "1048582 bytes, <nil>" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("service first", func(t *testing.T) {
		got := make(chan string, 1)
		port := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
			io.WriteString(conn, "bye")
			conn.CloseWrite()
			all, _ := io.ReadAll(conn)
			got <- string(all)
		})
		conn, in := tunnel(t, port, "")
		if all, err := io.ReadAll(in); err != nil || string(all) != "bye" {
			t.Errorf("%q, %v", all, err)
		}
		io.WriteString(conn, "still here")
		conn.CloseWrite()
		if text := <-got; text != "still here" {
			t.Errorf("the service got %q", text)
		}
	})
}

func TestTunnelEndsWithEitherSide(t *testing.T) {
	ended := make(chan error, 1)
	port := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
		io.WriteString(conn, "x")
		_, err := io.Copy(conn, conn)
		ended <- err
	})
	conn, in := tunnel(t, port, "")
	in.ReadByte()
	conn.Close()
	<-ended

	reset := service(t, "tcp4", "127.0.0.1:0", func(conn *net.TCPConn) {
		conn.Read(make([]byte, 1))
		conn.SetLinger(0) // RST
	})
	conn, in = tunnel(t, reset, "x")
	if n, err := io.Copy(io.Discard, in); n != 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
	conn.Close()
}

func TestTunnelRefusals(t *testing.T) {
	c := execd(t)
	for _, query := range []string{"", "?port=", "?port=0", "?port=65536", "?port=+80", "?port=a"} {
		if status, body := get(t, c, "/dial"+query); status != 400 || !strings.Contains(body, `"code"`) {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
}

func FuzzPath(f *testing.F) {
	f.Add("/proxy/80/a%2Fb?x")
	f.Add("/proxy/%38%30/..%2f..")
	f.Add("/proxy/65535")
	a := New()
	var seen *http.Request
	a.forward.Transport = transport(func(r *http.Request) (*http.Response, error) {
		seen = r
		return &http.Response{StatusCode: 204, Body: http.NoBody, Header: http.Header{}}, nil
	})
	f.Fuzz(func(t *testing.T, path string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n")))
		if err != nil {
			return
		}
		seen = nil
		w := httptest.NewRecorder()
		a.serve(w, r)
		if (seen != nil) != (w.Code == 204) {
			t.Fatalf("answered %d", w.Code)
		}
		if seen == nil {
			return
		}
		port, _ := strings.CutPrefix(seen.URL.Host, "127.0.0.1:")
		if _, err := parsePort(port); err != nil {
			t.Errorf("%q leads to %s", path, seen.URL.Host)
		}
		if uri := seen.URL.RequestURI(); !strings.HasPrefix(uri, "/") || !strings.HasPrefix("/proxy/"+port+seen.URL.EscapedPath(), r.URL.EscapedPath()) {
			t.Errorf("%q became %q", path, uri)
		}
	})
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
