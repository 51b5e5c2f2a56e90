package web

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Codes of the contract (OpenSandbox execd API), and below them execd's own for
// what the contract has no code for.
const (
	CodeInvalidBody     = "INVALID_REQUEST_BODY"
	CodeMissingQuery    = "MISSING_QUERY"
	CodeRuntime         = "RUNTIME_ERROR"
	CodeInvalidFile     = "INVALID_FILE"
	CodeInvalidContent  = "INVALID_FILE_CONTENT"
	CodeInvalidMetadata = "INVALID_FILE_METADATA"
	CodeFileNotFound    = "FILE_NOT_FOUND"
	CodeContextNotFound = "CONTEXT_NOT_FOUND"
	CodeNotSupported    = "NOT_SUPPORTED"
	CodeUnknown         = "UNKNOWN"

	CodeUnauthorized     = "UNAUTHORIZED"
	CodeNotClaimed       = "NOT_CLAIMED"
	CodeNotFound         = "NOT_FOUND"
	CodeMethodNotAllowed = "METHOD_NOT_ALLOWED"
	CodeCommandNotFound  = "COMMAND_NOT_FOUND"
	CodeInvalidQuery     = "INVALID_QUERY"
	CodeTooMany          = "TOO_MANY_REQUESTS"
)

// MaxBody bounds a JSON body, in bytes.
const MaxBody = 10 << 20

// Error is a refusal that is meant for the caller.
type Error struct {
	Status  int
	Code    string
	Message string
	// RetryAfter is sent with 429 and 503; 0 means one second.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// BadBody refuses a request body.
func BadBody(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeInvalidBody, format, args...)
}

// Busy refuses a request because a limit is reached.
func Busy(format string, args ...any) *Error {
	return Errorf(http.StatusTooManyRequests, CodeTooMany, format, args...)
}

// NotClaimed refuses a request to a shell that is no sandbox yet.
func NotClaimed() *Error {
	return Errorf(http.StatusServiceUnavailable, CodeNotClaimed, "this sandbox is not ready yet; try again")
}

// Fail answers with an error: an *Error as it says, any other as an internal
// failure whose text is shown, because it speaks of the caller's own sandbox.
func Fail(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Status: http.StatusInternalServerError, Code: CodeRuntime, Message: err.Error()}
	}
	if e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable {
		seconds := max(1, int(e.RetryAfter/time.Second))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	JSON(w, e.Status, struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{e.Code, e.Message})
}

// Handler answers a request, or returns the error to answer with. It may not
// return an error once it has begun its answer.
type Handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP implements http.Handler.
func (h Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		Fail(w, err)
	}
}

// JSON answers with a JSON body.
func JSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":"RUNTIME_ERROR","message":"the answer could not be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// The caller has gone if this fails; there is nobody to tell.
	_, _ = w.Write(body)
}

// ReadJSON decodes one JSON value of at most MaxBody bytes from the body.
// Unknown members and what follows the value are ignored (OpenSandbox execd API).
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body := http.MaxBytesReader(w, r.Body, MaxBody)
	// A small buffer: large reads of the decoder pass it by.
	in := bufio.NewReaderSize(body, 16)
	if isNull(in) {
		return BadBody(nullBody)
	}
	err := json.NewDecoder(in).Decode(v)
	if err != nil {
		return badJSON(err)
	}
	// net/http notices that a client has gone only once its body was read.
	_, err = io.Copy(io.Discard, body)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return bodyTooLarge(tooLarge)
	}
	return nil
}

// isNull reports whether the next value is null, which encoding/json would take
// for a value of every type, and change nothing.
func isNull(in *bufio.Reader) bool {
	for {
		b, err := in.ReadByte()
		switch {
		case err != nil:
			return false // the decoder meets it again
		case b == ' ' || b == '\t' || b == '\r' || b == '\n':
			continue
		}
		_ = in.UnreadByte()
		head, _ := in.Peek(len("null"))
		return string(head) == "null"
	}
}

// ReadOptionalJSON is ReadJSON for a body that may be empty or null. v is
// unchanged then.
func ReadOptionalJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if r.ContentLength == 0 {
		return nil
	}
	err := ReadJSON(w, r, v)
	var e *Error
	if errors.As(err, &e) && (e.Message == emptyBody || e.Message == nullBody) {
		return nil
	}
	return err
}

// DecodeJSON decodes a body that was read already, with the errors of ReadJSON.
func DecodeJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return badJSON(err)
	}
	return nil
}

const (
	emptyBody = "the request body is empty; a JSON value is needed"
	nullBody  = "the request body is null; another JSON value is needed"
)

func badJSON(err error) error {
	var tooLarge *http.MaxBytesError
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &tooLarge):
		return bodyTooLarge(tooLarge)
	case errors.Is(err, io.EOF):
		return BadBody(emptyBody)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return BadBody("the request body ends in the middle of a JSON value")
	case errors.As(err, &syntax):
		return BadBody("the request body is not JSON: %s at byte %d", syntax.Error(), syntax.Offset)
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return BadBody("field %q is a JSON %s; %s is needed", strings.TrimPrefix(wrongType.Field, "."), wrongType.Value, kind(wrongType))
	case errors.As(err, &wrongType):
		return BadBody("the request body is a JSON %s; %s is needed", wrongType.Value, kind(wrongType))
	}
	return BadBody("reading the request body: %v", err)
}

func bodyTooLarge(e *http.MaxBytesError) error {
	return Errorf(http.StatusRequestEntityTooLarge, CodeInvalidBody, "the request body is larger than %d bytes", e.Limit)
}

// kind names a Go type in the words of JSON.
func kind(e *json.UnmarshalTypeError) string {
	switch e.Type.Kind().String() {
	case "bool":
		return "true or false"
	case "string":
		return "a string"
	case "struct", "map":
		return "an object"
	case "slice", "array":
		return "an array"
	}
	return "a whole number in range (" + e.Type.String() + ")"
}
