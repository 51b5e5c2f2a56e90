package pty

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// raw opens a WebSocket by hand and returns the bare connection.
func (r *rig) raw(id, query string) net.Conn {
	r.t.Helper()
	host := strings.TrimPrefix(r.url, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "GET /pty/%s/ws?%s HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"+
		"Origin: http://elsewhere\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", id, query, host)
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatalf("upgrade: %v, %+v", err, res)
	}
	return &buffered{Conn: conn, r: br}
}

type buffered struct {
	net.Conn
	r io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// frame makes a client's frame with a mask of zeros.
func frame(first byte, length int, payload string) string {
	b := []byte{first}
	switch {
	case length < 126:
		b = append(b, 0x80|byte(length))
	case length < 1<<16:
		b = append(b, 0x80|126, byte(length>>8), byte(length))
	default:
		b = append(b, 0x80|127)
		b = binary.BigEndian.AppendUint64(b, uint64(length))
	}
	return string(b) + "\x00\x00\x00\x00" + payload
}

// Frames that RFC 6455 does not allow end the connection and do nothing else.
func TestHostileFrames(t *testing.T) {
	r := newRig(t)
	id := r.make("")
	r.connect(id, "").drop()
	for name, bytes := range map[string]string{
		"unmasked":                  "\x82\x02\x00x",
		"reserved bits":             frame(0xf2, 2, "\x00x"),
		"compressed, not agreed":    frame(0xc2, 2, "\x00x"),
		"unknown opcode":            frame(0x83, 2, "\x00x"),
		"unknown control opcode":    frame(0x8b, 0, ""),
		"continuation of nothing":   frame(0x80, 2, "\x00x"),
		"message within a message":  frame(0x02, 1, "\x00") + frame(0x82, 1, "\x00"),
		"control frame too long":    frame(0x89, 126, strings.Repeat("x", 126)),
		"control frame in pieces":   frame(0x09, 1, "x"),
		"close with half a code":    frame(0x88, 1, "x"),
		"close with a bad code":     frame(0x88, 2, "\x03\xed"),
		"close":                     frame(0x88, 2, "\x03\xe8"),
		"length beyond all limits":  "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		"message larger than taken": frame(0x81, maxMessage+2, strings.Repeat("x", maxMessage+2)),
		"larger in pieces":          frame(0x01, maxMessage, strings.Repeat("x", maxMessage)) + frame(0x80, 2, "xx"),
	} {
		conn := r.raw(id, "takeover=1")
		go io.WriteString(conn, bytes)
		// Ends with what execd closes; an error is a reset.
		_, err := io.Copy(io.Discard, conn)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: the connection stayed open", name)
		}
		conn.Close()
	}
	u := r.connect(id, "takeover=1&since=99999")
	u.enter("echo sti''ll\n")
	u.expect("still")
}

