package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	// idleTime is how long a connection may wait for its next request.
	idleTime = 10 * time.Minute
	// maxTrailer bounds what follows the last chunk of a body, and maxChunkLine
	// the line before a chunk, in bytes.
	maxTrailer   = 16 << 10
	maxChunkLine = 4 << 10
)

// misdirected says why a request is not for the destination of its connection,
// or "".
func (r *request) misdirected(to netip.AddrPort) string {
	if r.addr.IsValid() && r.addr != to.Addr() {
		return fmt.Sprintf("the request is for %s, but the connection goes to %s", r.addr, to.Addr())
	}
	if r.port != 0 && r.port != to.Port() {
		return fmt.Sprintf("the request is for port %d, but the connection goes to port %d", r.port, to.Port())
	}
	return ""
}

// serveHTTP passes requests on, each after it was checked, and waits for the
// end of each answer before it looks at the next.
func (s *session) serveHTTP(b []byte) {
	// Its first read takes all of b, so that later what is not in the buffer is
	// in the socket.
	client := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(b), s.client), max(maxHead, len(b)))
	server := bufio.NewReaderSize(s.server, maxHead)
	for {
		_ = s.client.SetReadDeadline(time.Now().Add(idleTime))
		r, err := readRequest(client)
		_ = s.client.SetReadDeadline(time.Time{})
		claim := Claim{To: s.to, Protocol: HTTP1}
		v := Verdict{Rule: -1}
		var bad badRequest
		switch {
		case errors.As(err, &bad):
			v.Reason = string(bad)
		case err != nil:
			return
		default:
			claim.Name = r.name
			v = s.judgeRequest(claim, r)
		}
		if !v.Allow {
			s.refuse(first{protocol: HTTP1}, claim, v)
			return
		}
		if !s.exchange(r, client, server) {
			return
		}
	}
}

// judgeRequest decides about one request.
func (s *session) judgeRequest(claim Claim, r *request) Verdict {
	if why := r.misdirected(s.to); why != "" {
		return Verdict{Rule: -1, Reason: why}
	}
	v := s.judge(claim)
	if v.Allow && v.Request != nil {
		target := r.target
		if rest, ok := cutPrefixFold(target, "http://"); ok {
			target = "/"
			if i := strings.IndexAny(rest, "/?"); i >= 0 {
				target = rest[i:]
			}
		}
		if why := v.Request(r.method, target); why != "" {
			return Verdict{Rule: v.Rule, Reason: why}
		}
	}
	return v
}

// readRequest reads the next head.
func readRequest(from *bufio.Reader) (*request, error) {
	raw, err := readHead(from)
	if err != nil {
		return nil, err
	}
	if _, err := headEnd(raw); err != nil {
		return nil, err
	}
	return parseRequest(raw)
}

var errHeadTooLong = badRequest("the head of the request is too long")

// readHead reads up to and with an empty line.
func readHead(from *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := from.ReadSlice('\n')
		head = append(head, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) || len(head) > maxHead:
			return nil, errHeadTooLong
		case err != nil:
			return nil, err
		case len(line) == 2 && line[0] == '\r', len(line) == 1:
			return head, nil
		}
	}
}

// exchange passes one request and its answers on. It reports whether another
// request may follow.
func (s *session) exchange(r *request, client, server *bufio.Reader) bool {
	if _, err := s.server.Write(r.raw); err != nil {
		reset(s.client)
		return false
	}
	sent := make(chan error, 1)
	go func() {
		err := passBody(s.server, client, s.client, r.length)
		if err != nil {
			// The answer may be on its way, but the request has no end.
			reset(s.server)
		}
		sent <- err
	}()
	next, upgraded := s.passAnswers(r, server)
	if upgraded {
		if err := <-sent; err != nil {
			return false
		}
		s.upgrade(client, server)
		return false
	}
	if !next {
		_ = s.client.CloseWrite()
		// The rest of the body is no use to a server that is done.
		_ = s.client.SetReadDeadline(time.Now().Add(lingerTime))
	}
	if err := <-sent; err != nil {
		var bad badRequest
		if errors.As(err, &bad) {
			s.deny(Claim{To: s.to, Protocol: HTTP1, Name: r.name}, Verdict{Rule: -1, Reason: string(bad)})
		}
		reset(s.client)
		return false
	}
	return next
}

