package h2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What a hostile client may try, and what becomes of it. None of it may reach
// the destination as a request.
func TestAttacksOfClients(t *testing.T) {
	long := strings.Repeat("x", maxFrame)
	for _, x := range []struct {
		name string
		do   func(c *bare)
		want string // of stream 1, or of the connection
	}{
		{"nothing wrong", func(c *bare) { c.headers(1, true, get...) }, "status 200"},
		{"padding and priority", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...), EndStream: true, EndHeaders: true, PadLength: 9, Priority: http2.PriorityParam{StreamDep: 3, Weight: 7}})
		}, "status 200"},
		{"continued", func(c *bare) {
			b := c.block(with(get, "x-long", long)...)
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:9], EndStream: true})
			_ = c.WriteContinuation(1, false, b[9:99])
			_ = c.WriteContinuation(1, true, b[99:])
		}, "status 200"},
		{"host only", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", "host", host)
		}, "status 200"},
		// Heads that are malformed (RFC 9113, 8.1.1).
		{"no method", func(c *bare) { c.headers(1, true, ":scheme", "https", ":authority", host, ":path", "/") }, "reset PROTOCOL_ERROR"},
		{"no path", func(c *bare) { c.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host) }, "reset PROTOCOL_ERROR"},
		{"empty path", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host, ":path", "")
		}, "reset PROTOCOL_ERROR"},
		{"path with space", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host, ":path", "/ HTTP/1.1")
		}, "reset PROTOCOL_ERROR"},
		{"no scheme", func(c *bare) { c.headers(1, true, ":method", "GET", ":authority", host, ":path", "/") }, "reset PROTOCOL_ERROR"},
		{"scheme", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "ftp", ":authority", host, ":path", "/")
		}, "reset PROTOCOL_ERROR"},
		{"user in authority", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host+"@evil", ":path", "/")
		}, "reset PROTOCOL_ERROR"},
		{"path in authority", func(c *bare) {
			c.headers(1, true, ":method", "GET", ":scheme", "https", ":authority", host+"/x", ":path", "/")
		}, "reset PROTOCOL_ERROR"},
		{"method with space", func(c *bare) {
			c.headers(1, true, ":method", "GET /x", ":scheme", "https", ":authority", host, ":path", "/")
		}, "reset PROTOCOL_ERROR"},
		{"two methods", func(c *bare) { c.headers(1, true, with(get, ":method", "PUT")...) }, "reset PROTOCOL_ERROR"},
		{"two paths", func(c *bare) { c.headers(1, true, with(get, ":path", "/")...) }, "reset PROTOCOL_ERROR"},
		{"late pseudo-header", func(c *bare) { c.headers(1, true, with(get, "a", "b", ":path", "/x")...) }, "reset PROTOCOL_ERROR"},
		{"unknown pseudo-header", func(c *bare) { c.headers(1, true, with(get, ":foo", "b")...) }, "reset PROTOCOL_ERROR"},
		{"status", func(c *bare) { c.headers(1, true, with(get, ":status", "200")...) }, "reset PROTOCOL_ERROR"},
		{"upper case", func(c *bare) { c.headers(1, true, with(get, "Upper", "b")...) }, "reset PROTOCOL_ERROR"},
		{"empty name", func(c *bare) { c.headers(1, true, with(get, "", "b")...) }, "reset PROTOCOL_ERROR"},
		{"name with colon", func(c *bare) { c.headers(1, true, with(get, "a:b", "b")...) }, "reset PROTOCOL_ERROR"},
		{"name with line", func(c *bare) { c.headers(1, true, with(get, "a\r\nb", "b")...) }, "reset PROTOCOL_ERROR"},
		{"line in value", func(c *bare) { c.headers(1, true, with(get, "a", "b\r\nhost: evil")...) }, "reset PROTOCOL_ERROR"},
		{"zero in value", func(c *bare) { c.headers(1, true, with(get, "a", "b\x00")...) }, "reset PROTOCOL_ERROR"},
		{"space at the end", func(c *bare) { c.headers(1, true, with(get, "a", "b ")...) }, "reset PROTOCOL_ERROR"},
		{"connection", func(c *bare) { c.headers(1, true, with(get, "connection", "close")...) }, "reset PROTOCOL_ERROR"},
		{"upgrade", func(c *bare) { c.headers(1, true, with(get, "upgrade", "h2c")...) }, "reset PROTOCOL_ERROR"},
		{"chunked", func(c *bare) { c.headers(1, false, with(get, "transfer-encoding", "chunked")...) }, "reset PROTOCOL_ERROR"},
		{"te", func(c *bare) { c.headers(1, true, with(get, "te", "gzip")...) }, "reset PROTOCOL_ERROR"},
		{"two lengths", func(c *bare) { c.headers(1, false, with(get, "content-length", "1", "content-length", "1")...) }, "reset PROTOCOL_ERROR"},
		{"odd length", func(c *bare) { c.headers(1, false, with(get, "content-length", "+1")...) }, "reset PROTOCOL_ERROR"},
		{"length without body", func(c *bare) { c.headers(1, true, with(get, "content-length", "1")...) }, "reset PROTOCOL_ERROR"},
		{"more than the length", func(c *bare) {
			c.headers(1, false, with(get, "content-length", "1")...)
			_ = c.WriteData(1, false, []byte("ab"))
		}, "reset PROTOCOL_ERROR"},
		{"less than the length", func(c *bare) {
			c.headers(1, false, with(get, "content-length", "3")...)
			_ = c.WriteData(1, true, []byte("ab"))
		}, "reset PROTOCOL_ERROR"},
		{"two hosts", func(c *bare) { c.headers(1, true, with(get, "host", host, "host", host)...) }, "reset PROTOCOL_ERROR"},
		{"another host", func(c *bare) { c.headers(1, true, with(get, "host", "evil.example.com")...) }, "status 403"},
		{"no host", func(c *bare) { c.headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/") }, "status 403"},
		{"connect", func(c *bare) { c.headers(1, true, ":method", "CONNECT", ":authority", host) }, "status 403"},
		{"connect with path", func(c *bare) { c.headers(1, true, with(get[2:], ":method", "CONNECT")...) }, "reset PROTOCOL_ERROR"},
		{"protocol", func(c *bare) { c.headers(1, true, with(get, ":protocol", "websocket")...) }, "reset PROTOCOL_ERROR"},
		{"protocol not offered", func(c *bare) {
			c.headers(1, false, with(get[2:], ":method", "CONNECT", ":protocol", "websocket")...)
		}, "reset PROTOCOL_ERROR"},
		{"pseudo-header in trailer", func(c *bare) {
			c.headers(1, false, get...)
			c.headers(1, true, ":path", "/x")
		}, "reset PROTOCOL_ERROR"},
		{"length in trailer", func(c *bare) {
			c.headers(1, false, get...)
			c.headers(1, true, "content-length", "0")
		}, "reset PROTOCOL_ERROR"},
		{"trailer that is none", func(c *bare) {
			c.headers(1, false, get...)
			c.headers(1, false, "a", "b")
		}, "reset PROTOCOL_ERROR"},
		{"a long head", func(c *bare) {
			fields := get
			for i := range 12 {
				fields = with(fields, fmt.Sprint("x-", i), strings.Repeat("\\", maxFrame/2)) // of 19 bits each: sent as it is
			}
			_, _ = c.c.Write(appendBlock(nil, 1, c.block(fields...), true))
		}, "status 200"},
		{"a head that unpacks to more than it may", func(c *bare) {
			// One long field in the table, and then many times.
			c.headers(1, true, with(get, "x", strings.Repeat("y", 3000))...)
			c.outcome(1)
			fields := get
			for range 100 {
				fields = with(fields, "x", strings.Repeat("y", 3000))
			}
			c.headers(3, true, fields...)
			if got := c.outcome(3); got != "status 431" {
				c.t.Errorf("the large one: %s", got)
			}
			c.headers(5, true, get...)
			if got := c.outcome(5); got != "status 200" {
				c.t.Errorf("the next one: %s", got)
			}
			c.headers(1, true, get...) // of a stream that is closed
			_ = c.WritePing(false, [8]byte{1})
			c.headers(6, true, get...)
		}, "goaway PROTOCOL_ERROR"},
		// Frames where and as they may not be (RFC 9113, 5 and 6).
		{"even stream", func(c *bare) { c.headers(2, true, get...) }, "goaway PROTOCOL_ERROR"},
		{"headers of stream 0", func(c *bare) { c.headers(0, true, get...) }, "goaway PROTOCOL_ERROR"},
		{"data of stream 0", func(c *bare) { _ = c.WriteData(0, true, nil) }, "goaway PROTOCOL_ERROR"},
		{"data of idle stream", func(c *bare) { _ = c.WriteData(7, true, nil) }, "goaway PROTOCOL_ERROR"},
		{"update of idle stream", func(c *bare) { _ = c.WriteWindowUpdate(7, 1) }, "goaway PROTOCOL_ERROR"},
		{"reset of idle stream", func(c *bare) { _ = c.WriteRSTStream(7, 0) }, "goaway PROTOCOL_ERROR"},
		{"data after the end", func(c *bare) {
			c.headers(1, true, with(get, "x-wait", "1")...)
			_ = c.WriteData(1, true, []byte("x"))
		}, "reset STREAM_CLOSED"},
		{"push", func(c *bare) {
			_ = c.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 3, EndHeaders: true})
		}, "goaway PROTOCOL_ERROR"},
		{"continuation of nothing", func(c *bare) { _ = c.WriteContinuation(1, true, nil) }, "goaway PROTOCOL_ERROR"},
		{"interrupted", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...), EndStream: true})
			_ = c.WritePing(false, [8]byte{})
		}, "goaway PROTOCOL_ERROR"},
		{"continued by another", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...), EndStream: true})
			_ = c.WriteContinuation(3, true, nil)
		}, "goaway PROTOCOL_ERROR"},
		{"endless continuations", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...), EndStream: true})
			for range 10 * maxContinuations {
				_ = c.WriteContinuation(1, false, nil)
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"endless block", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...), EndStream: true})
			for range 2 * MaxHead / maxFrame {
				_ = c.WriteContinuation(1, false, make([]byte, maxFrame))
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"no such index", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0x7f}, EndStream: true, EndHeaders: true})
		}, "goaway COMPRESSION_ERROR"},
		{"half a block", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(get...)[:5], EndStream: true, EndHeaders: true})
		}, "goaway COMPRESSION_ERROR"},
		{"too large a table", func(c *bare) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x3f, 0xff, 0xff, 0x7f}, EndStream: true, EndHeaders: true})
		}, "goaway COMPRESSION_ERROR"},
		{"too long a frame", func(c *bare) { _ = c.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1)) }, "goaway FRAME_SIZE_ERROR"},
		{"padding", func(c *bare) {
			c.headers(1, false, get...)
			_ = c.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1, 2})
		}, "goaway PROTOCOL_ERROR"},
		{"short priority", func(c *bare) {
			_ = c.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPriority|http2.FlagHeadersEndHeaders, 1, []byte{1, 2})
		}, "goaway FRAME_SIZE_ERROR"},
		{"short settings", func(c *bare) { _ = c.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{1, 2}) }, "goaway FRAME_SIZE_ERROR"},
		{"settings of a stream", func(c *bare) { _ = c.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, "goaway PROTOCOL_ERROR"},
		{"short ping", func(c *bare) { _ = c.WriteRawFrame(http2.FramePing, 0, 0, []byte{1, 2}) }, "goaway FRAME_SIZE_ERROR"},
		{"short reset", func(c *bare) { _ = c.WriteRawFrame(http2.FrameRSTStream, 0, 1, []byte{1, 2}) }, "goaway FRAME_SIZE_ERROR"},
		{"short update", func(c *bare) { _ = c.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, []byte{1, 2}) }, "goaway FRAME_SIZE_ERROR"},
		{"frame size setting", func(c *bare) { _ = c.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, "goaway PROTOCOL_ERROR"},
		{"push setting", func(c *bare) { _ = c.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, "goaway PROTOCOL_ERROR"},
		// Windows.
		{"update by nothing", func(c *bare) { _ = c.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, "goaway PROTOCOL_ERROR"},
		{"update of a stream by nothing", func(c *bare) {
			c.headers(1, false, get...)
			_ = c.WriteRawFrame(http2.FrameWindowUpdate, 0, 1, make([]byte, 4))
		}, "reset PROTOCOL_ERROR"},
		{"too large a window", func(c *bare) {
			_ = c.WriteWindowUpdate(0, maxWindow)
		}, "goaway FLOW_CONTROL_ERROR"},
		{"too large a window of a stream", func(c *bare) {
			c.headers(1, false, get...)
			_ = c.WriteWindowUpdate(1, maxWindow)
		}, "reset FLOW_CONTROL_ERROR"},
		{"too large a window by setting", func(c *bare) {
			_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, "goaway FLOW_CONTROL_ERROR"},
		{"window of a stream by setting", func(c *bare) {
			c.headers(1, false, get...)
			_ = c.WriteWindowUpdate(1, maxWindow-defaultWindow)
			_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow + 1})
		}, "goaway FLOW_CONTROL_ERROR"},
		// Floods.
		{"resets", func(c *bare) {
			for id := uint32(1); id < 2*2000; id += 2 {
				c.headers(id, false, get...)
				_ = c.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"malformed requests", func(c *bare) {
			for id := uint32(3); id < 2*2000; id += 2 {
				c.headers(id, true, with(get, "connection", "x")...)
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"streams beyond the limit", func(c *bare) {
			for id := uint32(3); id < 2*3000; id += 2 {
				c.headers(id, false, with(get, "x-wait", "1")...)
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"settings", flood(func(c *bare) { _ = c.WriteSettings() }), "goaway ENHANCE_YOUR_CALM"},
		{"many settings at once", func(c *bare) { _ = c.WriteSettings(make([]http2.Setting, maxSettings+1)...) }, "goaway ENHANCE_YOUR_CALM"},
		{"frames of many settings", func(c *bare) {
			for range 12000 / maxSettings {
				_ = c.WriteSettings(make([]http2.Setting, maxSettings)...)
			}
		}, "goaway ENHANCE_YOUR_CALM"},
		{"acknowledgements", flood(func(c *bare) { _ = c.WriteSettingsAck() }), "goaway ENHANCE_YOUR_CALM"},
		{"pings", flood(func(c *bare) { _ = c.WritePing(false, [8]byte{}) }), "goaway ENHANCE_YOUR_CALM"},
		{"priorities", flood(func(c *bare) { _ = c.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }), "goaway ENHANCE_YOUR_CALM"},
		{"updates", flood(func(c *bare) { _ = c.WriteWindowUpdate(0, 1) }), "goaway ENHANCE_YOUR_CALM"},
		{"unknown frames", flood(func(c *bare) { _ = c.WriteRawFrame(99, 0, 0, nil) }), "goaway ENHANCE_YOUR_CALM"},
		{"empty data", func(c *bare) {
			c.headers(1, false, with(get, "x-wait", "1")...)
			flood(func(c *bare) { _ = c.WriteData(1, false, nil) })(c)
		}, "goaway ENHANCE_YOUR_CALM"},
		{"for a closed stream", func(c *bare) {
			c.headers(1, true, get...)
			c.outcome(1)
			flood(func(c *bare) { _ = c.WriteRSTStream(1, 0) })(c)
		}, "goaway ENHANCE_YOUR_CALM"},
	} {
		t.Run(x.name, func(t *testing.T) {
			stop := make(chan struct{})
			t.Cleanup(func() { close(stop) })
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 3))
				if r.Header.Get("X-Wait") != "" || r.ContentLength < 0 {
					select {
					case <-r.Context().Done():
					case <-stop:
					}
				}
				for name := range r.Header {
					if name == "Host" || name == "Connection" || name == "Transfer-Encoding" {
						t.Errorf("%s arrived", name)
					}
				}
			})
			c := newBare(t, served(t, &open{}, h, nil)).greet()
			x.do(c)
			if got := c.outcome(1); got != x.want {
				t.Errorf("%s, want %s", got, x.want)
			}
		})
	}
}

// flood does the same so often that it must be noticed, as long as it can.
func flood(one func(c *bare)) func(*bare) {
	return func(c *bare) {
		for range 12000 {
			one(c)
		}
	}
}

func TestBadPrefaces(t *testing.T) {
	for name, b := range map[string][]byte{
		"http1":        []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"almost":       []byte("PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"),
		"no settings":  append([]byte(preface), appendNumber(nil, http2.FrameWindowUpdate, 0, 1)...),
		"an ack first": append([]byte(preface), appendHeader(nil, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := newBare(t, served(t, &open{}, echo, nil))
			_, _ = c.c.Write(b)
			if got := c.outcome(0); got != "goaway PROTOCOL_ERROR" {
				t.Error(got)
			}
		})
	}
}

// A hostile destination.
func TestAttacksOfDestinations(t *testing.T) {
	for _, x := range []struct {
		name string
		do   func(s *bare)
		want string
	}{
		{"nothing wrong", func(s *bare) { s.headers(1, true, ":status", "200") }, "status 200"},
		{"no status", func(s *bare) { s.headers(1, true, "a", "b") }, "reset PROTOCOL_ERROR"},
		{"odd status", func(s *bare) { s.headers(1, true, ":status", "2000") }, "reset PROTOCOL_ERROR"},
		{"101", func(s *bare) { s.headers(1, false, ":status", "101") }, "reset PROTOCOL_ERROR"},
		{"path", func(s *bare) { s.headers(1, true, ":status", "200", ":path", "/") }, "reset PROTOCOL_ERROR"},
		{"line", func(s *bare) { s.headers(1, true, ":status", "200", "a", "b\r\nc: d") }, "reset PROTOCOL_ERROR"},
		{"connection", func(s *bare) { s.headers(1, true, ":status", "200", "connection", "close") }, "reset PROTOCOL_ERROR"},
		{"interim at the end", func(s *bare) { s.headers(1, true, ":status", "103") }, "reset PROTOCOL_ERROR"},
		{"data first", func(s *bare) { _ = s.WriteData(1, true, []byte("x")) }, "reset PROTOCOL_ERROR"},
		{"another stream", func(s *bare) { s.headers(3, true, ":status", "200") }, "status 502"},
		{"even stream", func(s *bare) { s.headers(2, true, ":status", "200") }, "status 502"},
		{"push", func(s *bare) {
			_ = s.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true, BlockFragment: s.block(get...)})
		}, "status 502"},
		{"push setting", func(s *bare) { _ = s.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}) }, "status 502"},
		{"compression", func(s *bare) { _ = s.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte{0xff, 0xff, 0xff, 0x7f}) }, "status 502"},
		{"too long a frame", func(s *bare) { _ = s.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1)) }, "status 502"},
		{"no HTTP/2", func(s *bare) { _, _ = io.WriteString(s.c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, "status 502"},
		{"pings", flood(func(s *bare) { _ = s.WritePing(false, [8]byte{}) }), "status 502"},
		{"too long a head", func(s *bare) {
			fields := []string{":status", "200"}
			for range 100 {
				fields = append(fields, "x", strings.Repeat("y", 3000))
			}
			s.headers(1, true, fields...)
		}, "reset PROTOCOL_ERROR"},
	} {
		t.Run(x.name, func(t *testing.T) {
			client, server := relayed(t, &open{}, nil)
			c, s := newBare(t, client).greet(), newBare(t, server)
			c.headers(1, true, get...)
			io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
			if x.name != "no HTTP/2" {
				_ = s.WriteSettings()
			}
			for {
				f, err := s.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := f.(*http2.MetaHeadersFrame); ok {
					break
				}
			}
			go io.Copy(io.Discard, justReader{server})
			x.do(s)
			got := c.outcome(1)
			if strings.HasPrefix(got, "goaway NO_ERROR") {
				got = c.outcome(1)
			}
			if got != x.want {
				t.Errorf("%s, want %s", got, x.want)
			}
		})
	}
}

