package h2

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// echo answers with the body of the request, and with what its headers ask for.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	for name, values := range r.Header {
		if strings.HasPrefix(name, "Answer-") {
			w.Header()[strings.TrimPrefix(name, "Answer-")] = values
		}
	}
	w.Header().Set("Trailer", "X-Sum")
	w.Header().Set("X-Length", strconv.FormatInt(r.ContentLength, 10))
	sum := sha256.New()
	buf := make([]byte, 8<<10)
	w.(http.Flusher).Flush()
	for {
		n, err := r.Body.Read(buf)
		sum.Write(buf[:n])
		w.Write(buf[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			break
		}
	}
	w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	if v := r.Trailer.Get("X-End"); v != "" {
		w.Header().Set("X-Sum", v)
	}
})

// Bodies of many sizes, changed and not, many at a time, over windows of many
// sizes.
func TestBodies(t *testing.T) {
	for _, small := range []bool{false, true} {
		t.Run(fmt.Sprintf("small windows=%v", small), func(t *testing.T) {
			c := served(t, &open{}, echo, nil)
			tr := &http2.Transport{DisableCompression: true}
			if small {
				h1, err := http2.ConfigureTransports(&http.Transport{HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10, MaxReceiveBufferPerConnection: 64 << 10}})
				if err != nil {
					t.Fatal(err)
				}
				tr = h1
				tr.DisableCompression = true
			}
			cc, err := tr.NewClientConn(c)
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(1, uint64(i)))
					for range 3 {
						body := bytes.Repeat([]byte("aBc"), rnd.IntN(1<<rnd.IntN(18)+1))
						path, want := "/", body
						if i%3 == 1 {
							path, want = "/upper", bytes.ToUpper(body)
						}
						if i%5 == 1 {
							path, want = "/double", append(bytes.Clone(body), body...)
						}
						if i%7 == 1 {
							path, want = "/whole", append(bytes.Clone(body), body...)
						}
						q := request(t, "POST", path, bytes.NewReader(body))
						if i%2 == 0 {
							q.ContentLength = -1
						}
						if i%4 == 1 {
							q.Header.Set("Answer-X-Filter", "lower")
						}
						if i%4 == 2 {
							q.Header.Set("Answer-X-Filter", "expand")
						}
						a, got := do(t, cc, q)
						norm := func(b []byte) string {
							if i%5 == 1 || i%7 == 1 || i%4 == 2 {
								return strconv.Itoa(len(b)) // in an order that depends on the pieces
							}
							return string(b)
						}
						sum := a.Trailer.Get("X-Sum")
						if i%4 == 1 {
							want = bytes.ToLower(want)
						}
						if i%4 == 2 {
							want = bytes.Repeat(want, 10)
						}
						if a.StatusCode != 200 || norm([]byte(got)) != norm(want) || sum == "" {
							t.Errorf("%s %d: %d, %d bytes of %d, trailer %q", path, i, a.StatusCode, len(got), len(want), sum)
						}
						if i%7 == 1 && a.Header.Get("X-Length") != strconv.Itoa(2*len(body)) {
							t.Errorf("a body that was held has the length %s, not %d", a.Header.Get("X-Length"), 2*len(body))
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestTrailersAndInterimAnswers(t *testing.T) {
	c := served(t, &open{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(103)
		echo(w, r)
	}), nil)
	q := request(t, "POST", "/", strings.NewReader("body"))
	q.ContentLength, q.Trailer = -1, http.Header{"X-End": {"the end"}}
	early := ""
	q = q.WithContext(httptrace.WithClientTrace(q.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		early = fmt.Sprint(code, h.Get("Link"))
		return nil
	}}))
	a, got := do(t, real(t, c), q)
	if early != "103</x>" || got != "body" || a.Trailer.Get("X-Sum") != "the end" {
		t.Errorf("%q %q %v", early, got, a.Trailer)
	}
}

// One request whose body is held must not keep others back, nor take their turn.
func TestOneThatWaitsKeepsNobodyBack(t *testing.T) {
	cc := real(t, served(t, &open{}, echo, nil))
	pr, pw := io.Pipe()
	q := request(t, "POST", "/whole", pr)
	done := make(chan string)
	go func() {
		_, got := do(t, cc, q)
		done <- got
	}()
	io.WriteString(pw, "ab")
	for range 3 {
		if a, got := do(t, cc, request(t, "PUT", "/", strings.NewReader("x"))); a.StatusCode != 200 || got != "x" {
			t.Errorf("%d %q", a.StatusCode, got)
		}
	}
	pw.Close()
	if got := <-done; got != "abab" {
		t.Errorf("%q", got)
	}
	if a, _ := do(t, cc, request(t, "POST", "/whole", bytes.NewReader(make([]byte, 1<<20)))); a.StatusCode != 413 {
		t.Errorf("too long a body: %d", a.StatusCode)
	}
}

func TestRefusals(t *testing.T) {
	h := &open{}
	cc := real(t, served(t, h, echo, nil))
	for _, size := range []int{0, 10, 3 << 20} {
		q := request(t, "POST", "/", bytes.NewReader(make([]byte, size)))
		q.Host = "other.example.com"
		a, got := do(t, cc, q)
		if a.StatusCode != 403 || got != "not for you\n" || a.Header.Get("X-Why") != "host" {
			t.Errorf("%d %q", a.StatusCode, got)
		}
	}
	q := request(t, "HEAD", "/", nil)
	q.Host = "other.example.com"
	if a, got := do(t, cc, q); a.StatusCode != 403 || got != "" || a.ContentLength != 12 {
		t.Errorf("%d %q %d", a.StatusCode, got, a.ContentLength)
	}
	// And the connection goes on.
	if a, got := do(t, cc, request(t, "PUT", "/", strings.NewReader("x"))); a.StatusCode != 200 || got != "x" {
		t.Errorf("%d %q", a.StatusCode, got)
	}
	t.Run("no destination", func(t *testing.T) {
		cc := real(t, served(t, h, echo, func(o *Options) { o.Server = nil }))
		if a, got := do(t, cc, request(t, "PUT", "/", bytes.NewReader(make([]byte, 1<<20)))); a.StatusCode != 502 || got != "lost\n" {
			t.Errorf("%d %q", a.StatusCode, got)
		}
	})
}

// What a destination does to its streams reaches the client.
func TestResetsAndEnds(t *testing.T) {
	begun := make(chan struct{}, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/half":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/hang":
			w.(http.Flusher).Flush()
			begun <- struct{}{}
			<-r.Context().Done()
			begun <- struct{}{}
		}
	})
	cc := real(t, served(t, &open{}, h, nil))
	a, err := cc.RoundTrip(request(t, "GET", "/half", nil))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(a.Body); err == nil {
		t.Errorf("half a body passes for a whole one: %q", b)
	}
	// And the other way round.
	a, err = cc.RoundTrip(request(t, "GET", "/hang", nil))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	a.Body.Close()
	<-begun
}

