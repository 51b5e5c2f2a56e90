package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

type netConn = net.Conn

func dialRaw(t testing.TB, f *httptest.Server) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestEventsArriveOneByOne(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for i := range 3 {
			<-next
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	resp := do(t, "GET", f.URL+"/sb/80/events", nil) // the header comes before any event
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		next <- struct{}{}
		line, err := lines.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
		lines.ReadString('\n')
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("after the last event: %q, %v", rest, err)
	}
}

// What is between the engine and execd is not for those who reach its port.
func TestRoutesOfTheEngineAreRefused(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	for _, path := range []string{"", "/", "/trust", "/dial?port=22", "/claim?hold", "/%74rust"} {
		resp := do(t, "GET", f.URL+"/sb/44772/paddock/v1"+path, nil)
		if body := text(t, resp); resp.StatusCode != 404 || !strings.Contains(body, codeNoRoute) {
			t.Errorf("%q: %d %s", path, resp.StatusCode, body)
		}
	}
	for _, path := range []string{"/%70addock/v1/trust", "/paddock%2Fv1/trust", "//paddock/v1/trust", "/x/%2e%2e/paddock/v1/trust"} {
		if resp := do(t, "GET", f.URL+"/sb/44772"+path, nil); resp.StatusCode != 404 {
			t.Errorf("%q: %d %s", path, resp.StatusCode, text(t, resp))
		}
	}
	if resp := do(t, "GET", f.URL+"/sb/44772/paddock/v1/dial", nil, "Connection", "Upgrade", "Upgrade", "tcp"); resp.StatusCode != 404 {
		t.Errorf("a change of protocols: %d", resp.StatusCode)
	}
	for _, path := range []string{"/44772/paddock/v10", "/44772/paddock/v", "/44772/files/paddock/v1/trust", "/80/paddock/v1/trust"} {
		if resp := do(t, "GET", f.URL+"/sb"+path, nil); resp.StatusCode != 200 {
			t.Errorf("%q: %d %s", path, resp.StatusCode, text(t, resp))
		}
	}
}

// What an answer's bytes are is the program's to say, or to leave open.
func TestNoContentTypeIsMadeUp(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		if r.URL.Path == "/typed" {
			w.Header().Set("Content-Type", "application/x-mine")
		}
		io.WriteString(w, "<html>")
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	if resp := do(t, "GET", f.URL+"/sb/80/", nil); resp.Header["Content-Type"] != nil || text(t, resp) != "<html>" {
		t.Errorf("Content-Type = %q", resp.Header["Content-Type"])
	}
	if got := do(t, "GET", f.URL+"/sb/80/typed", nil).Header.Get("Content-Type"); got != "application/x-mine" {
		t.Errorf("Content-Type = %q", got)
	}
}

func TestPiecesOfAKnownLengthArriveAtOnce(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		<-next
		io.WriteString(w, "b")
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	resp := do(t, "GET", f.URL+"/sb/80/", nil)
	one := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, one); err != nil || one[0] != 'a' {
		t.Fatalf("first byte: %q, %v", one, err)
	}
	close(next)
	if got := text(t, resp); got != "b" {
		t.Errorf("rest = %q", got)
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	const size = 100 << 20
	sum := func(r io.Reader) string {
		h := sha256.New()
		n, err := io.Copy(h, r)
		return fmt.Sprintf("%d %v %x", n, err, h.Sum(nil))
	}
	want := sum(pseudo(size))
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			io.WriteString(w, sum(r.Body))
			return
		}
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		io.Copy(w, pseudo(size))
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	for _, path := range []string{"/sized", "/chunked"} {
		if got := sum(do(t, "GET", f.URL+"/sb/80"+path, nil).Body); got != want {
			t.Errorf("download %s: %s, want %s", path, got, want)
		}
	}
	if got := text(t, do(t, "POST", f.URL+"/sb/80/", io.LimitReader(pseudo(size), size))); got != want {
		t.Errorf("chunked upload: %s, want %s", got, want)
	}
}