type justReader struct{ io.Reader }

// asked makes a relay over which a request has come to the server.
func asked(t *testing.T, h *open, settings []http2.Setting, head ...string) (c, s *bare) {
	t.Helper()
	client, server := relayed(t, h, nil)
	c, s = newBare(t, client).greet(settings...), newBare(t, server)
	c.headers(1, true, head...)
	io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	_ = s.WriteSettings()
	for {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.(*http2.MetaHeadersFrame); ok {
			return c, s
		}
	}
}

// No window holds back what stands in heads, so their number and length are
// bounded.
func TestHeadsOfDestinationsAreBounded(t *testing.T) {
	c, s := asked(t, &open{}, nil, get...)
	for range maxInterim + 1 {
		s.headers(1, false, ":status", "103")
	}
	for range maxInterim {
		if got := c.outcome(1); got != "status 103" {
			t.Fatal(got)
		}
	}
	if got := c.outcome(1); got != "reset ENHANCE_YOUR_CALM" {
		t.Error("interim answers:", got)
	}
	c, s = asked(t, &open{}, nil, get...)
	s.headers(1, false, ":status", "200")
	s.headers(1, true, "a", strings.Repeat("x", maxTrailer))
	if got := c.outcome(1); got != "status 200" {
		t.Fatal(got)
	}
	if got := c.outcome(1); got != "reset PROTOCOL_ERROR" {
		t.Error("a long trailer:", got)
	}
}

