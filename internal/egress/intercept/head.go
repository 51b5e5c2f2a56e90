package intercept

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// maxHead bounds the head of a request, and that of an answer, in bytes.
const maxHead = 128 << 10

// untilEnd and chunked are lengths of bodies that no number says.
const (
	chunked  = -1
	untilEnd = -2
)

// malformed is what is not passed on. The text is for the sandbox, and quotes
// nothing.
type malformed string

func (e malformed) Error() string { return string(e) }

// field is a line of a head, as it was sent.
type field struct{ name, value string }

func (f *field) is(name string) bool { return strings.EqualFold(f.name, name) }

// head is the head of a request or an answer (RFC 9112).
type head struct {
	// first is the request line or status line.
	first  string
	fields []field
	// length is that of the body in bytes, chunked or untilEnd.
	length int64
	// last says that no other message follows on this connection.
	last bool
	old  bool // HTTP/1.0
}

// get returns the values of a field, joined as a list is.
func (h *head) get(name string) string {
	out, found := "", false
	for i := range h.fields {
		if !h.fields[i].is(name) {
			continue
		}
		if found {
			out += ", "
		}
		out, found = out+h.fields[i].value, true
	}
	return out
}

// del removes a field.
func (h *head) del(name string) {
	kept := h.fields[:0]
	for _, f := range h.fields {
		if !f.is(name) {
			kept = append(kept, f)
		}
	}
	h.fields = kept
}

// set makes a field the only one of its name, at the place of the first.
func (h *head) set(name, value string) {
	for i := range h.fields {
		if h.fields[i].is(name) {
			rest := h.fields[i+1:]
			h.fields = append(h.fields[:i], field{name, value})
			for _, f := range rest {
				if !f.is(name) {
					h.fields = append(h.fields, f)
				}
			}
			return
		}
	}
	h.fields = append(h.fields, field{name, value})
}

// lists reports whether a field that is a list has an entry.
func (h *head) lists(name, entry string) bool {
	for i := range h.fields {
		if h.fields[i].is(name) && httpguts.HeaderValuesContainsToken([]string{h.fields[i].value}, entry) {
			return true
		}
	}
	return false
}

// write appends the head to a buffer. Its values were checked when they were
// read; those that were set here hold no line's end (vault checks them).
func (h *head) write(to *bufio.Writer) {
	to.WriteString(h.first)
	to.WriteString("\r\n")
	for i := range h.fields {
		to.WriteString(h.fields[i].name)
		to.WriteString(": ")
		to.WriteString(h.fields[i].value)
		to.WriteString("\r\n")
	}
	to.WriteString("\r\n")
}

// readHead reads a head up to its empty line. Every line must end in CR LF, and
// none may continue the one before: readers differ there. io.EOF means that
// nothing came.
func readHead(from *bufio.Reader) (*head, error) {
	h := &head{fields: make([]field, 0, 16)}
	for size := 0; ; {
		line, err := readLine(from, maxHead-size)
		if err != nil {
			if size > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		size += len(line) + 2
		switch {
		case h.first == "":
			if line == "" {
				return nil, malformed("the message begins with an empty line")
			}
			h.first = line
		case line == "":
			return h, nil
		default:
			f, err := parseField(line)
			if err != nil {
				return nil, err
			}
			h.fields = append(h.fields, f)
		}
	}
}

// readLine reads a line of at most that length, and returns it without its end.
func readLine(from *bufio.Reader, most int) (string, error) {
	line, err := from.ReadSlice('\n')
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) && len(long) < most {
		long = append(long, line...)
		line, err = from.ReadSlice('\n')
	}
	if long != nil {
		line = append(long, line...)
	}
	switch {
	case len(line) > most:
		return "", malformed("the head is too long")
	case errors.Is(err, io.EOF) && len(line) > 0:
		return "", io.ErrUnexpectedEOF
	case err != nil:
		return "", err
	case len(line) < 2 || line[len(line)-2] != '\r':
		return "", malformed("a line of the head ends without a carriage return")
	}
	line = line[:len(line)-2]
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return "", malformed("the head has control characters")
	}
	return string(line), nil
}

