package address

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxLabel is the longest label of a host name (RFC 1035, section 2.3.4).
const MaxLabel = 63

// maxID bounds the id in an address; ids have 36 characters.
const maxID = 63

// Ref is what an address says. ID and Port are always set. Expires and Signature
// are either both set or both empty, and nobody has verified them.
type Ref struct {
	ID   string
	Port int
	// Expires is Unix seconds in base 36, as the address has it.
	Expires   string
	Signature string
}

// Signed reports whether the address carries what looks like a signature.
func (r Ref) Signed() bool { return r.Signature != "" }

// Label is the unsigned label of a port.
func Label(id string, port int) string { return id + "-" + strconv.Itoa(port) }

// Errors of ParseLabel and ParsePath. They say what is wrong, not with what:
// addresses may hold signatures.
var (
	ErrLabel = errors.New("want <id>-<port> or <id>-<port>-<expires>-<signature>")
	ErrPath  = errors.New("want /<id>/<port>/… or /<id>/<port>/<expires>/<signature>/…")
	ErrID    = errors.New("the id of the sandbox is not one: ids have lower-case letters, digits and hyphens")
	ErrPort  = errors.New("the port must be a number from 1 to 65535 without leading zeros")
)

// ParseLabel reads a label. The signed form is tried first; ids may contain
// hyphens, so it is read from its end.
func ParseLabel(label string) (Ref, error) {
	if rest, sig, ok := cutLast(label); ok && isSignature(sig) {
		if rest, exp, ok := cutLast(rest); ok && isExpires(exp) {
			r, err := parseUnsigned(rest)
			r.Expires, r.Signature = exp, sig
			return r, err
		}
	}
	return parseUnsigned(label)
}

func parseUnsigned(label string) (Ref, error) {
	id, port, ok := cutLast(label)
	if !ok {
		return Ref{}, ErrLabel
	}
	return newRef(id, port)
}

func newRef(id, port string) (Ref, error) {
	if !isID(id) {
		return Ref{}, ErrID
	}
	n, ok := parsePort(port)
	if !ok {
		return Ref{}, ErrPort
	}
	return Ref{ID: id, Port: n}, nil
}

// Path is an address in the form of a path.
type Path struct {
	Ref
	// Prefix is the part that names the port, without a slash at its end.
	Prefix string
	// Rest is what follows, with its slash; empty when nothing does.
	Rest string
}

// ParsePath reads /<id>/<port>/… with the signature that may follow. What looks
// like one need not be: the application may have such a path. Unsigned reads it
// as that.
//
// The path is in its escaped form, and nothing of it is unescaped or cleaned: an
// id with an escape in it is no id, and what follows belongs to the application.
func ParsePath(path string) (Path, error) {
	tail, ok := strings.CutPrefix(path, "/")
	if !ok {
		return Path{}, ErrPath
	}
	id, tail, ok := strings.Cut(tail, "/")
	if !ok {
		return Path{}, ErrPath
	}
	port, _, _ := strings.Cut(tail, "/")
	ref, err := newRef(id, port)
	if err != nil {
		return Path{}, err
	}
	p := Path{Ref: ref, Prefix: path[:1+len(id)+1+len(port)]}
	p.Rest = path[len(p.Prefix):]
	if exp, sig, rest, ok := CutSignature(p.Rest); ok {
		p.Expires, p.Signature = exp, sig
		p.Prefix, p.Rest = path[:len(path)-len(rest)], rest
	}
	return p, nil
}

// Unsigned reads what looked like a signature as the application's path.
func (p Path) Unsigned() Path {
	if !p.Signed() {
		return p
	}
	n := len(p.Prefix) - len(p.Expires) - len(p.Signature) - 2
	return Path{Ref: Ref{ID: p.ID, Port: p.Port}, Prefix: p.Prefix[:n], Rest: p.Prefix[n:] + p.Rest}
}

// CutSignature reads /<expires>/<signature> at the beginning of a path; rest is
// what follows, empty or with a slash.
func CutSignature(path string) (expires, signature, rest string, ok bool) {
	tail, ok := strings.CutPrefix(path, "/")
	if !ok {
		return "", "", "", false
	}
	expires, tail, ok = strings.Cut(tail, "/")
	if !ok || !isExpires(expires) {
		return "", "", "", false
	}
	signature = tail
	if i := strings.IndexByte(tail, '/'); i >= 0 {
		signature, rest = tail[:i], tail[i:]
	}
	if !isSignature(signature) {
		return "", "", "", false
	}
	return expires, signature, rest, true
}

// cutLast splits at the last hyphen.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func isID(s string) bool {
	if s == "" || len(s) > maxID || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if !isBase36(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

func parsePort(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, false
	}
	return int(n), true
}

func isBase36(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' }

// maxExpires is the length of the largest uint64 in base 36.
const maxExpires = 13

// isExpires is whether s is a uint64 in lower-case base 36 without leading zeros.
func isExpires(s string) bool {
	_, err := parseExpires(s)
	return err == nil
}

var errExpires = errors.New("not a time in base 36")

func parseExpires(s string) (uint64, error) {
	if s == "" || len(s) > maxExpires || len(s) > 1 && s[0] == '0' {
		return 0, errExpires
	}
	for i := range len(s) {
		if !isBase36(s[i]) {
			return 0, errExpires
		}
	}
	n, err := strconv.ParseUint(s, 36, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errExpires, err)
	}
	return n, nil
}

// FormatExpires writes Unix seconds as addresses have them.
func FormatExpires(unix uint64) string { return strconv.FormatUint(unix, 36) }