// Heads that wait are counted as what waits of bodies is.
func TestHeadsThatWaitAreCounted(t *testing.T) {
	wait := func(h *open, what string, ok func(n int64) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(h.held.Load()); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d bytes are counted as held", what, h.held.Load())
			}
		}
	}
	h := &open{}
	c := newBare(t, served(t, h, echo, nil)).greet()
	c.headers(1, false, with(get[:6], ":path", "/whole", "x", strings.Repeat("y", 8000))...)
	wait(h, "a request", func(n int64) bool { return n >= 8000 })
	_ = c.WriteRSTStream(1, http2.ErrCodeCancel)
	wait(h, "no request", func(n int64) bool { return n == 0 })
	c.headers(3, false, with(get[:6], ":path", "/whole", "x", strings.Repeat("y", 8000))...)
	wait(h, "a request", func(n int64) bool { return n >= 8000 })
	_ = c.WriteData(3, true, nil)
	wait(h, "a request that was sent", func(n int64) bool { return n == 0 })

	h = &open{}
	c, s := asked(t, h, []http2.Setting{{ID: http2.SettingInitialWindowSize}}, get...)
	s.headers(1, false, ":status", "200")
	_ = s.WriteData(1, false, []byte("x"))
	s.headers(1, true, "a", strings.Repeat("x", 8000))
	wait(h, "a trailer", func(n int64) bool { return n >= 8000 })
	_ = c.WriteWindowUpdate(1, 1)
	wait(h, "a trailer that was sent", func(n int64) bool { return n == 0 })
}

