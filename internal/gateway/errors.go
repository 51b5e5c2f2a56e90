package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Codes of the wire contract for what is between the server and a program in a
// sandbox (OpenSandbox API).
const (
	CodeConnectionFailed = "BACKEND_CONNECTION_FAILED"
	CodeTimeout          = "BACKEND_TIMEOUT"
	CodeResponseFailed   = "BACKEND_RESPONSE_FAILED"
)

// codeNoRoute is what the server calls a route that isn't there.
const codeNoRoute = "GENERAL::ROUTE_NOT_FOUND"

// Error says which hop of a proxied request failed and why. It is meant for the
// caller.
type Error struct {
	// Status is the HTTP status of the answer.
	Status int
	Code   string
	// Message is a sentence for people.
	Message string
	// RetryAfter is set when trying again soon may help.
	RetryAfter time.Duration
	// Err is the cause, for the log.
	Err error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrClientGone is returned when the client went away before its answer began.
// There is nobody left to answer.
var ErrClientGone = errors.New("the client went away")

// dialError marks an error of the dialer, to tell it from one of the exchange
// that follows. The transport hands it through unchanged.
type dialError struct{ err error }

func (e *dialError) Error() string { return "dialing: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dialFailure turns what the dialer said into an error for the caller.
func dialFailure(t *Target, err error) error {
	var typed *sandbox.Error
	var netErr net.Error
	switch {
	case errors.As(err, &typed):
		return typed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return &Error{Status: http.StatusGatewayTimeout, Code: CodeTimeout, Err: err,
			Message: fmt.Sprintf("Port %d of sandbox %q did not accept a connection in time.", t.Port, t.ID)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &Error{Status: http.StatusBadGateway, Code: CodeConnectionFailed, Err: err,
			Message: fmt.Sprintf("Nothing listens on port %d of sandbox %q. Start the program that serves it, or ask for another port.", t.Port, t.ID)}
	}
	return &Error{Status: http.StatusBadGateway, Code: CodeConnectionFailed, Err: err,
		Message: fmt.Sprintf("Port %d of sandbox %q could not be reached.", t.Port, t.ID)}
}

// exchangeFailure turns an error of the transport, from before the answer's
// header was complete, into one for the caller.
func exchangeFailure(t *Target, r *http.Request, body *requestBody, err error) error {
	var dial *dialError
	var netErr net.Error
	switch {
	case r.Context().Err() != nil:
		return ErrClientGone
	case errors.As(err, &dial):
		return dialFailure(t, dial.err)
	case body.failed() != nil:
		return &Error{Status: http.StatusBadRequest, Code: sandbox.CodeInvalidParameter, Err: body.failed(),
			Message: "The body of the request could not be read to its end."}
	case errors.As(err, &netErr) && netErr.Timeout():
		return &Error{Status: http.StatusGatewayTimeout, Code: CodeTimeout, Err: err,
			Message: fmt.Sprintf("The program on port %d of sandbox %q took the request but did not answer in time.", t.Port, t.ID)}
	}
	return responseFailure(t, "broke the connection off before it had answered, or its answer is not HTTP", err)
}

func responseFailure(t *Target, what string, err error) *Error {
	return &Error{Status: http.StatusBadGateway, Code: CodeResponseFailed, Err: err,
		Message: fmt.Sprintf("The program on port %d of sandbox %q %s.", t.Port, t.ID, what)}
}

func errNoRoute(t *Target) *Error {
	return &Error{Status: http.StatusNotFound, Code: codeNoRoute,
		Message: fmt.Sprintf("Port %d of sandbox %q has no such route.", t.Port, t.ID)}
}

func errTooManyHeld() *Error {
	return &Error{Status: http.StatusServiceUnavailable, Code: sandbox.CodeCapacity, RetryAfter: time.Second,
		Message: "Too many requests wait for sandboxes to start. Try again in a second."}
}

func errHeldTooLong(t *Target, limit time.Duration) *Error {
	return &Error{Status: http.StatusGatewayTimeout, Code: CodeTimeout,
		Message: fmt.Sprintf("Sandbox %q did not get ready within %s. Its status says how far it is.", t.ID, limit)}
}