// upgrade goes on without HTTP, with what both sides have sent already.
func (s *session) upgrade(client, server *bufio.Reader) {
	for _, way := range []struct {
		from *bufio.Reader
		to   io.Writer
	}{{client, s.server}, {server, s.client}} {
		b, _ := way.from.Peek(way.from.Buffered())
		if _, err := way.to.Write(b); err != nil {
			reset(s.client)
			return
		}
	}
	splice(s.client, s.server)
}

// passAnswers passes the answers to a request on: interim ones and the last.
func (s *session) passAnswers(r *request, server *bufio.Reader) (next, upgraded bool) {
	for {
		head, err := readHead(server)
		if err != nil {
			if len(head) > 0 || !errors.Is(err, io.EOF) {
				reset(s.client)
			}
			return false, false
		}
		a, err := parseAnswer(head, r.method)
		if err != nil {
			reset(s.client)
			return false, false
		}
		if a.status == 101 && r.upgrade == "" {
			reset(s.client) // nobody asked for it
			return false, false
		}
		// What of the body is there already goes with the head.
		if n := min(a.length, int64(server.Buffered())); n > 0 {
			b, _ := server.Peek(int(n))
			head = append(head, b...)
			_, _ = server.Discard(int(n))
			a.length -= n
		}
		if _, err := s.client.Write(head); err != nil {
			return false, false
		}
		switch {
		case a.status == 101:
			return false, true
		case a.status < 200:
			continue
		}
		if err := a.passBody(s, server); err != nil {
			reset(s.client)
			return false, false
		}
		return a.length != untilEnd && !a.last, false
	}
}

// untilEnd is the length of a body that ends with its connection.
const untilEnd = -2

// answer is what must be known of a response's head.
type answer struct {
	status int
	// length is that of the body, -1 when it is chunked, or untilEnd.
	length int64
	last   bool // the server closes the connection
}

var errAnswer = errors.New("the server's answer is malformed")

func parseAnswer(head []byte, method string) (answer, error) {
	a := answer{length: untilEnd}
	lines := strings.Split(strings.TrimRight(string(head), "\r\n"), "\n")
	version, rest, _ := strings.Cut(strings.TrimRight(lines[0], "\r"), " ")
	code, _, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/1.") || err != nil || n < 100 || n > 999 {
		return a, errAnswer
	}
	a.status = n
	a.last = version == "HTTP/1.0"
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(strings.TrimRight(l, "\r"), ":")
		value = strings.ToLower(strings.Trim(value, " \t"))
		switch strings.ToLower(name) {
		case "transfer-encoding":
			if !strings.HasSuffix(value, "chunked") {
				return a, errAnswer
			}
			a.length = -1
		case "content-length":
			if n, err := parseLength(value); err == nil && a.length == untilEnd {
				a.length = n
			}
		case "connection":
			if strings.Contains(value, "close") {
				a.last = true
			}
		}
	}
	if method == "HEAD" || n < 200 || n == 204 || n == 304 {
		a.length = 0
	}
	return a, nil
}

// passBody passes the rest of the body on.
func (a answer) passBody(s *session, server *bufio.Reader) error {
	if a.length != untilEnd {
		return passBody(s.client, server, s.server, a.length)
	}
	b, _ := server.Peek(server.Buffered())
	if _, err := s.client.Write(b); err != nil {
		return err
	}
	_, err := io.Copy(s.client, s.server)
	return err
}