// More than a window allows is an error, and what a window no longer allows for
// is held only within a limit.
func TestWindowsAreHeldTo(t *testing.T) {
	begin := func(t *testing.T, h *open) (c, s *bare) {
		client, server := relayed(t, h, nil)
		c, s = newBare(t, client).greet(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4 << 20}), newBare(t, server)
		_ = c.WriteWindowUpdate(0, 4<<20)
		c.headers(1, true, get...)
		io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
		_ = s.WriteSettings()
		for {
			f, err := s.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.MetaHeadersFrame); ok {
				s.headers(1, false, ":status", "200")
				return c, s
			}
		}
	}
	t.Run("the destination's", func(t *testing.T) {
		c, s := begin(t, &open{})
		go io.Copy(io.Discard, justReader{s.c})
		for range 5 << 20 / maxFrame {
			_ = s.WriteData(1, false, make([]byte, maxFrame))
		}
		c.outcome(1)
		if got := c.outcome(1); got != "goaway NO_ERROR" && got != "reset FLOW_CONTROL_ERROR" {
			t.Error(got)
		}
	})
	t.Run("the client's", func(t *testing.T) {
		c := newBare(t, served(t, &open{}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), nil)).greet()
		c.headers(1, false, get...)
		for range 8 << 20 / maxFrame {
			_ = c.WriteData(1, false, make([]byte, maxFrame))
		}
		if got := c.outcome(1); got != "goaway FLOW_CONTROL_ERROR" && got != "reset FLOW_CONTROL_ERROR" {
			t.Error(got)
		}
	})
	t.Run("a client that takes back what it gave", func(t *testing.T) {
		c, s := begin(t, &open{mostHeld: 1 << 20})
		if got := c.outcome(1); got != "status 200" {
			t.Fatal(got)
		}
		_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		_ = c.WritePing(false, [8]byte{1}) // when it comes to the other side, the settings have been read
		for {
			f, err := s.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.PingFrame); ok {
				break
			}
		}
		go io.Copy(io.Discard, justReader{s.c})
		for range 3 << 20 / maxFrame {
			_ = s.WriteData(1, false, make([]byte, maxFrame))
		}
		if got := c.outcome(1); !strings.HasPrefix(got, "goaway") && !strings.HasPrefix(got, "reset") {
			t.Error(got)
		}
	})
}

