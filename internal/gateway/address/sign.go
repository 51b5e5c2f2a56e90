package address

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// shortLen is eight hexadecimal digits and the name of the key
	// (OpenSandbox ingress).
	shortLen = 9
	// ownPrefix begins a signature of paddock's own. It has a letter that the
	// hexadecimal digits of the other kind don't have, and another length.
	ownPrefix = "p1"
	ownLen    = len(ownPrefix) + 52 // 256 bits in base 32

	// MinSecret is the least length of the secret for paddock's own signatures,
	// in bytes.
	MinSecret = 32
)

// base32Lower survives host names and headers alike; RFC 4648, lower case.
var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// purpose is the first line of what is signed.
type purpose string

const (
	forAddress purpose = "paddock route 1"
	forCookie  purpose = "paddock cookie 1"
)

// Keys sign addresses and verify signatures. They don't change after New, so
// that any goroutine may use them.
type Keys struct {
	secret []byte
	short  map[byte][]byte
	active byte // 0 when there are no short keys
}

// New returns keys. secret is for paddock's own signatures, at least MinSecret
// bytes. short are the protocol's keys by their one-character names; the first
// name of active signs, and all verify. Without any, active is empty.
func New(secret []byte, short map[string][]byte, active string) (*Keys, error) {
	if len(secret) < MinSecret {
		return nil, fmt.Errorf("the secret has %d bytes; it needs at least %d", len(secret), MinSecret)
	}
	k := &Keys{secret: secret, short: make(map[byte][]byte)}
	for name, key := range short {
		if len(name) != 1 || !isBase36(name[0]) {
			return nil, fmt.Errorf("the key name %q is not one character of 0-9 and a-z", name)
		}
		if len(key) == 0 {
			return nil, fmt.Errorf("the key %q is empty", name)
		}
		k.short[name[0]] = key
	}
	if len(short) > 0 {
		if short[active] == nil {
			return nil, fmt.Errorf("the active key %q is not among the keys", active)
		}
		k.active = active[0]
	}
	return k, nil
}

// ParseKey reads a key of the protocol as configurations have it: "a=BASE64".
// Its error does not show the key.
func ParseKey(text string) (name string, key []byte, err error) {
	name, encoded, ok := strings.Cut(text, "=")
	if !ok || len(name) != 1 || !isBase36(name[0]) {
		return "", nil, errors.New("want NAME=KEY, with a name of one character (0-9, a-z) and the key in base64")
	}
	key, err = base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) == 0 {
		return "", nil, fmt.Errorf("the key %q is not base64 of at least one byte", name)
	}
	return name, key, nil
}

// Short reports whether new signatures are the protocol's.
func (k *Keys) Short() bool { return k.active != 0 }

// Sign returns the signature of a port's address that is valid until a time in
// Unix seconds: the protocol's if there is a key for it, else paddock's own.
func (k *Keys) Sign(id string, port int, expires uint64) string {
	if k.active != 0 {
		return shortSignature(k.short[k.active], id, port, FormatExpires(expires)) + string(k.active)
	}
	return k.own(forAddress, id, port, FormatExpires(expires))
}

// Guessable reports whether the address's signature is of the protocol's kind,
// which has so few bits that tries have to be counted, and has a key here.
func (k *Keys) Guessable(r Ref) bool {
	return len(r.Signature) == shortLen && k.short[r.Signature[shortLen-1]] != nil
}

// Has reports whether there is a key for the address's kind of signature, be it
// the one that signed or another. No keys at all have none.
func (k *Keys) Has(r Ref) bool {
	return k != nil && (len(r.Signature) != shortLen || len(k.short) > 0)
}

// Expired is when the address ceased to be valid, and zero when it is still valid
// or never was. It says nothing of the protocol's signatures: that would help to
// guess them.
func (k *Keys) Expired(r Ref, now time.Time) time.Time {
	at, err := parseExpires(r.Expires)
	if err != nil || isCurrent(r.Expires, now) || !same(r.Signature, k.own(forAddress, r.ID, r.Port, r.Expires)) {
		return time.Time{}
	}
	return time.Unix(int64(at), 0)
}

// Verify reports whether a signature is one of this address and still valid. The
// time that it takes does not depend on how much of it is right.
func (k *Keys) Verify(r Ref, now time.Time) bool {
	if len(r.Signature) != shortLen {
		return k.verify(forAddress, r, now)
	}
	name := r.Signature[shortLen-1]
	key := k.short[name]
	if key == nil || !isCurrent(r.Expires, now) {
		return false
	}
	return same(r.Signature, shortSignature(key, r.ID, r.Port, r.Expires)+string(name))
}

// Cookie returns the value of a cookie that opens one port of one sandbox for as
// long as an address with this expiry would.
func (k *Keys) Cookie(id string, port int, expires string) string {
	return expires + "." + k.own(forCookie, id, port, expires)
}

// VerifyCookie reports whether a cookie's value opens this port now.
func (k *Keys) VerifyCookie(id string, port int, value string, now time.Time) bool {
	expires, sig, ok := strings.Cut(value, ".")
	return ok && k.verify(forCookie, Ref{ID: id, Port: port, Expires: expires, Signature: sig}, now)
}

func (k *Keys) verify(p purpose, r Ref, now time.Time) bool {
	return isCurrent(r.Expires, now) && same(r.Signature, k.own(p, r.ID, r.Port, r.Expires))
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// isCurrent is whether now is not after the time in base 36.
func isCurrent(expires string, now time.Time) bool {
	at, err := parseExpires(expires)
	return err == nil && uint64(max(now.Unix(), 0)) <= at
}

func (k *Keys) own(p purpose, id string, port int, expires string) string {
	m := hmac.New(sha256.New, k.secret)
	// No part can contain a line's end.
	m.Write([]byte(string(p) + "\n" + id + "\n" + strconv.Itoa(port) + "\n" + expires + "\n"))
	return ownPrefix + base32Lower.EncodeToString(m.Sum(nil))
}

// shortSignature is the protocol's, without the name of the key.
func shortSignature(key []byte, id string, port int, expires string) string {
	canonical := "v1\nshort\n" + id + "\n" + strconv.Itoa(port) + "\n" + expires + "\n"
	inner := make([]byte, 0, 8+len(key)+len(canonical))
	inner = binary.BigEndian.AppendUint32(inner, uint32(len(key)))
	inner = append(inner, key...)
	inner = binary.BigEndian.AppendUint32(inner, uint32(len(canonical)))
	inner = append(inner, canonical...)
	sum := sha256.Sum256(inner)
	return hex.EncodeToString(sum[:4])
}

// isSignature is whether s has the form of either kind.
func isSignature(s string) bool {
	switch len(s) {
	case shortLen:
		for i := range shortLen - 1 {
			if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
		return isBase36(s[shortLen-1])
	case ownLen:
		if s[:len(ownPrefix)] != ownPrefix {
			return false
		}
		for i := len(ownPrefix); i < ownLen; i++ {
			if c := s[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
				return false
			}
		}
		return true
	}
	return false
}