func parseField(line string) (field, error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !httpguts.ValidHeaderFieldName(name) {
		return field{}, malformed("a header line is malformed")
	}
	value = strings.Trim(value, " \t")
	if !httpguts.ValidHeaderFieldValue(value) {
		return field{}, malformed("a header has control characters")
	}
	return field{name, value}, nil
}

// framing finds how long the body is, and refuses what two readers could find
// different answers to (RFC 9112, 6.3 and 11.2). Without any sign it is none.
func (h *head) framing(none int64) error {
	encodings, lengths := 0, 0
	h.length = none
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case f.is("transfer-encoding"):
			if !strings.EqualFold(f.value, "chunked") {
				return malformed("of the transfer encodings only \"chunked\" is passed on")
			}
			encodings++
		case f.is("content-length"):
			n, err := strconv.ParseInt(f.value, 10, 64)
			if err != nil || n < 0 || f.value[0] == '+' || lengths > 0 {
				return malformed("the content length is not one number")
			}
			h.length = n
			lengths++
		}
	}
	switch {
	case encodings > 1 || encodings > 0 && lengths > 0:
		return malformed("the message says twice how long its body is")
	case encodings > 0 && h.old:
		return malformed("an HTTP/1.0 message has no transfer encoding")
	case encodings > 0:
		h.length = chunked
	}
	h.last = h.old && !h.lists("connection", "keep-alive") || h.lists("connection", "close")
	return nil
}

// request is the head of a request.
type request struct {
	*head
	method, target string
	upgrade        bool
}

func readRequest(from *bufio.Reader) (*request, error) {
	h, err := readHead(from)
	if err != nil {
		return nil, err
	}
	r := &request{head: h}
	method, rest, ok := strings.Cut(h.first, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !httpguts.ValidHeaderFieldName(method) || !visible(target) || target == "" {
		return nil, malformed("the request line is malformed")
	}
	r.method, r.target = method, target
	switch version {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.old = true
	default:
		return nil, malformed("only HTTP/1.0 and HTTP/1.1 are understood here")
	}
	if err := h.framing(0); err != nil {
		return nil, err
	}
	if h.lists("upgrade", "h2c") {
		// What would follow could not be followed here. A client that offers it
		// goes on without.
		h.del("Upgrade")
		h.del("HTTP2-Settings")
		h.del("Connection")
	}
	r.upgrade = h.lists("connection", "upgrade") && h.get("upgrade") != ""
	return r, nil
}

// retarget writes the request line anew.
func (r *request) retarget(target string) {
	r.target = target
	version := " HTTP/1.1"
	if r.old {
		version = " HTTP/1.0"
	}
	r.first = r.method + " " + target + version
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// answer is the head of an answer.
type answer struct {
	*head
	status int
}

// readAnswer reads the head of an answer to a request with that method.
func readAnswer(from *bufio.Reader, method string) (*answer, error) {
	h, err := readHead(from)
	if err != nil {
		return nil, err
	}
	a := &answer{head: h}
	version, rest, _ := strings.Cut(h.first, " ")
	code, _, _ := strings.Cut(rest, " ")
	a.status, err = strconv.Atoi(code)
	if err != nil || len(code) != 3 || a.status < 100 || (version != "HTTP/1.1" && version != "HTTP/1.0") {
		return nil, malformed("the status line of the answer is malformed")
	}
	h.old = version == "HTTP/1.0"
	if a.status < 200 || a.status == 204 {
		// They have no body, whatever they say (RFC 9110, 8.6; RFC 9112, 6.1).
		h.del("Content-Length")
		h.del("Transfer-Encoding")
	}
	if err := h.framing(untilEnd); err != nil {
		return nil, err
	}
	if method == "HEAD" || a.status < 200 || a.status == 204 || a.status == 304 {
		h.length = 0
	}
	h.last = h.last || h.length == untilEnd
	return a, nil
}