// What comes out of a body that expands is made as it is sent, however large the
// windows are that open at once; and all of it arrives.
func TestBombsAreSentInPieces(t *testing.T) {
	const streams, pieces = 4, 1000
	c, s := asked(t, &open{}, []http2.Setting{{ID: http2.SettingInitialWindowSize}}, get...)
	_ = c.WriteWindowUpdate(0, 1<<30)
	for id := uint32(1); id < 2*streams; id += 2 {
		if id > 1 {
			c.headers(id, true, get...)
			for {
				f, err := s.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := f.(*http2.MetaHeadersFrame); ok {
					break
				}
			}
		}
		s.headers(id, false, ":status", "200", "x-filter", "bomb")
		_ = s.WriteData(id, true, make([]byte, pieces))
		if got := c.outcome(id); got != "status 200" {
			t.Fatal(got)
		}
	}
	_ = s.WritePing(false, [8]byte{1}) // when it comes to the client, so have the bodies come
	for {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.(*http2.PingFrame); ok {
			break
		}
	}
	go io.Copy(io.Discard, justReader{s.c})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	time.Sleep(300 * time.Millisecond) // the client takes nothing
	runtime.GC()
	runtime.ReadMemStats(&after)
	if more := int64(after.HeapAlloc) - int64(before.HeapAlloc); more > 8<<20 {
		t.Errorf("%d MiB more are in use", more>>20)
	}
	got := 0
	for ends := 0; ends < streams; {
		f, err := c.ReadFrame()
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		if f, ok := f.(*http2.DataFrame); ok {
			if got += len(f.Data()); f.StreamEnded() {
				ends++
			}
		}
	}
	if got != streams*pieces*bombPiece {
		t.Errorf("%d bytes came", got)
	}
}