// Messages that are well-formed but mean nothing are answered or ignored.
func TestStrangeMessages(t *testing.T) {
	r := newRig(t)
	u := r.connect(r.make(`{"command":"cat"}`), "pty=0")
	for text, want := range map[string]string{
		`{"type":"nonsense"}`:                  "nonsense",
		`{}`:                                   "unknown frame type",
		`[]`:                                   "not a JSON object",
		`{"type":`:                             "not a JSON object",
		`{"type":"resize"}`:                    "0 columns",
		`{"type":"resize","cols":-1,"rows":1}`: "-1 columns",
		`{"type":"resize","cols":1,"rows":70000}`:       "70000 rows",
		`{"type":"resize","cols":1e99,"rows":1}`:        "not a JSON object",
		`{"type":"signal","signal":"SIGSTOP"}`:          "SIGSTOP",
		`{"type":"signal","signal":9}`:                  "not a JSON object",
		`{"type":"` + strings.Repeat("x", 1000) + `"}`:  "xxx…",
		strings.Repeat("[", 100000):                     "not a JSON object",
		"\xff\xfe":                                      "not a JSON object",
		"{\"type\":\"\xff\x00\"}":                       "not a JSON object",
		"{\"type\":\"signal\",\"signal\":\"\xc3\x28\"}": "signal",
	} {
		u.say(text)
		if f := u.frame(); f.Type != "error" || f.Code != "INVALID_FRAME" || !strings.Contains(f.Error, want) || len(f.Error) > 500 {
			t.Errorf("%.60s: %+v", text, f)
		}
	}
	for _, prefix := range []string{"", "\x01x", "\x02x", "\x03x", "\xffx", "\x00"} {
		u.send(2, prefix)
	}
	// In pieces, as a slow network may cut them.
	u.enter("end\n")
	u.expect("end\n")

	conn := r.raw(r.make(`{"command":"cat"}`), "pty=0")
	for _, piece := range []string{frame(0x02, 0, ""), frame(0x00, 1, "\x00"), frame(0x89, 1, "p"), frame(0x00, 2, "ab"), frame(0x80, 2, "c\n")} {
		for i := range len(piece) {
			io.WriteString(conn, piece[i:i+1])
		}
	}
	var got []byte
	buf := make([]byte, 1024)
	for !bytes.Contains(got, []byte("\x01abc\n")) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Contains(got, []byte("\x8a\x01p")) {
		t.Errorf("no pong in %q", got)
	}
}

// What a frame with an error says may not depend on more than the frame.
func FuzzDecodeFrame(f *testing.F) {
	for _, s := range []string{
		`{"type":"stdin","data":"x"}`, `{"type":"resize","cols":80,"rows":24}`, `{"type":"signal","signal":"SIGINT"}`,
		`{"type":"ping"}`, `{"type":"eof"}`, `{"type":"x"}`, `null`, `{"type":"resize","cols":65536}`, "\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeFrame(b)
		if err != nil {
			if got != nil {
				t.Error("both a frame and an error")
			}
			return
		}
		if !json.Valid(b) {
			t.Error("not JSON, and taken")
		}
		switch got.Type {
		case frameResize:
			if got.size.cols == 0 || got.size.rows == 0 {
				t.Errorf("size %+v", got.size)
			}
		case frameSignal:
			if got.signal == 0 {
				t.Error("no signal")
			}
		case frameStdin, framePing, frameEOF:
		default:
			t.Errorf("type %q was taken", got.Type)
		}
	})
}

func FuzzQuery(f *testing.F) {
	f.Add("pty=1&since=12&takeover=0")
	f.Add("since=9223372036854775808")
	f.Fuzz(func(t *testing.T, s string) {
		req, err := http.NewRequest("GET", "http://x/?"+s, nil)
		if err != nil {
			return
		}
		if q, err := parseQuery(req.URL.Query()); err == nil && q.since < 0 {
			t.Errorf("since %d", q.since)
		}
	})
}

// The ring against a plain byte slice.
func TestRingProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b budget
		if rapid.Bool().Draw(t, "poor") {
			b.used.Store(ringBudget)
		}
		r := ring{budget: &b}
		defer func() {
			r.free()
			r.write([]byte("dropped"))
			if used := b.used.Load(); used != 0 && used != ringBudget {
				t.Errorf("%d bytes of the budget are left taken", used)
			}
		}()
		var all []byte
		next := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				p := make([]byte, rapid.SampledFrom([]int{0, 1, 100, 4095, 60000, ringStart, 300000, ringSize, ringSize + 77}).Draw(t, "n"))
				for i := range p {
					next = next*5 + 1
					p[i] = next
				}
				r.write(p)
				all = append(all, p...)
			},
			"read": func(t *rapid.T) {
				at := rapid.Int64Range(r.base, r.total).Draw(t, "at")
				buf := make([]byte, rapid.IntRange(0, 1<<21).Draw(t, "n"))
				n := r.read(at, buf)
				if want := all[at:min(at+int64(len(buf)), int64(len(all)))]; !bytes.Equal(buf[:n], want) {
					t.Fatalf("read of %d at %d of [%d, %d) is wrong", len(buf), at, r.base, r.total)
				}
			},
			"": func(t *rapid.T) {
				size := int64(ringSize)
				if b.used.Load() == ringBudget {
					size = ringStart
				}
				if r.total != int64(len(all)) || r.total-r.base < min(r.total, min(size, max(ringStart, r.total-r.base))) || r.base < 0 {
					t.Fatalf("keeps [%d, %d) of %d", r.base, r.total, len(all))
				}
			},
		})
	})
}

