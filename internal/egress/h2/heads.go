package h2

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// MaxHead bounds a head in bytes, counted as HTTP/2 does (RFC 9113, 6.5.2).
const MaxHead = 128 << 10

// maxTrailer bounds what comes after a body, counted in the same way: it may wait
// as long as the body does.
const maxTrailer = 16 << 10

// Field is a line of a head. The name is in lower case; a Sensitive one is never
// kept in a header table.
type Field = hpack.HeaderField

// Request is the head of a request.
type Request struct {
	Method, Scheme, Authority, Path string
	// Protocol is that of an extended CONNECT (RFC 8441), or empty.
	Protocol string
	// Fields are all but pseudo-headers, and but Host, which is in Authority.
	Fields []Field
	// Length is what the body says about its length, in bytes: -1 when nothing.
	Length int64
	// Ended says that there is no body.
	Ended bool
	// SecretPath is set by who puts a credential into Path.
	SecretPath bool
	// TwoHosts says that there is a Host that differs from the Authority.
	TwoHosts bool
}

// Response is the head of an answer. One whose Status is below 200 is interim.
type Response struct {
	Status int
	Fields []Field
	Length int64
	// Bodiless says that there is no body, whatever Length is.
	Bodiless bool
}

// Get returns the values of a field, joined as a list is.
func Get(fields []Field, name string) string {
	out, found := "", false
	for i := range fields {
		if fields[i].Name != name {
			continue
		}
		if found {
			out += ", "
		}
		out, found = out+fields[i].Value, true
	}
	return out
}

// Del returns fields without those of a name.
func Del(fields []Field, name string) []Field {
	return slices.DeleteFunc(fields, func(f Field) bool { return f.Name == name })
}

// Set returns fields with one of a name, in place of all others of it.
func Set(fields []Field, f Field) []Field {
	for i := range fields {
		if fields[i].Name == f.Name {
			rest := Del(fields[i+1:], f.Name)
			fields[i] = f
			return fields[:i+1+len(rest)]
		}
	}
	return append(fields, f)
}

// malformed is what makes a message malformed (RFC 9113, 8.1.1); empty is fine.
type malformed string

// decoded is one header block.
type decoded struct {
	fields []Field
	size   int
	over   bool // it is longer than MaxHead, and fields are only its beginning
}

func (d *decoded) add(f Field) {
	if d.size += int(f.Size()); d.size > MaxHead {
		d.over = true
		return
	}
	d.fields = append(d.fields, f)
}

// checkField says what is wrong with a field that is no pseudo-header (RFC 9113,
// 8.2). What only some readers refuse is refused here.
func checkField(f *Field) malformed {
	if !validName(f.Name) {
		return "the name of a field is malformed"
	}
	if !validValue(f.Value) {
		return "the value of a field is malformed"
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "a field belongs to connections of HTTP/1"
	case "te":
		if f.Value != "trailers" {
			return "a field belongs to connections of HTTP/1"
		}
	}
	return ""
}