// A destination that reads nothing for now keeps nothing back of what it sends,
// what is to be sent to it is counted until it was, and arrives.
func TestOneThatDoesNotReadIsReadFrom(t *testing.T) {
	h := &open{}
	inner, server := net.Pipe() // takes nothing that nobody reads
	client, _ := relayed(t, h, func(o *Options) { o.Server = inner })
	t.Cleanup(func() { server.Close() })
	c, s := newBare(t, client).greet(), newBare(t, server)
	c.headers(1, false, get...)
	io.ReadFull(server, make([]byte, len(http2.ClientPreface)))
	_ = s.WriteSettings()
	for heads, acks := 0, 0; heads == 0 || acks == 0; {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			heads++
		case *http2.SettingsFrame:
			if f.IsAck() {
				acks++
			}
		}
	}
	for range 3 {
		_ = c.WriteData(1, false, make([]byte, maxFrame))
	}
	_ = c.WriteData(1, true, make([]byte, 9))
	for end := time.Now().Add(10 * time.Second); h.held.Load() < maxFrame; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are counted as held", h.held.Load())
		}
	}
	s.headers(1, false, ":status", "200")
	_ = s.WriteData(1, true, []byte("x"))
	if got := c.outcome(1); got != "status 200" {
		t.Fatal(got)
	}
	for got := 0; ; {
		f, err := s.ReadFrame()
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		if f, ok := f.(*http2.DataFrame); ok {
			if got += len(f.Data()); f.StreamEnded() {
				if got != 3*maxFrame+9 {
					t.Errorf("%d bytes came", got)
				}
				return
			}
		}
	}
}