// Output, connections that come and go and reads in any order: a client sees
// each byte from its offset on once, in order and of the right stream, and is
// never further behind than allowed.
func TestOutputProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b budget
		s := newSession("id", nil, nil, &b)
		defer s.ring.free()
		var all, streams []byte
		var c *client
		t.Repeat(map[string]func(*rapid.T){
			"output": func(t *rapid.T) {
				p := bytes.Repeat([]byte{byte(len(all))}, rapid.SampledFrom([]int{1, 7, 5000, 64 << 10}).Draw(t, "n"))
				stream := byte(rapid.IntRange(prefixStdout, prefixStderr).Draw(t, "stream"))
				n := s.accept(stream, p)
				if c == nil && n != len(p) {
					t.Fatalf("%d of %d bytes taken without a client", n, len(p))
				}
				all = append(all, p[:n]...)
				streams = append(streams, bytes.Repeat([]byte{stream}, n)...)
			},
			"attach": func(t *rapid.T) {
				since := rapid.Int64Range(0, int64(len(all))+10).Draw(t, "since")
				c = newClient(s, times{})
				s.takeOver(c)
				c.cursor = min(max(since, s.ring.base), s.ring.total)
				c.live, c.attached = s.ring.total, true
			},
			"read": func(t *rapid.T) {
				if c == nil {
					return
				}
				at, _ := c.position()
				buf := make([]byte, rapid.IntRange(1, 40000).Draw(t, "n"))
				what, prefix, n := s.next(c, buf)
				if (what == newsOutput) != (at < int64(len(all))) {
					t.Fatalf("news %d at %d of %d", what, at, len(all))
				}
				if !bytes.Equal(buf[:n], all[at:at+int64(n)]) {
					t.Fatalf("wrong bytes at %d", at)
				}
				for i := range n {
					if prefix != prefixReplay && streams[at+int64(i)] != prefix {
						t.Fatalf("byte %d is of stream %d, sent as %d", at+int64(i), streams[at+int64(i)], prefix)
					}
				}
			},
			"leave": func(*rapid.T) {
				if c != nil {
					s.release(c)
					c = nil
				}
			},
			"": func(t *rapid.T) {
				if c != nil && (c.cursor < s.ring.base || s.ring.total-max(c.cursor, c.live) > maxBehind || len(c.runs) > maxRuns) {
					t.Fatalf("cursor %d in [%d, %d), %d runs", c.cursor, s.ring.base, s.ring.total, len(c.runs))
				}
			},
		})
	})
}

// BenchmarkEcho is the time from a key to its echo.
func BenchmarkEcho(b *testing.B) {
	r := newRig(b)
	u := r.connect(r.make(`{"command":"stty -icanon; echo ready; cat"}`), "")
	if !bytes.Contains(u.replayed, []byte("ready")) {
		u.expect("ready")
	}
	for b.Loop() {
		u.enter("x")
		u.expect("x")
	}
}

// BenchmarkFlood is how fast output goes out.
func BenchmarkFlood(b *testing.B) {
	r := newRig(b)
	u := r.connect(r.make(`{"command":"exec cat /dev/zero"}`), "pty=0")
	b.SetBytes(outputChunk)
	for b.Loop() {
		for u.out.Len() < outputChunk {
			if _, err := u.next(); err != nil {
				b.Fatal(err)
			}
		}
		u.out.Reset()
	}
}
