package vault

import (
	"errors"
	"fmt"
	"net/http"
)

// ErrSealed is wrapped by the errors of a vault that can't be read: its key is
// lost or another one, or its file is damaged.
var ErrSealed = errors.New("the credential vault can't be opened")

// Error is an error for the caller of the API. Its text holds no secret.
type Error struct {
	// Status is the HTTP status.
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

func invalid(format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) *Error {
	return &Error{Status: http.StatusConflict, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *Error {
	return &Error{Status: http.StatusNotFound, Message: fmt.Sprintf(format, args...)}
}

var errNoVault = notFound("this sandbox has no credential vault; make one with POST /credential-vault")
