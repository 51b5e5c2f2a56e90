package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// realHello is what crypto/tls sends first.
func realHello(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		defer b.Close()
		_ = tls.Client(b, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}).Handshake()
	}()
	buf := make([]byte, 64<<10)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, ok, err := parseHello(buf[:n]); ok || err != nil {
			return buf[:n]
		}
		m, err := a.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
}

// A hello is found whole or not at all, however it is cut.
func TestHelloInPieces(t *testing.T) {
	whole := realHello(t, "Allowed.Example")
	for i := range len(whole) {
		if _, ok, err := parseHello(whole[:i]); ok || err != nil {
			t.Fatalf("the first %d bytes: %v, %v", i, ok, err)
		}
	}
	message := whole[recordHeader:]
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		for rest := message; len(rest) > 0; {
			n := rapid.IntRange(max(1, len(message)/maxHelloRecords+1), len(message)).Draw(t, "record")
			n = min(n, len(rest))
			b = append(b, recordHandshake, 3, 1, byte(n>>8), byte(n))
			b = append(b, rest[:n]...)
			rest = rest[n:]
		}
		h, ok, err := parseHello(b)
		if !ok || err != nil || h.name != "allowed.example" {
			t.Fatalf("%+v, %v, %v", h, ok, err)
		}
	})
}

func TestHelloIsRefused(t *testing.T) {
	good := realHello(t, "allowed.example")
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, b := range map[string][]byte{
		"another record in between": change(func(b []byte) []byte {
			return append(append([]byte{22, 3, 1, 0, 10}, b[5:15]...), 23, 3, 3, 0, 1, 0)
		}),
		"an empty record":      {22, 3, 1, 0, 0},
		"a record too long":    {22, 3, 1, 0xff, 0xff},
		"another message":      {22, 3, 1, 0, 4, 2, 0, 0, 0},
		"a message too long":   {22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff},
		"a name with a NUL":    bytes.Replace(good, []byte("allowed.example"), []byte("allowed\x00example"), 1),
		"a name with a space":  bytes.Replace(good, []byte("allowed.example"), []byte("allowed example"), 1),
		"a name that is empty": bytes.Replace(good, []byte("allowed.example"), []byte("...............")[:15], 1),
	} {
		if h, ok, err := parseHello(b); ok || err == nil {
			t.Errorf("%s: %+v, %v", name, h, ok)
		}
	}
}

func TestParseRequest(t *testing.T) {
	for _, test := range []struct {
		raw, name, bad string
		length         int64
	}{
		{raw: "GET / HTTP/1.1|Host: a.example", name: "a.example"},
		{raw: "GET / HTTP/1.1|Host: A.Example.:8080", name: "a.example"},
		{raw: "GET http://a.example/x HTTP/1.1|Host: a.example", name: "a.example"},
		{raw: "GET / HTTP/1.0", name: ""},
		{raw: "OPTIONS * HTTP/1.1|Host: a.example", name: "a.example"},
		{raw: "POST / HTTP/1.1|Host: a.example|Content-Length: 12", name: "a.example", length: 12},
		{raw: "POST / HTTP/1.1|Host: a.example|Transfer-Encoding: Chunked", name: "a.example", length: -1},
		{raw: "GET / HTTP/1.1", bad: "0 Host"},
		{raw: "GET / HTTP/1.1|Host: a|Host: a", bad: "2 Host"},
		{raw: "GET / HTTP/1.1|Host: a.example, b.example", bad: "malformed"},
		{raw: "GET / HTTP/1.1|Host: a.example@b.example", bad: "malformed"},
		{raw: "GET / HTTP/1.1|Host: a.example:0", bad: "malformed"},
		{raw: "GET / HTTP/1.1|Host: a.example:+80", bad: "malformed"},
		{raw: "GET / HTTP/1.1|Host: [::1", bad: "malformed"},
		{raw: "GET http://b.example/ HTTP/1.1|Host: a.example", bad: "different hosts"},
		{raw: "GET https://a.example/ HTTP/1.1|Host: a.example", bad: "must begin"},
		{raw: "CONNECT a.example:443 HTTP/1.1|Host: a.example", bad: "CONNECT"},
		{raw: "GET  / HTTP/1.1|Host: a.example", bad: "request line"},
		{raw: "GET / HTTP/1.2|Host: a.example", bad: "only HTTP"},
		{raw: "GET /\x80 HTTP/1.1|Host: a.example", bad: "encoded"},
		{raw: "GET / HTTP/1.1|Host : a.example", bad: "header line"},
		{raw: "GET / HTTP/1.1|X: y| Host: a.example", bad: "header line"},
		{raw: "GET / HTTP/1.1|Host: a.example|X: a\rb", bad: "control"},
		{raw: "POST / HTTP/1.1|Host: a.example|Content-Length: 1|Transfer-Encoding: chunked", bad: "both"},
		{raw: "POST / HTTP/1.1|Host: a.example|Content-Length: 1|Content-Length: 1", bad: "twice"},
		{raw: "POST / HTTP/1.1|Host: a.example|Content-Length: +1", bad: "no number"},
		{raw: "POST / HTTP/1.1|Host: a.example|Content-Length: ", bad: "no number"},
		{raw: "POST / HTTP/1.1|Host: a.example|Transfer-Encoding: gzip, chunked", bad: "only \"chunked\""},
		{raw: "POST / HTTP/1.0|Host: a.example|Transfer-Encoding: chunked", bad: "HTTP/1.0"},
	} {
		raw := strings.ReplaceAll(test.raw, "|", "\r\n") + "\r\n\r\n"
		r, err := parseRequest([]byte(raw))
		switch {
		case test.bad != "":
			if err == nil || !strings.Contains(err.Error(), test.bad) {
				t.Errorf("%q: %v, want an error with %q", test.raw, err, test.bad)
			}
		case err != nil:
			t.Errorf("%q: %v", test.raw, err)
		case r.name != test.name || r.length != test.length || string(r.raw) != raw:
			t.Errorf("%q: %+v", test.raw, r)
		}
	}
}