// The end of the destination's connection is explained to who has no answer.
func TestTheDestinationEnds(t *testing.T) {
	client, server := relayed(t, &open{}, nil)
	s := newBare(t, server)
	cc := real(t, client)
	go func() {
		io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
		_ = s.WriteSettings()
		for {
			f, err := s.ReadFrame()
			if err != nil {
				return
			}
			if f, ok := f.(*http2.MetaHeadersFrame); ok {
				if f.PseudoValue("path") == "/half" {
					s.headers(f.StreamID, false, ":status", "200")
					_ = s.WriteData(f.StreamID, false, []byte("half"))
				} else {
					server.Close()
				}
			}
		}
	}()
	half, err := cc.RoundTrip(request(t, "GET", "/half", nil))
	if err != nil {
		t.Fatal(err)
	}
	if a, got := do(t, cc, request(t, "GET", "/", nil)); a.StatusCode != 502 || got != "lost\n" {
		t.Errorf("%d %q", a.StatusCode, got)
	}
	if b, err := io.ReadAll(half.Body); err == nil {
		t.Errorf("half a body passes for a whole one: %q", b)
	}
}

// A client whose destination goes away makes what was not looked at anew.
func TestGoAway(t *testing.T) {
	client, server := relayed(t, &open{}, nil)
	c, s := newBare(t, client).greet(), newBare(t, server)
	io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	_ = s.WriteSettings()
	c.headers(1, false, get...)
	c.headers(3, false, get...)
	for n := 0; n < 2; {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.(*http2.MetaHeadersFrame); ok {
			n++
		}
	}
	_ = s.WriteGoAway(1, http2.ErrCodeNo, nil)
	if got := c.outcome(0); got != "goaway NO_ERROR" {
		t.Error(got)
	}
	if got := c.outcome(3); got != "reset REFUSED_STREAM" {
		t.Error(got)
	}
	c.headers(5, true, get...)
	if got := c.outcome(5); got != "reset REFUSED_STREAM" {
		t.Error(got)
	}
	s.headers(1, true, ":status", "204")
	if got := c.outcome(1); got != "status 204" {
		t.Error(got)
	}
	_ = c.WriteData(1, true, nil)
	if got := c.outcome(7); got != "closed" {
		t.Error(got)
	}
}

