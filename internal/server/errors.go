package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Codes that concern HTTP itself and which the contract leaves open.
const (
	codeMissingKey     = "MISSING_API_KEY"
	codeInvalidKey     = "INVALID_API_KEY"
	codeSecureAccess   = "MISSING_OR_INVALID_SECURE_ACCESS"
	codeNoRoute        = "GENERAL::ROUTE_NOT_FOUND"
	codeMethod         = "GENERAL::METHOD_NOT_ALLOWED"
	codeTooLarge       = "GENERAL::BODY_TOO_LARGE"
	codeMediaType      = "GENERAL::UNSUPPORTED_MEDIA_TYPE"
	codeOrigin         = "GENERAL::ORIGIN_NOT_ALLOWED"
	codeOverloaded     = "GENERAL::OVERLOADED"
	codeDraining       = "GENERAL::SHUTTING_DOWN"
	codeBodyTimeout    = "GENERAL::BODY_TIMEOUT"
	codeMetadataFormat = "INVALID_METADATA_FORMAT"
	codeScope          = "DIAGNOSTICS_SCOPE_UNSUPPORTED"
)

// statusClientGone is counted for requests whose client went away before the
// answer; nginx calls it 499.
const statusClientGone = 499

// httpError is an error that only exists on this surface.
type httpError struct {
	status     int
	code       string
	message    string
	retryAfter time.Duration
	// allow is the Allow header of a 405, location the target of a 307.
	allow, location string
}

func (e *httpError) Error() string { return e.message }

func invalid(code, format string, args ...any) *sandbox.Error {
	return sandbox.Errorf(sandbox.KindInvalid, code, format, args...)
}

func errMethod(r *route, method string) error {
	return &httpError{status: http.StatusMethodNotAllowed, code: codeMethod, allow: r.allow,
		message: fmt.Sprintf("Method %s is not allowed for %s. Allowed: %s.", quote(method), r.pattern, r.allow)}
}

func errOverloaded() error {
	return &httpError{status: http.StatusServiceUnavailable, code: codeOverloaded, retryAfter: time.Second,
		message: "The server has as many requests in flight as it takes. Try again in a second."}
}

// noRoute is the answer to a path that does not exist, or exists without the
// slash at its end.
func (s *Server) noRoute(r *request, path string) error {
	if trimmed := path[:max(len(path)-1, 0)]; path != "/" && path == trimmed+"/" {
		if route, _, _ := s.routes.find(trimmed); route != nil {
			location := trimmed
			if r.URL.RawQuery != "" {
				location += "?" + r.URL.RawQuery
			}
			return &httpError{status: http.StatusTemporaryRedirect, code: codeNoRoute, location: location,
				message: "This path has no slash at its end."}
		}
	}
	return &httpError{status: http.StatusNotFound, code: codeNoRoute,
		message: fmt.Sprintf("There is nothing at %s. GET /openapi.json lists every route.", quote(path))}
}

// answer is an error as it goes to the client.
type answer struct {
	status          int
	code, message   string
	retryAfter      time.Duration
	allow, location string
	cause           error // for the log; nil when the message says it all
	// theirs is set when a program in a sandbox is at fault. It could fill the
	// log otherwise.
	theirs bool
}

var kindStatus = map[sandbox.Kind]int{
	sandbox.KindInvalid:        http.StatusBadRequest,
	sandbox.KindNotFound:       http.StatusNotFound,
	sandbox.KindConflict:       http.StatusConflict,
	sandbox.KindBusy:           http.StatusTooManyRequests,
	sandbox.KindUnavailable:    http.StatusServiceUnavailable,
	sandbox.KindNotImplemented: http.StatusNotImplemented,
	sandbox.KindInternal:       http.StatusInternalServerError,
}

// toAnswer is the one place that decides which status and which words an error
// becomes.
func toAnswer(err error, requestID string) answer {
	var onHTTP *httpError
	var hop *gateway.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &onHTTP):
		return answer{status: onHTTP.status, code: onHTTP.code, message: onHTTP.message,
			retryAfter: onHTTP.retryAfter, allow: onHTTP.allow, location: onHTTP.location}
	case errors.As(err, &hop):
		return answer{status: hop.Status, code: hop.Code, message: hop.Message, retryAfter: hop.RetryAfter, cause: hop.Err, theirs: true}
	case errors.As(err, &tooLarge):
		return answer{status: http.StatusRequestEntityTooLarge, code: codeTooLarge,
			message: fmt.Sprintf("The body is larger than %d bytes, which is the limit.", tooLarge.Limit)}
	}
	e := sandbox.AsError(err)
	a := answer{status: kindStatus[e.Kind], code: e.Code, message: e.Message, retryAfter: e.RetryAfter, cause: e.Err}
	if a.code == "" {
		a.code = "GENERAL::UNKNOWN_ERROR"
	}
	switch a.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		a.retryAfter = max(a.retryAfter, time.Second)
	case 0, http.StatusInternalServerError:
		a.status = http.StatusInternalServerError
		if a.cause == nil {
			a.cause = err
		}
		if e.Code == sandbox.CodeInternal || e.Message == "" {
			a.message = "Something went wrong inside the server."
		}
		a.message += fmt.Sprintf(" (Request %s; the server's log has the details under this id.)", requestID)
	}
	return a
}

// fail answers a request with an error, or breaks its connection off when part
// of another answer is out already.
func (s *Server) fail(r *request, rec *recorder, err error) {
	if rec.status != 0 || errors.Is(err, gateway.ErrClientGone) ||
		r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		if rec.status == 0 {
			rec.status = statusClientGone
		}
		s.log.Debug("request broken off", "request", r.id, "error", err)
		panic(http.ErrAbortHandler)
	}
	a := toAnswer(err, r.id)
	r.theirs = a.theirs
	if a.status >= 500 && a.cause != nil {
		level := slog.LevelWarn
		if a.theirs {
			level = slog.LevelDebug
		}
		s.log.Log(context.Background(), level, "request failed", "request", r.id, "method", r.Method, "status", a.status, "code", a.code, "error", a.cause)
	}
	h := rec.Header()
	if a.retryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((a.retryAfter+time.Second-1)/time.Second), 10))
	}
	if a.allow != "" {
		h.Set("Allow", a.allow)
	}
	if a.location != "" {
		h.Set("Location", a.location)
	}
	if r.ingress {
		r.theirs = r.theirs || a.status == http.StatusConflict
		writeIngressError(rec, a)
		return
	}
	writeJSON(rec, a.status, api.Error{Code: a.code, Message: a.message})
}

// panicked answers a request whose handler has a bug.
func (s *Server) panicked(r *request, rec *recorder, p any) {
	s.log.Error("panic in a handler", "request", r.id, "method", r.Method, "panic", p, "stack", stack())
	if rec.status != 0 {
		panic(http.ErrAbortHandler)
	}
	a := toAnswer(errors.New("panic"), r.id)
	writeJSON(rec, a.status, api.Error{Code: a.code, Message: a.message})
}

func stack() string { return string(debug.Stack()) }
