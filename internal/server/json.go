package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Bounds of a JSON body beyond its size.
const (
	// maxDepth is far more than the contract nests (five levels).
	maxDepth = 32
	// maxValues keeps a body of nothing but brackets from taking a hundred
	// times its size in memory.
	maxValues = 32768
)

// kind is the type of a JSON value.
type kind int

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// value is one JSON value with its place in the body, such as
// volumes[1].mountPath; the body itself has an empty one.
type value struct {
	path    string
	kind    kind
	yes     bool
	text    string // of a string, or of a number as it was written
	items   []*value
	members []member
}

type member struct {
	name string
	*value
}

// readJSON reads and checks the body of a request. Bodies that leave their
// meaning open (a member that occurs twice, text after the end, bytes that are
// not UTF-8) are refused.
func (s *Server) readJSON(r *request, types ...string) (*value, error) {
	if err := checkMediaType(r.Header, types); err != nil {
		return nil, err
	}
	body, err := s.readBody(r)
	if err != nil {
		return nil, err
	}
	return parseJSON(body)
}

// checkMediaType wants a JSON type. Beyond being a mistake, any other type can
// be sent by a web page of any origin without the browser asking first.
func checkMediaType(h http.Header, also []string) error {
	if enc := h.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return &httpError{status: http.StatusUnsupportedMediaType, code: codeMediaType,
			message: fmt.Sprintf("Content-Encoding %s is not supported. Send the body as it is.", quote(enc))}
	}
	given := h.Get("Content-Type")
	media, params, err := mime.ParseMediaType(given)
	ok := err == nil && media == "application/json"
	for _, t := range also {
		ok = ok || err == nil && media == t
	}
	if !ok {
		return &httpError{status: http.StatusUnsupportedMediaType, code: codeMediaType,
			message: fmt.Sprintf("Content-Type is %s; it must be application/json.", quote(given))}
	}
	if cs, given := params["charset"]; given && !strings.EqualFold(cs, "utf-8") {
		return &httpError{status: http.StatusUnsupportedMediaType, code: codeMediaType,
			message: fmt.Sprintf("The charset %s is not supported. JSON is UTF-8.", quote(cs))}
	}
	return nil
}

// readBody reads a body within the limits on size and time.
func (s *Server) readBody(r *request) ([]byte, error) {
	limit := s.opts.Limits.Body
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	rc := http.NewResponseController(r.w)
	if rc.SetReadDeadline(time.Now().Add(readTimeout)) == nil {
		defer rc.SetReadDeadline(time.Time{})
	}
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(http.MaxBytesReader(r.w, r.Body, limit)); err != nil {
		return nil, bodyFailure(r, err)
	}
	return b.Bytes(), nil
}

// bodyFailure turns an error of reading a body into one for the caller.
func bodyFailure(r *request, err error) error {
	var tooLarge *http.MaxBytesError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooLarge):
		return tooLarge
	case errors.As(err, &timeout) && timeout.Timeout():
		r.w.Header().Set("Connection", "close")
		return &httpError{status: http.StatusRequestTimeout, code: codeBodyTimeout,
			message: "The body of the request did not arrive in time."}
	}
	r.w.Header().Set("Connection", "close")
	return invalid(sandbox.CodeInvalidParameter, "The body of the request could not be read to its end.")
}

func parseJSON(body []byte) (*value, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, invalid(sandbox.CodeInvalidParameter, "The body is empty; it must be a JSON object.")
	}
	if !utf8.Valid(body) {
		return nil, invalid(sandbox.CodeInvalidParameter, "The body is not valid UTF-8.")
	}
	p := parser{dec: json.NewDecoder(bytes.NewReader(body))}
	p.dec.UseNumber()
	v, err := p.next("", 1)
	if err == nil {
		if _, end := p.dec.Token(); end != io.EOF {
			return nil, invalid(sandbox.CodeInvalidParameter, "The body goes on after the end of its JSON value.")
		}
		return v, nil
	}
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		return nil, typed
	}
	// The decoder's own position is behind what it has read ahead only by the
	// token that failed.
	line, column := position(body, p.dec.InputOffset())
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, invalid(sandbox.CodeInvalidParameter, "The body is not complete JSON: it ends in the middle of a value.")
	}
	return nil, invalid(sandbox.CodeInvalidParameter, "The body is not valid JSON near line %d, column %d.", line, column)
}

// position counts from 1.
func position(body []byte, offset int64) (line, column int) {
	before := body[:min(max(offset, 0), int64(len(body)))]
	line = 1 + bytes.Count(before, []byte("\n"))
	column = 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	return line, column
}

type parser struct {
	dec    *json.Decoder
	values int
}

func (p *parser) next(path string, depth int) (*value, error) {
	t, err := p.dec.Token()
	if err != nil {
		return nil, err
	}
	if p.values++; p.values > maxValues {
		return nil, invalid(sandbox.CodeInvalidParameter, "The body has more than %d values.", maxValues)
	}
	v := &value{path: path}
	switch t := t.(type) {
	case nil:
	case bool:
		v.kind, v.yes = kindBool, t
	case json.Number:
		v.kind, v.text = kindNumber, t.String()
	case string:
		v.kind, v.text = kindString, t
	case json.Delim:
		if depth > maxDepth {
			return nil, invalid(sandbox.CodeInvalidParameter, "The body is nested more than %d levels deep.", maxDepth)
		}
		if t == '[' {
			return v, p.array(v, depth)
		}
		return v, p.object(v, depth)
	}
	return v, nil
}

func (p *parser) array(v *value, depth int) error {
	v.kind = kindArray
	for p.dec.More() {
		item, err := p.next(fmt.Sprintf("%s[%d]", v.path, len(v.items)), depth+1)
		if err != nil {
			return err
		}
		v.items = append(v.items, item)
	}
	_, err := p.dec.Token()
	return err
}

func (p *parser) object(v *value, depth int) error {
	v.kind = kindObject
	var seen map[string]bool // only for large objects
	for p.dec.More() {
		t, err := p.dec.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok {
			return fmt.Errorf("member name is %v", t)
		}
		if seen == nil && len(v.members) >= 16 {
			seen = make(map[string]bool)
			for _, m := range v.members {
				seen[m.name] = true
			}
		}
		if seen[name] || seen == nil && v.find(name) != nil {
			return invalid(sandbox.CodeInvalidParameter, "%s occurs twice. Which one counts would be a guess.", join(v.path, name))
		}
		item, err := p.next(join(v.path, name), depth+1)
		if err != nil {
			return err
		}
		if seen != nil {
			seen[name] = true
		}
		v.members = append(v.members, member{name, item})
	}
	_, err := p.dec.Token()
	return err
}

func (v *value) find(name string) *value {
	for _, m := range v.members {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// join is the path of a member. Names that could be mistaken for something else
// are quoted.
func join(path, name string) string {
	if !plainName(name) {
		return path + "[" + quote(name) + "]"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func plainName(name string) bool {
	if name == "" || len(name) > maxShown {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return false
		}
	}
	return true
}