func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !httpguts.IsTokenRune(rune(c)) || c >= 'A' && c <= 'Z' || c >= 0x80 {
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	if s == "" {
		return true
	}
	if first, last := s[0], s[len(s)-1]; first == ' ' || first == '\t' || last == ' ' || last == '\t' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// length takes Content-Length out of fields; -1 when there is none.
func length(fields []Field) (int64, malformed) {
	n := int64(-1)
	for i := range fields {
		if fields[i].Name != "content-length" {
			continue
		}
		v, err := strconv.ParseInt(fields[i].Value, 10, 64)
		if err != nil || v < 0 || fields[i].Value[0] == '+' || n >= 0 {
			return 0, "the content length is not one number"
		}
		n = v
	}
	return n, ""
}

// Names of pseudo-headers.
var (
	ofRequests = []string{":method", ":scheme", ":authority", ":path", ":protocol"}
	ofAnswers  = []string{":status"}
)

// pseudo takes the pseudo-headers off the beginning, each of which must be one of
// known and there at most once. The values are in the order of known; a value is
// nil when there is none.
func pseudo(fields []Field, known []string) (values [5]*string, rest []Field, why malformed) {
	n := 0
	for ; n < len(fields) && strings.HasPrefix(fields[n].Name, ":"); n++ {
		f := &fields[n]
		which := slices.Index(known, f.Name)
		if which < 0 || values[which] != nil {
			return values, nil, "a pseudo-header is unknown, or there twice"
		}
		if !validValue(f.Value) {
			return values, nil, "the value of a pseudo-header is malformed"
		}
		values[which] = &f.Value
	}
	rest = fields[n:]
	for i := range rest {
		if why := checkField(&rest[i]); why != "" {
			return values, nil, why // a late pseudo-header's name is no token
		}
	}
	return values, rest, ""
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// newRequest checks the head of a request (RFC 9113, 8.3.1).
func newRequest(fields []Field, ended bool) (*Request, malformed) {
	p, fields, why := pseudo(fields, ofRequests)
	if why != "" {
		return nil, why
	}
	r := &Request{Method: deref(p[0]), Scheme: deref(p[1]), Authority: deref(p[2]), Path: deref(p[3]), Protocol: deref(p[4]), Ended: ended}
	hasProtocol := p[4] != nil
	switch {
	case !httpguts.ValidHeaderFieldName(r.Method):
		return nil, "the method is malformed"
	case hasProtocol && (r.Method != "CONNECT" || !httpguts.ValidHeaderFieldName(r.Protocol)):
		return nil, "only CONNECT has a protocol"
	case r.Method == "CONNECT" && !hasProtocol:
		if r.Scheme != "" || r.Path != "" || r.Authority == "" {
			return nil, "CONNECT has an authority only"
		}
	case r.Scheme != "https" && r.Scheme != "http":
		return nil, "the scheme is another one than http and https"
	case r.Path == "" || !visible(r.Path):
		return nil, "the path is missing or malformed"
	}
	if !visible(r.Authority) || strings.ContainsAny(r.Authority, "@/?#\\") {
		return nil, "the authority is malformed"
	}
	hosts := 0
	for i := range fields {
		if fields[i].Name != "host" {
			continue
		}
		if hosts++; r.Authority == "" {
			r.Authority = fields[i].Value
		}
		r.TwoHosts = r.TwoHosts || fields[i].Value != r.Authority
	}
	if hosts > 1 {
		return nil, "there are two Host fields"
	}
	if hosts > 0 {
		fields = Del(fields, "host")
	}
	r.Fields = fields
	if r.Length, why = length(fields); why != "" {
		return nil, why
	}
	if ended && r.Length > 0 {
		return nil, "the body is shorter than its content length"
	}
	return r, ""
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// all returns the fields as they are sent.
func (r *Request) all(to []Field) []Field {
	to = append(to, Field{Name: ":method", Value: r.Method})
	if r.Method != "CONNECT" || r.Protocol != "" {
		to = append(to, Field{Name: ":scheme", Value: r.Scheme})
	}
	to = append(to, Field{Name: ":authority", Value: r.Authority})
	if r.Method != "CONNECT" || r.Protocol != "" {
		to = append(to, Field{Name: ":path", Value: r.Path, Sensitive: r.SecretPath})
	}
	if r.Protocol != "" {
		to = append(to, Field{Name: ":protocol", Value: r.Protocol})
	}
	return append(to, r.Fields...)
}

// newResponse checks the head of an answer (RFC 9113, 8.3.2).
func newResponse(fields []Field, method string) (*Response, malformed) {
	p, fields, why := pseudo(fields, ofAnswers)
	if why != "" {
		return nil, why
	}
	status := deref(p[0])
	n, err := strconv.Atoi(status)
	if err != nil || len(status) != 3 || n < 100 || n == 101 {
		return nil, "the status is malformed"
	}
	a := &Response{Status: n, Fields: fields}
	a.Bodiless = method == "HEAD" || n < 200 || n == 204 || n == 304
	if a.Length, why = length(fields); why != "" {
		return nil, why
	}
	return a, ""
}

func (a *Response) all(to []Field) []Field {
	return append(append(to, Field{Name: ":status", Value: strconv.Itoa(a.Status)}), a.Fields...)
}

// checkTrailer says what is wrong with what comes after a body. Framing belongs
// before it (RFC 9110, 6.5.1).
func checkTrailer(fields []Field) malformed {
	for i := range fields {
		if why := checkField(&fields[i]); why != "" {
			return why
		}
		switch fields[i].Name {
		case "content-length", "host", "te", "trailer", "content-encoding":
			return "the trailer has a field that must be in the head"
		}
	}
	return ""
}
