package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// maxHead is the most that is read of a request's or response's head, in bytes.
const maxHead = 64 << 10

// request is the head of an HTTP/1 request (RFC 9112).
type request struct {
	method, target string
	old            bool // HTTP/1.0
	// name is the host that it is for; empty when that is an address.
	name string
	addr netip.Addr
	port uint16 // 0 when none is given
	// length is that of the body in bytes, -1 when it is chunked.
	length  int64
	upgrade string // in lower case
	// raw is the head as it goes on, its last empty line included.
	raw []byte
}

// badRequest is a head that is not passed on. Its text is for the sandbox.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// field is a line of a head.
type field struct{ name, value string } // the name in lower case

// headEnd finds the end of a head, behind its empty line; -1 while it is not
// there. A line that ends in a bare LF, which some servers take for an end and
// some don't, is an error.
func headEnd(b []byte) (int, error) {
	from := 0
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return -1, nil
		}
		i += from
		if i == 0 || b[i-1] != '\r' {
			return 0, badRequest("a line of the request ends without a carriage return")
		}
		if i == from+1 {
			return i + 1, nil
		}
		from = i + 1
	}
}

// parseRequest reads a head that headEnd found.
func parseRequest(raw []byte) (*request, error) {
	line, list, err := splitHead(raw)
	if err != nil {
		return nil, err
	}
	r := &request{raw: raw}
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !isToken(parts[0]) || parts[1] == "" {
		return nil, badRequest("the request line is malformed")
	}
	r.method, r.target = parts[0], parts[1]
	switch parts[2] {
	case "HTTP/1.1":
	case "HTTP/1.0":
		r.old = true
	default:
		return nil, badRequest("only HTTP/1.0 and HTTP/1.1 are understood")
	}
	for _, c := range []byte(r.target) {
		if c <= ' ' || c >= 0x7f {
			return nil, badRequest("the request's target has characters that must be encoded")
		}
	}
	if err := r.framing(list); err != nil {
		return nil, err
	}
	if err := r.host(list); err != nil {
		return nil, err
	}
	r.takeUpgrade(line, list)
	return r, nil
}

// splitHead takes a head apart: the first line, and the fields.
func splitHead(raw []byte) (string, []field, error) {
	lines := strings.Split(strings.TrimSuffix(string(raw), "\r\n\r\n"), "\r\n")
	list := make([]field, 0, len(lines)-1)
	for i, l := range lines {
		if strings.ContainsAny(l, "\r\n\x00") {
			return "", nil, badRequest("the head of the request has control characters")
		}
		if i == 0 {
			continue
		}
		name, value, ok := strings.Cut(l, ":")
		// A space at the beginning would continue the line before (RFC
		// 9112, 5.2), one before the colon is read in two ways.
		if !ok || !isToken(name) {
			return "", nil, badRequest("a header line of the request is malformed")
		}
		list = append(list, field{strings.ToLower(name), strings.Trim(value, " \t")})
	}
	return lines[0], list, nil
}

func isToken(s string) bool {
	for _, c := range []byte(s) {
		if !isTokenChar(c) {
			return false
		}
	}
	return s != ""
}

func isTokenChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// framing finds how long the body is, and refuses what two readers could find
// different answers to (RFC 9112, 6.3 and 11.2).
func (r *request) framing(list []field) error {
	chunked, lengths := 0, 0
	for _, f := range list {
		switch f.name {
		case "transfer-encoding":
			if !strings.EqualFold(f.value, "chunked") {
				return badRequest("of the transfer encodings only \"chunked\" is passed on")
			}
			chunked++
		case "content-length":
			n, err := parseLength(f.value)
			if err != nil {
				return badRequest("the content length of the request is no number")
			}
			r.length = n
			lengths++
		}
	}
	switch {
	case chunked > 1 || lengths > 1:
		return badRequest("the request says twice how long its body is")
	case chunked > 0 && lengths > 0:
		return badRequest("the request has both a content length and a transfer encoding")
	case chunked > 0 && r.old:
		return badRequest("an HTTP/1.0 request has no transfer encoding")
	case chunked > 0:
		r.length = -1
	}
	return nil
}

func parseLength(s string) (int64, error) {
	if s == "" || len(s) > 18 || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("no length")
	}
	return strconv.ParseInt(s, 10, 64)
}

// host finds whom the request is for: the Host line, and the target if that
// names somebody, who must be the same.
func (r *request) host(list []field) error {
	hosts := 0
	var host string
	for _, f := range list {
		if f.name == "host" {
			host = f.value
			hosts++
		}
	}
	if hosts > 1 || (hosts == 0 && !r.old) {
		return badRequest(fmt.Sprintf("the request has %d Host lines: it must have one", hosts))
	}
	if hosts == 1 {
		var err error
		if r.name, r.addr, r.port, err = authority(host); err != nil {
			return err
		}
	}
	switch {
	case r.method == "CONNECT":
		return badRequest("CONNECT is not passed on: it would hide where the connection goes")
	case strings.HasPrefix(r.target, "/"), r.target == "*" && r.method == "OPTIONS":
		return nil
	}
	rest, ok := cutPrefixFold(r.target, "http://")
	if !ok {
		return badRequest("the target of the request must begin with / or http://")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	name, addr, port, err := authority(rest[:end])
	if err != nil {
		return err
	}
	if hosts == 0 {
		r.name, r.addr, r.port = name, addr, port
	}
	if name != r.name || addr != r.addr || port != r.port {
		return badRequest("the request's target and its Host line name different hosts")
	}
	return nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// authority reads "host", "host:port", "192.0.2.1", or "[2001:db8::1]:80".
func authority(s string) (name string, addr netip.Addr, port uint16, err error) {
	bad := badRequest("the request's host is malformed")
	host, rest := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, rest = s[:i], s[i+1:]
		n, err := strconv.ParseUint(rest, 10, 16)
		if err != nil || n == 0 || strings.Trim(rest, "0123456789") != "" {
			return "", addr, 0, bad
		}
		port = uint16(n)
	}
	inner, ok := strings.CutPrefix(host, "[")
	if ok {
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return "", addr, 0, bad
		}
		if addr, err = netip.ParseAddr(inner); err != nil || !addr.Is6() {
			return "", addr, 0, bad
		}
		return "", addr.Unmap().WithZone(""), port, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is4() {
		return "", addr, port, nil
	}
	if name, ok = hostName(host); !ok {
		return "", addr, 0, bad
	}
	return name, addr, port, nil
}

// takeUpgrade notes what the request wants to change to. HTTP/2 is taken out:
// with it the connection would carry requests that can't be followed here, and a
// client that offers it goes on without.
func (r *request) takeUpgrade(line string, list []field) {
	var values []string
	for _, f := range list {
		if f.name == "upgrade" {
			values = append(values, strings.ToLower(f.value))
		}
	}
	r.upgrade = strings.Join(values, ",")
	if !strings.Contains(r.upgrade, "h2c") {
		return
	}
	r.upgrade = ""
	var b bytes.Buffer
	b.WriteString(line + "\r\n")
	for _, l := range strings.Split(strings.TrimSuffix(string(r.raw), "\r\n\r\n"), "\r\n")[1:] {
		name, _, _ := strings.Cut(l, ":")
		switch strings.ToLower(name) {
		case "upgrade", "http2-settings", "connection":
		default:
			b.WriteString(l + "\r\n")
		}
	}
	b.WriteString("\r\n")
	r.raw = b.Bytes()
}
