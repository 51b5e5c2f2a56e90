package proxy

import (
	"bytes"
	"regexp"
)

// http2Preface is what an HTTP/2 client begins with (RFC 9113, 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// maxFirstLine is how much of a text without a line's end is held, in bytes.
const maxFirstLine = 16 << 10

// first is what a client's first bytes turned out to be.
type first struct {
	protocol Protocol
	hello    hello
	request  *request
	head     int // bytes of the request's head
}

// requestLine finds lines that some HTTP server takes for a request's. The
// method is any, the version is anywhere: it is better to refuse a line that no
// server takes than to let one through that one does. Lines without a version
// are requests of HTTP/0.9 if they have a method that exists and a path.
var requestLine = regexp.MustCompile(`(?i)\bHTTP/[0-9]|^(GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|PATCH|CONNECT)[ \t]+(/|https?:)`)

// classify says what the bytes are that a client sent first; ok is false while
// too few are there. It is called with ever more of them.
func classify(b []byte) (f first, ok bool, err error) {
	switch {
	case len(b) == 0:
		return f, false, nil
	case b[0] == recordHandshake:
		f.protocol = TLS
		if len(b) > 1 && b[1] != 3 {
			f.protocol = Opaque // no record of TLS begins so
			return f, true, nil
		}
		f.hello, ok, err = parseHello(b)
		return f, ok, err
	}
	// Servers skip empty lines before a request, so they are not a way round.
	text := bytes.TrimLeft(b, "\r\n \t")
	if len(text) == 0 {
		if len(b) > maxFirstLine {
			// Whatever comes next, it would come unread.
			f.protocol = HTTP1
			return f, false, badRequest("the request does not begin with its request line")
		}
		return f, false, nil
	}
	end := bytes.IndexByte(text, '\n')
	line := text
	if end >= 0 {
		line = text[:end]
	}
	if i := bytes.IndexFunc(line, isBinary); i >= 0 && !bytes.ContainsAny(line[:i], " \t") {
		f.protocol = Opaque
		return f, true, nil
	}
	if end < 0 {
		if len(b) > maxFirstLine {
			return f, false, badRequest("the first line is too long")
		}
		return f, false, nil
	}
	if bytes.HasPrefix(b, []byte(http2Preface[:len("PRI * HTTP/2.0\r\n")])) {
		f.protocol = HTTP2
		return f, true, nil
	}
	if !requestLine.Match(line) {
		f.protocol = Opaque
		return f, true, nil
	}
	f.protocol = HTTP1
	if len(text) != len(b) {
		return f, false, badRequest("the request does not begin with its request line")
	}
	f.head, err = headEnd(b)
	if err != nil {
		return f, false, err
	}
	if f.head < 0 {
		if len(b) > maxHead {
			return f, false, badRequest("the head of the request is too long")
		}
		return f, false, nil
	}
	f.request, err = parseRequest(bytes.Clone(b[:f.head]))
	return f, err == nil, err
}

// isBinary finds characters that are in no method: who sends them before a
// space speaks something else than HTTP.
func isBinary(r rune) bool { return r < ' ' && r != '\r' && r != '\t' || r == 0x7f }
