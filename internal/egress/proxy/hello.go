package proxy

import (
	"encoding/binary"
	"errors"
	"strings"
)

// Numbers of TLS (RFC 8446).
const (
	recordHandshake   = 22
	recordHeader      = 5
	maxRecord         = 1 << 14
	handshakeHeader   = 4
	typeClientHello   = 1
	extensionSNI      = 0
	extensionECH      = 0xfe0d // RFC 9849
	nameTypeHost      = 0
	maxHello          = 32 << 10 // bytes; post-quantum keys and tickets stay below
	maxHelloRecords   = 64
	alertFatal        = 2
	recordAlert       = 21
	alertAccessDenied = 49
)

// accessDenied is the TLS alert that ends a connection that is not allowed.
var accessDenied = []byte{recordAlert, 3, 3, 0, 2, alertFatal, alertAccessDenied}

// hello is what a client hello says.
type hello struct {
	// name is the server's, in lower case; empty when there is none.
	name string
	// encrypted says that there is an encrypted client hello beside it, or
	// something that looks like one (RFC 9849, 6.2).
	encrypted bool
}

var errHello = errors.New("the TLS client hello is malformed")

// parseHello reads the client hello at the beginning of b. ok is false while
// bytes are missing. It takes nothing that a server might read differently.
func parseHello(b []byte) (h hello, ok bool, err error) {
	var message []byte
	for range maxHelloRecords {
		if len(b) < recordHeader {
			return h, false, nil
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] != recordHandshake || b[1] != 3 || size == 0 || size > maxRecord {
			return h, false, errHello
		}
		whole := len(b) >= recordHeader+size
		message = append(message, b[recordHeader:min(len(b), recordHeader+size)]...)
		if len(message) >= handshakeHeader {
			want := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if message[0] != typeClientHello || want > maxHello {
				return h, false, errHello
			}
			if len(message) >= handshakeHeader+want {
				h, err = parseHelloBody(message[handshakeHeader : handshakeHeader+want])
				return h, err == nil, err
			}
		}
		if !whole {
			return h, false, nil
		}
		b = b[recordHeader+size:]
	}
	return h, false, errHello
}

// fields takes length-prefixed fields off a message. After a field that isn't
// there it is bad and gives nothing.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n > len(f.b) {
		f.bad = true
		return nil
	}
	out := f.b[:n]
	f.b = f.b[n:]
	return out
}

func (f *fields) number(bytes int) int {
	n := 0
	for _, x := range f.take(bytes) {
		n = n<<8 | int(x)
	}
	return n
}

// vector takes a field with its length before it, in so many bytes.
func (f *fields) vector(bytes int) *fields {
	b := f.take(f.number(bytes))
	return &fields{b: b, bad: f.bad}
}

func (f *fields) more() bool { return !f.bad && len(f.b) > 0 }

func parseHelloBody(b []byte) (hello, error) {
	var h hello
	f := &fields{b: b}
	f.take(2 + 32)                          // version, random
	f.vector(1)                             // session
	f.vector(2)                             // ciphers
	f.vector(1)                             // compression
	if f.bad || (!f.more() && len(b) > 0) { // a client without extensions
		return h, ifBad(f)
	}
	extensions := f.vector(2)
	seen := map[int]bool{}
	for extensions.more() {
		id := extensions.number(2)
		content := extensions.vector(2)
		if seen[id] || extensions.bad {
			return h, errHello
		}
		seen[id] = true
		switch id {
		case extensionSNI:
			name, err := parseServerName(content)
			if err != nil {
				return h, err
			}
			h.name = name
		case extensionECH:
			h.encrypted = true
		}
	}
	if extensions.bad || f.bad || len(f.b) > 0 {
		return h, errHello
	}
	return h, nil
}

func ifBad(f *fields) error {
	if f.bad {
		return errHello
	}
	return nil
}

// parseServerName reads the list of names (RFC 6066, 3), which must have one
// entry: servers differ in which of several they take.
func parseServerName(content *fields) (string, error) {
	list := content.vector(2)
	if len(content.b) > 0 || list.number(1) != nameTypeHost {
		return "", errHello
	}
	raw := list.vector(2)
	if list.bad || raw.bad || len(list.b) > 0 {
		return "", errHello
	}
	name, ok := hostName(string(raw.b))
	if !ok {
		return "", errors.New("the server name in the TLS client hello is no host name")
	}
	return name, nil
}

// hostName checks a host name, in ASCII, and returns it in lower case and
// without a final dot.
func hostName(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
		for _, c := range []byte(label) {
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
			if !letter && c != '-' && c != '_' {
				return "", false
			}
		}
	}
	return strings.ToLower(s), true
}