// Frames and header blocks of every kind must neither stop the relay nor reach
// a real server as a request that is not for its host.
func FuzzClient(f *testing.F) {
	seed := func(do func(c *bare)) {
		var out bytes.Buffer
		c := &bare{Framer: http2.NewFramer(&out, nil)}
		c.AllowIllegalWrites = true
		c.enc = hpack.NewEncoder(&c.buf)
		do(c)
		f.Add(out.Bytes())
	}
	seed(func(c *bare) { c.headers(1, true, get...) })
	seed(func(c *bare) {
		c.headers(1, false, with(get, "content-length", "5")...)
		_ = c.WriteData(1, true, []byte("hello"))
		_ = c.WriteWindowUpdate(0, 100)
		_ = c.WriteRSTStream(1, 8)
	})
	seed(func(c *bare) {
		c.headers(3, false, ":method", "POST", ":scheme", "https", ":authority", host, ":path", "/whole")
		_ = c.WriteDataPadded(3, false, []byte("hello"), make([]byte, 5))
		c.headers(3, true, "x", "y")
		_ = c.WritePing(false, [8]byte{})
		_ = c.WriteSettings(http2.Setting{ID: 4, Val: 0}, http2.Setting{ID: 1, Val: 0})
		_ = c.WriteGoAway(0, 0, nil)
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Host != host {
				t.Errorf("a request for %q arrived", r.Host)
			}
			_, _ = io.Copy(w, r.Body)
		})
		c := served(t, &open{}, h, nil)
		_, _ = c.Write(append(append([]byte(preface), appendSettings(nil)...), in...))
		_, _ = c.Write(binary.BigEndian.AppendUint32(appendHeader(nil, 8, http2.FrameGoAway, 0, 0), 0))
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		// The relay ends with its client, whatever that has said.
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		var slow net.Error
		if _, err := io.Copy(io.Discard, c); errors.As(err, &slow) && slow.Timeout() {
			t.Error("the relay does not end")
		}
	})
}