// pseudo is a stream of random looking bytes, the same each time.
func pseudo(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

func TestAnswerWhileTheRequestGoesOn(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(w, strings.ToUpper(line))
			w.(http.Flusher).Flush()
		}
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	pr, pw := io.Pipe()
	answered := make(chan *http.Response, 1)
	go func() { answered <- do(t, "POST", f.URL+"/sb/80/", pr) }()
	io.WriteString(pw, "one\n")
	resp := wait(t, answered, "the answer")
	out := bufio.NewReader(resp.Body)
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			io.WriteString(pw, word+"\n")
		}
		if line, err := out.ReadString('\n'); err != nil || line != strings.ToUpper(word)+"\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	pw.Close()
	if _, err := out.ReadByte(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// What a client still sends after an early answer is the rest of its body, and
// must never be taken for another request.
func TestEarlyAnswerEndsTheConnection(t *testing.T) {
	var requests atomic.Int64
	addr := rawBackend(t, func(c net.Conn) {
		requests.Add(1)
		answerWith("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")(c)
		io.Copy(io.Discard, c)
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	c := dialRaw(t, f)
	io.WriteString(c, "POST /sb/80/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegin")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusForbidden {
		t.Fatalf("%v, %v", resp, err)
	}
	if !resp.Close {
		t.Error("the connection was not announced to close")
	}
	io.WriteString(c, "GET /sb/80/smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
	io.Copy(io.Discard, resp.Body)
	if _, err := http.ReadResponse(in, nil); err == nil {
		t.Error("the rest of a body was answered as a request")
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("the sandbox saw %d requests, want 1", n)
	}
}

// A client that sends everything before it looks sees the early answer too.
func TestEarlyAnswerReachesClientsThatOnlySend(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"answer":     answerWith("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"),
		"broken off": func(c net.Conn) { readHeader(c) },
	} {
		t.Run(name, func(t *testing.T) {
			f := front(t, newGateway(t, Options{Dialer: dialTo(rawBackend(t, serve))}))
			c := dialRaw(t, f)
			const size = 64 << 20
			fmt.Fprintf(c, "POST /sb/80/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
			if _, err := io.Copy(c, struct{ io.Reader }{pseudo(size)}); err != nil {
				t.Fatalf("sending: %v", err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 413 && resp.StatusCode != 502 {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
}

func TestExpectContinue(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	if got := text(t, do(t, "POST", f.URL+"/sb/80/take", strings.NewReader("body"), "Expect", "100-continue")); got != "body" {
		t.Errorf("accepted body = %q", got)
	}
	read := &countingReader{r: strings.NewReader("body")}
	if resp := do(t, "POST", f.URL+"/sb/80/refuse", read, "Expect", "100-continue"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", resp.StatusCode)
	}
	if read.n.Load() > 0 {
		t.Error("the body was asked for although the sandbox refused it")
	}
}

type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestTrailers(t *testing.T) {
	addr := rawBackend(t, answerWith("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n"))
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	resp := do(t, "GET", f.URL+"/sb/80/", nil)
	if text(t, resp) != "ok" || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailer = %v", resp.Trailer)
	}
}

func TestBrokenBackends(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		serve  func(net.Conn)
		status int
		code   string
	}{
		"closes at once":          {func(net.Conn) {}, 502, CodeResponseFailed},
		"closes after reading":    {func(c net.Conn) { readHeader(c) }, 502, CodeResponseFailed},
		"is not HTTP":             {answerWith("SSH-2.0-OpenSSH_9.2\r\n\r\n"), 502, CodeResponseFailed},
		"ends in the header":      {answerWith(head + "X: "), 502, CodeResponseFailed},
		"has a huge header":       {answerWith(head + "X: " + strings.Repeat("a", 512<<10) + "\r\n\r\n"), 502, CodeResponseFailed},
		"has a thousand lengths":  {answerWith(head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 502, CodeResponseFailed},
		"has a negative length":   {answerWith(head + "Content-Length: -1\r\n\r\n"), 502, CodeResponseFailed},
		"status 007":              {answerWith("HTTP/1.1 007 Bond\r\n\r\n"), 502, CodeResponseFailed},
		"status 999":              {answerWith("HTTP/1.1 999 Never\r\nContent-Length: 0\r\n\r\n"), 502, CodeResponseFailed},
		"status -12":              {answerWith("HTTP/1.1 -12 Never\r\n\r\n"), 502, CodeResponseFailed},
		"changes unasked":         {answerWith("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), 502, CodeResponseFailed},
		"says 1xx without an end": {answerWith(strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 50_000)), 502, CodeResponseFailed},
		"header with a NUL":       {answerWith(head + "X: a\x00b\r\nContent-Length: 0\r\n\r\n"), 502, CodeResponseFailed},
	} {
		t.Run(name, func(t *testing.T) {
			f := front(t, newGateway(t, Options{Dialer: dialTo(rawBackend(t, c.serve))}))
			resp := do(t, "POST", f.URL+"/sb/80/", strings.NewReader("body"))
			if body := text(t, resp); resp.StatusCode != c.status || !strings.Contains(body, c.code) || !strings.Contains(body, `\"sb\"`) {
				t.Errorf("%d %s, want %d %s with the sandbox's id", resp.StatusCode, body, c.status, c.code)
			}
		})
	}
}

func TestHalfAnAnswerNeverLooksWhole(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	for name, answer := range map[string]string{
		"short of its length":  head + "Content-Length: 10\r\n\r\nhalf",
		"chunked without end":  head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"in the middle of one": head + "Transfer-Encoding: chunked\r\n\r\nff\r\nhalf",
		"broken chunk size":    head + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := front(t, newGateway(t, Options{Dialer: dialTo(rawBackend(t, answerWith(answer)))}))
			resp := do(t, "GET", f.URL+"/sb/80/", nil)
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("read %q to its end without an error", b)
			}
		})
	}
}

func TestNothingListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	resp := do(t, "GET", f.URL+"/sb/8123/", nil)
	body := text(t, resp)
	if resp.StatusCode != 502 || !strings.Contains(body, CodeConnectionFailed) ||
		!strings.Contains(body, "8123") || !strings.Contains(body, "sb") || strings.Contains(body, addr) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestTypedErrorsOfTheDialerPass(t *testing.T) {
	gone := sandbox.ErrNotFound("sb")
	f := front(t, newGateway(t, Options{Dialer: dialFunc(func(context.Context, string, int) (net.Conn, error) { return nil, gone })}))
	for _, query := range []string{"", "?hold"} {
		resp := do(t, "GET", f.URL+"/sb/80/"+query, nil)
		if body := text(t, resp); resp.StatusCode != 590+int(sandbox.KindNotFound) || !strings.Contains(body, sandbox.CodeNotFound) {
			t.Errorf("%q: %d %s", query, resp.StatusCode, body)
		}
	}
}

func TestTimeouts(t *testing.T) {
	stuck := dialFunc(func(ctx context.Context, _ string, _ int) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	silent := rawBackend(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	for name, c := range map[string]struct {
		opts  Options
		query string
	}{
		"dial": {Options{Dialer: stuck, DialTimeout: time.Millisecond}, ""},
		"hold": {Options{Dialer: stuck, HoldTimeout: time.Millisecond}, "?hold"},
		"read": {Options{Dialer: dialTo(silent), ResponseTimeout: time.Millisecond}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := front(t, newGateway(t, c.opts))
			resp := do(t, "GET", f.URL+"/sb/80/"+c.query, nil)
			if body := text(t, resp); resp.StatusCode != 504 || !strings.Contains(body, CodeTimeout) {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestHeldRequests(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ran") })
	running := make(chan struct{})
	var dials atomic.Int64
	g := newGateway(t, Options{MaxHeld: 1, Dialer: counting(func(ctx context.Context, id string, port int) (net.Conn, error) {
		select {
		case <-running:
			return dialTo(addr)(ctx, id, port)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, &dials)})
	f := front(t, g)

	first := make(chan *http.Response, 1)
	go func() { first <- do(t, "POST", f.URL+"/sb/80/?hold", strings.NewReader("x")) }()
	await(t, func() bool { return g.Stats().Held == 1 })
	resp := do(t, "GET", f.URL+"/sb/80/?hold", nil)
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d %s", resp.StatusCode, text(t, resp))
	}
	close(running)
	if got := text(t, wait(t, first, "the held answer")); got != "ran" {
		t.Errorf("held request: %q", got)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials, want the one of the wait to be used", n)
	}
	if n := g.Stats().Held; n != 0 {
		t.Errorf("%d still held", n)
	}
}

func TestHeldRequestEndsWithItsClient(t *testing.T) {
	ended := make(chan struct{})
	g := newGateway(t, Options{Dialer: dialFunc(func(ctx context.Context, _ string, _ int) (net.Conn, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})})
	f := front(t, g)
	c := dialRaw(t, f)
	io.WriteString(c, "GET /sb/80/?hold HTTP/1.1\r\nHost: x\r\n\r\n")
	await(t, func() bool { return g.Stats().Held == 1 })
	c.Close()
	wait(t, ended, "the end of the wait")
}

func TestClientThatLeavesEndsTheRequest(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		close(began)
		<-r.Context().Done()
		close(ended)
	})
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	c := dialRaw(t, f)
	io.WriteString(c, "GET /sb/80/ HTTP/1.1\r\nHost: x\r\n\r\n")
	wait(t, began, "the request")
	c.Close()
	wait(t, ended, "the cancellation")
}

func TestConnectionsAreReusedButNeverShared(t *testing.T) {
	var dials [2]atomic.Int64
	var addrs [2]string
	for i := range addrs {
		addrs[i] = backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "sandbox %d", i) })
	}
	g := newGateway(t, Options{Dialer: dialFunc(func(ctx context.Context, id string, port int) (net.Conn, error) {
		i := int(id[len(id)-1] - '0')
		return counting(dialTo(addrs[i]), &dials[i])(ctx, id, port)
	})})
	f := front(t, g)
	for n := range 20 {
		i := n % 2
		if got, want := text(t, do(t, "GET", fmt.Sprintf("%s/sb%d/80/", f.URL, i), nil)), fmt.Sprintf("sandbox %d", i); got != want {
			t.Fatalf("request %d got %q, want %q", n, got, want)
		}
	}
	for i := range dials {
		// A connection is back in the pool a moment after the answer's end.
		if n := dials[i].Load(); n > 3 {
			t.Errorf("sandbox %d was dialed %d times for 10 requests in a row", i, n)
		}
	}
}

func TestEvictBreaksStreamsOff(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	g := newGateway(t, Options{Dialer: dialTo(addr)})
	f := front(t, g)
	resp := do(t, "GET", f.URL+"/sb/80/", nil)
	other := do(t, "GET", f.URL+"/other/80/", nil)
	g.Evict("sb")
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the stream ended with %q and no error", b)
	}
	if ids := g.conns.ids(); len(ids) != 1 || ids[0] != "other" {
		t.Errorf("connections are left for %v, want only the other sandbox", ids)
	}
	g.Close()
	if _, err := io.ReadAll(other.Body); err == nil {
		t.Error("Close left a stream as if it had ended well")
	}
	if n := g.Stats().Connections; n != 0 {
		t.Errorf("%d connections after Close", n)
	}
	if resp := do(t, "GET", f.URL+"/sb/80/", nil); resp.StatusCode != 502 {
		t.Errorf("after Close: %d", resp.StatusCode)
	}
}

func TestSweep(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	g := newGateway(t, Options{Dialer: dialTo(addr), Gone: func(id string) bool { return id == "gone" }})
	f := front(t, g)
	do(t, "GET", f.URL+"/gone/80/", nil)
	do(t, "GET", f.URL+"/idle/80/", nil)
	do(t, "GET", f.URL+"/live/80/", nil)
	for _, c := range g.conns.of("idle") {
		c.used.Store(-int64(2 * g.opts.StreamIdle))
	}
	g.sweep()
	if ids := g.conns.ids(); len(ids) != 1 || ids[0] != "live" {
		t.Errorf("connections are left for %v, want only the live one", ids)
	}
}

func TestBodyThatCanNotBeRead(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	f := front(t, newGateway(t, Options{Dialer: dialTo(addr)}))
	c := dialRaw(t, f)
	io.WriteString(c, "POST /sb/80/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 400 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestPumpGrowsItsBuffer(t *testing.T) {
	in := bytes.Repeat([]byte("x"), 3*largeBuffer)
	var sizes []int
	total := 0
	err := pump(bytes.NewReader(in), func(p []byte) error {
		sizes = append(sizes, len(p))
		total += len(p)
		return nil
	})
	if err != nil || total != len(in) || sizes[0] != smallBuffer || sizes[1] != largeBuffer {
		t.Errorf("%v, %d bytes in pieces of %v", err, total, sizes)
	}
	stop := errors.New("stop")
	if err := pump(bytes.NewReader(in), func([]byte) error { return stop }); err != stop {
		t.Errorf("error of the writer: %v", err)
	}
}

func await(t testing.TB, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition never held")
		}
	}
}
