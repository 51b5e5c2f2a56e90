package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// ErrConnectionLost is returned when a stream ended before what it carries
// did: the server or the sandbox went away, or the network between did. What
// the command did after that is unknown.
var ErrConnectionLost = errors.New("the connection to the sandbox was lost before the end of the stream")

// maxErrorBody bounds how much of an error answer is read.
const maxErrorBody = 64 << 10

// Error is an error answer of the server or of a sandbox's execd.
type Error struct {
	// StatusCode is the HTTP status.
	StatusCode int
	// Code is the contract's machine-readable code; empty when the answer had
	// none.
	Code string
	// Message is a sentence for a person, as it was sent. Use Error() to print
	// it: a sandbox may have written it.
	Message string
	// RequestID finds the request in the server's log.
	RequestID string
	// RetryAfter is what the server asked to wait; zero when it did not say.
	RetryAfter time.Duration
}

// Error returns the message with control characters escaped.
func (e *Error) Error() string {
	msg := Printable(e.Message)
	if msg == "" {
		msg = fmt.Sprintf("the server answered %d %s", e.StatusCode, http.StatusText(e.StatusCode))
	}
	switch {
	case e.Code != "" && e.RequestID != "" && e.StatusCode >= 500:
		return fmt.Sprintf("%s (%s, request %s)", msg, Printable(e.Code), Printable(e.RequestID))
	case e.Code != "":
		return fmt.Sprintf("%s (%s)", msg, Printable(e.Code))
	}
	return msg
}

// IsNotFound reports whether err says that what was named does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether err says that the present state forbids it.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsInvalid reports whether err says that the request was wrong.
func IsInvalid(err error) bool {
	return hasStatus(err, http.StatusBadRequest) || hasStatus(err, http.StatusUnprocessableEntity)
}

// IsUnauthorized reports whether err says that the API key is missing or wrong.
func IsUnauthorized(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

// IsBusy reports whether err says to come back later.
func IsBusy(err error) bool {
	return hasStatus(err, http.StatusTooManyRequests) || hasStatus(err, http.StatusServiceUnavailable)
}

// IsNotSupported reports whether err says that the server does not have this
// operation at all, as a server other than paddock may not.
func IsNotSupported(err error) bool {
	return hasStatus(err, http.StatusNotImplemented) || hasStatus(err, http.StatusMethodNotAllowed)
}

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.StatusCode == status
}

// FailedError is returned when a sandbox that was waited for has failed.
type FailedError struct {
	Sandbox *Sandbox
}

// Error says why, in the server's words.
func (e *FailedError) Error() string {
	s := e.Sandbox.Status
	return fmt.Sprintf("sandbox %s failed: %s (%s)", e.Sandbox.ID, Printable(s.Message), Printable(s.Reason))
}

// CommandError is returned when a command could not be run at all, unlike one
// that ran and ended with a code.
type CommandError struct {
	// Name is the kind that execd gave, such as "CommandExecError".
	Name string
	// Value is the reason in words.
	Value string
	// Traceback is more detail, if any.
	Traceback []string
}

// Error returns the reason with control characters escaped.
func (e *CommandError) Error() string { return "the command could not be run: " + Printable(e.Value) }

// Printable escapes what could drive a terminal (control characters, and the
// marks that reorder text), so that words from a sandbox can be shown.
func Printable(s string) string {
	if !strings.ContainsFunc(s, unsafeToPrint) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unsafeToPrint(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func unsafeToPrint(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
}

// errorFrom reads an error answer and closes its body.
func errorFrom(resp *http.Response) *Error {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &Error{
		StatusCode: resp.StatusCode,
		RequestID:  resp.Header.Get(headerRequestID),
		RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	e.Code, e.Message = parseErrorBody(body)
	if e.Message == "" && resp.StatusCode >= 300 && resp.StatusCode < 400 {
		e.Message = fmt.Sprintf("the server answered with a redirect (%d): check the server address", resp.StatusCode)
	}
	return e
}

// parseErrorBody understands {code, message}, the same under "detail", and
// quotes the beginning of anything else.
func parseErrorBody(body []byte) (code, message string) {
	type shape struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	var top struct {
		shape
		Error  json.RawMessage `json:"error"`
		Detail json.RawMessage `json:"detail"`
	}
	if json.Unmarshal(body, &top) == nil {
		if top.Message != "" || top.Code != "" {
			return top.Code, top.Message
		}
		for _, raw := range []json.RawMessage{top.Detail, top.Error} {
			var inner shape
			if json.Unmarshal(raw, &inner) == nil && (inner.Message != "" || inner.Code != "") {
				return inner.Code, inner.Message
			}
			var text string
			if json.Unmarshal(raw, &text) == nil && text != "" {
				return "", text
			}
		}
	}
	text := strings.TrimSpace(strings.ToValidUTF8(string(body), "\uFFFD"))
	if len(text) > 512 {
		text = strings.ToValidUTF8(text[:512], "") + "…"
	}
	return "", text
}

func parseRetryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if secs, err := strconv.Atoi(v); err == nil {
		return max(0, min(time.Duration(secs), 24*3600)) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