// passBody copies a body of that length, or one in chunks (-1). Of a long one
// what is not buffered goes from socket to socket.
func passBody(to io.Writer, from *bufio.Reader, socket io.Reader, length int64) error {
	if length < 0 {
		return passChunks(to, from)
	}
	buffered := min(length, int64(from.Buffered()))
	if _, err := io.CopyN(to, from, buffered); err != nil || buffered == length {
		return err
	}
	_, err := io.CopyN(to, socket, length-buffered)
	return err
}

// passChunks copies a body in chunks (RFC 9112, 7.1), with its trailer.
func passChunks(to io.Writer, from *bufio.Reader) error {
	for {
		line, size, err := chunkLine(from)
		if err != nil {
			return err
		}
		if _, err := to.Write(line); err != nil {
			return err
		}
		if size == 0 {
			return passTrailer(to, from)
		}
		if _, err := io.CopyN(to, from, size); err != nil {
			return err
		}
		var end [2]byte
		if _, err := io.ReadFull(from, end[:]); err != nil {
			return err
		}
		if end != [2]byte{'\r', '\n'} {
			return badRequest("a chunk of the body does not end where it said")
		}
		if _, err := to.Write(end[:]); err != nil {
			return err
		}
	}
}

func chunkLine(from *bufio.Reader) ([]byte, int64, error) {
	line, err := from.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > maxChunkLine:
		return nil, 0, badRequest("the line before a chunk is too long")
	case err != nil:
		return nil, 0, err
	case len(line) < 3 || line[len(line)-2] != '\r' || bytes.IndexByte(line[:len(line)-2], '\r') >= 0:
		return nil, 0, badRequest("the line before a chunk is malformed")
	}
	digits, extension, _ := strings.Cut(string(line[:len(line)-2]), ";")
	digits = strings.TrimRight(digits, " \t")
	size, err := strconv.ParseUint(digits, 16, 60)
	if err != nil || len(digits) > 15 || strings.Trim(digits, "0123456789abcdefABCDEF") != "" || strings.ContainsAny(extension, "\x00") {
		return nil, 0, badRequest("the size of a chunk is no number")
	}
	return line, int64(size), nil
}

func passTrailer(to io.Writer, from *bufio.Reader) error {
	total := 0
	for {
		line, err := from.ReadSlice('\n')
		if total += len(line); errors.Is(err, bufio.ErrBufferFull) || total > maxTrailer {
			return badRequest("the trailer of the body is too long")
		}
		if err != nil {
			return err
		}
		if len(line) < 2 || line[len(line)-2] != '\r' {
			return badRequest("a line of the trailer ends without a carriage return")
		}
		if name, _, ok := bytes.Cut(line, []byte(":")); len(line) > 2 && (!ok || !isToken(string(name))) {
			return badRequest("a line of the trailer is malformed")
		}
		if _, err := to.Write(line); err != nil {
			return err
		}
		if len(line) == 2 {
			return nil
		}
	}
}

// forbidden is the answer to a request that is not allowed.
func forbidden(id string, to netip.AddrPort, name string, v Verdict) []byte {
	message := fmt.Sprintf("The network policy of this sandbox does not allow this request: %s.", v.Reason)
	body, _ := json.Marshal(map[string]any{
		"code": "NETWORK_POLICY_DENIED", "message": message,
		"sandbox": id, "destination": to.String(), "host": name, "rule": v.Rule,
	})
	body = append(body, '\n')
	head := fmt.Sprintf("HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"+
		"Connection: close\r\nVia: 1.1 paddock\r\n\r\n", len(body))
	return append([]byte(head), body...)
}

// goAway ends an HTTP/2 connection and asks for HTTP/1.1 (RFC 9113, 6.8 and 7).
func goAway(reason string) []byte {
	const typeSettings, typeGoAway, http11Required = 4, 7, 0xd
	b := []byte{0, 0, 0, typeSettings, 0, 0, 0, 0, 0}
	size := uint32(8 + len(reason))
	b = append(b, byte(size>>16), byte(size>>8), byte(size), typeGoAway, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, http11Required)
	return append(b, reason...)
}