// Whatever a destination sends, its client gets an answer or an end, and nothing
// is left behind.
func FuzzServer(f *testing.F) {
	seed := func(do func(s *bare)) {
		var out bytes.Buffer
		s := &bare{Framer: http2.NewFramer(&out, nil)}
		s.AllowIllegalWrites = true
		s.enc = hpack.NewEncoder(&s.buf)
		do(s)
		f.Add(out.Bytes())
	}
	seed(func(s *bare) { s.headers(1, true, ":status", "204") })
	seed(func(s *bare) {
		s.headers(1, false, ":status", "103", "link", "</x>")
		s.headers(1, false, ":status", "200", "x-filter", "expand")
		_ = s.WriteData(1, false, []byte("hello"))
		s.headers(1, true, "x-sum", "5")
	})
	seed(func(s *bare) {
		_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		_ = s.WritePing(false, [8]byte{})
		_ = s.WriteWindowUpdate(0, 1)
		_ = s.WriteWindowUpdate(1, 1)
		_ = s.WriteGoAway(1, 0, nil)
		s.headers(1, false, ":status", "200", "x-filter", "lower", "content-length", "2")
		_ = s.WriteDataPadded(1, true, []byte("AB"), make([]byte, 3))
		_ = s.WriteRSTStream(1, 0)
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		client, server := relayed(t, &open{}, nil)
		c := newBare(t, client).greet()
		c.headers(1, false, get...)
		_ = c.WriteData(1, true, []byte("body"))
		go func() {
			_, _ = io.Copy(io.Discard, server)
		}()
		_ = c.WriteWindowUpdate(0, 1<<30)
		_ = c.WriteWindowUpdate(1, 1<<30)
		_, _ = server.Write(append(appendSettings(nil), in...))
		_ = server.(interface{ CloseWrite() error }).CloseWrite()
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		var slow net.Error
		if _, err := io.Copy(io.Discard, client); errors.As(err, &slow) && slow.Timeout() {
			t.Error("the relay does not end")
		}
	})
}