func TestUpgradeToHTTP2IsTakenOut(t *testing.T) {
	r, err := parseRequest([]byte("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nX: y\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n"; string(r.raw) != want || r.upgrade != "" {
		t.Errorf("%q %q", r.raw, r.upgrade)
	}
}

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		first    string
		ok       bool
		protocol Protocol
		bad      bool
	}{
		{"", false, Unknown, false},
		{"G", false, Unknown, false},
		{"GET / HTTP/1.1\r\n", false, HTTP1, false},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, HTTP1, false},
		{"get / http/1.1\r\nHost: a\r\n\r\n", false, HTTP1, true},
		{"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", false, HTTP1, true},
		{"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", false, HTTP1, true},
		{"GET /x\r\n", false, HTTP1, false}, // waits for the end of a head
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true, HTTP2, false},
		{"SSH-2.0-x\r\n", true, Opaque, false},
		{"SET key value\r\n", true, Opaque, false},
		{"EHLO me\r\n", true, Opaque, false},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", true, Opaque, false},
		{"\x16\x02", true, Opaque, false},
		{"\x16\x03\x01\x00\x00", false, TLS, true},
		{strings.Repeat("a", maxFirstLine+1), false, Unknown, true},
		{strings.Repeat("\r\n", maxFirstLine/2), false, Unknown, false},
		{strings.Repeat("\r\n", maxFirstLine/2) + "\n", false, HTTP1, true},
	} {
		f, ok, err := classify([]byte(test.first))
		if ok != test.ok || f.protocol != test.protocol || (err != nil) != test.bad {
			t.Errorf("%.40q: %v, %q, %v", test.first, ok, f.protocol, err)
		}
	}
}

func TestPassChunks(t *testing.T) {
	for _, test := range []struct {
		body, rest string
		bad        bool
	}{
		{"5\r\nhello\r\n0\r\n\r\nnext", "next", false},
		{"5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\nnext", "next", false},
		{"0x5\r\nhello\r\n0\r\n\r\n", "", true},
		{"-5\r\nhello\r\n", "", true},
		{"5\nhello\r\n0\r\n\r\n", "", true},
		{"4\r\nhello\r\n0\r\n\r\n", "", true},
		{"fffffffffffffffff\r\n", "", true},
		{"0\r\nA b\r\n\r\n", "", true},
		{"0\r\nA: b\n\r\n", "", true},
		{"5\r\rhello\r\n", "", true},
	} {
		from := bufio.NewReader(strings.NewReader(test.body))
		var to bytes.Buffer
		err := passChunks(&to, from)
		if (err != nil) != test.bad {
			t.Errorf("%q: %v", test.body, err)
			continue
		}
		rest, _ := io.ReadAll(from)
		if !test.bad && (string(rest) != test.rest || to.String()+test.rest != test.body) {
			t.Errorf("%q: passed %q, left %q", test.body, to.String(), rest)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(realHello(f, "a.example"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Add([]byte(http2Preface))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, ok, err := classify(b)
		if ok && err != nil {
			t.Fatal("both an answer and an error")
		}
		// More bytes never change an answer.
		for i := range b {
			part, early, perr := classify(b[:i])
			if early && (part.protocol != whole.protocol || part.hello != whole.hello) {
				t.Fatalf("%q is %q, %q is %q", b[:i], part.protocol, b, whole.protocol)
			}
			if perr != nil && err == nil && ok {
				t.Fatalf("%q is refused, %q is not", b[:i], b)
			}
		}
		if ok && whole.protocol == HTTP1 {
			if n := bytes.Count(bytes.ToLower(whole.request.raw), []byte("\nhost:")); n > 1 || n == 0 && !whole.request.old {
				t.Fatalf("%d hosts in %q", n, whole.request.raw)
			}
		}
	})
}

// A body in chunks that is passed on is one that the standard library reads to
// the same end.
func FuzzPassChunks(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\nnext"))
	f.Fuzz(func(t *testing.T, b []byte) {
		from := bufio.NewReader(bytes.NewReader(b))
		var to bytes.Buffer
		err := passChunks(&to, from)
		if !bytes.HasPrefix(b, to.Bytes()) {
			t.Fatalf("passed %q of %q", to.Bytes(), b)
		}
		var bad badRequest
		if err != nil && !errors.As(err, &bad) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), "GET")
	f.Fuzz(func(t *testing.T, b []byte, method string) {
		if a, err := parseAnswer(b, method); err == nil && (a.length < untilEnd || a.status < 100) {
			t.Fatalf("%+v", a)
		}
	})
}

func TestAuthority(t *testing.T) {
	for s, want := range map[string]netip.Addr{
		"192.0.2.1": netip.MustParseAddr("192.0.2.1"), "[::ffff:192.0.2.1]:80": netip.MustParseAddr("192.0.2.1"),
		"[2001:db8::1]": netip.MustParseAddr("2001:db8::1"),
	} {
		if name, addr, _, err := authority(s); err != nil || name != "" || addr != want {
			t.Errorf("%s: %q %s %v", s, name, addr, err)
		}
	}
}