func TestPingsPass(t *testing.T) {
	client, server := relayed(t, &open{}, nil)
	c, s := newBare(t, client).greet(), newBare(t, server)
	io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	_ = s.WriteSettings()
	_ = c.WritePing(false, [8]byte{7})
	for {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.PingFrame); ok {
			_ = s.WritePing(true, f.Data)
			break
		}
	}
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.PingFrame); ok {
			if !f.IsAck() || f.Data != [8]byte{7} {
				t.Errorf("%v", f)
			}
			return
		}
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	c := newBare(t, served(t, &open{}, echo, func(o *Options) { o.Idle = 50 * time.Millisecond })).greet()
	if got := c.outcome(0); got != "goaway NO_ERROR" {
		t.Error(got)
	}
	if got := c.outcome(0); got != "closed" {
		t.Error(got)
	}
}

// WebSockets over HTTP/2 (RFC 8441): offered where the destination takes them.
func TestExtendedConnect(t *testing.T) {
	client, server := relayed(t, &open{}, nil)
	c, s := newBare(t, client).greet(), newBare(t, server)
	io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	_ = s.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.SettingsFrame); ok && !f.IsAck() {
			if v, ok := f.Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
				t.Fatal("it is not offered")
			}
			break
		}
	}
	c.headers(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", host, ":path", "/chat")
	_ = c.WriteData(1, false, []byte("ping"))
	for {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.MetaHeadersFrame); ok {
			if f.PseudoValue("protocol") != "websocket" || f.PseudoValue("path") != "/chat" {
				t.Errorf("%v", f)
			}
			s.headers(1, false, ":status", "200")
		}
		if f, ok := f.(*http2.DataFrame); ok {
			_ = s.WriteData(1, false, f.Data())
			break
		}
	}
	if got := c.outcome(1); got != "status 200" {
		t.Error(got)
	}
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.DataFrame); ok {
			if string(f.Data()) != "ping" {
				t.Errorf("%q", f.Data())
			}
			return
		}
	}
}

// The first thing that a client is sent is settings, and no acknowledgement, be
// the destination as late as it may (RFC 9113, 3.4).
func TestSettingsComeFirst(t *testing.T) {
	for name, late := range map[string]func(c *bare){
		"nothing more":      func(*bare) {},
		"a request refused": func(c *bare) { c.headers(1, true, with(get, "host", "evil.example.com")...) },
		"a request reset":   func(c *bare) { c.headers(1, true, with(get, "connection", "close")...) },
		"a long body": func(c *bare) {
			c.headers(1, false, get...)
			for range 3 {
				_ = c.WriteData(1, false, make([]byte, maxFrame))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := relayed(t, &open{}, nil)
			c, s := newBare(t, client).greet(), newBare(t, server)
			late(c)
			io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
			if f, err := s.ReadFrame(); err != nil || f.Header().Type != http2.FrameSettings || f.Header().Flags != 0 {
				t.Fatalf("the destination: %v %v", f, err)
			}
			_ = s.WriteSettings()
			acks, settings := 0, 0
			for acks == 0 {
				f, err := c.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if f, ok := f.(*http2.SettingsFrame); ok && f.IsAck() {
					acks++
				} else if ok {
					settings++
				}
				if settings == 0 {
					t.Fatalf("first comes %v", f)
				}
			}
		})
	}
}
