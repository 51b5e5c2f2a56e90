// Package answer is how execd's routes read JSON requests and write JSON
// answers and errors: one shape, {"code","message"}, with the codes of
// behaviour.md 10.1.
package answer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Codes of errors.
const (
	InvalidBody         = "INVALID_REQUEST_BODY"
	MissingQuery        = "MISSING_QUERY"
	RuntimeError        = "RUNTIME_ERROR"
	InvalidFile         = "INVALID_FILE"
	InvalidFileContent  = "INVALID_FILE_CONTENT"
	InvalidFileMetadata = "INVALID_FILE_METADATA"
	FileNotFound        = "FILE_NOT_FOUND"
	ContextNotFound     = "CONTEXT_NOT_FOUND"
	NotSupported        = "NOT_SUPPORTED"
	Unknown             = "UNKNOWN"
	NotFound            = "NOT_FOUND"
	Unauthorized        = "UNAUTHORIZED"
	TooLarge            = "REQUEST_TOO_LARGE"
	TooMany             = "TOO_MANY_REQUESTS"
	NotClaimed          = "NOT_CLAIMED"
)

// MaxBody bounds a JSON request, in bytes.
const MaxBody = 10 << 20

// JSON writes v with the status.
func JSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		Error(w, http.StatusInternalServerError, RuntimeError, "The answer can't be written as JSON: %v", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// Error writes an error answer.
func Error(w http.ResponseWriter, status int, code, format string, args ...any) {
	JSON(w, status, map[string]string{"code": code, "message": fmt.Sprintf(format, args...)})
}

// Decode reads the one JSON value of a request into v. Unknown members and
// what follows the value are ignored (behaviour.md 10.1). When it returns false
// the error has been answered.
func Decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody)).Decode(v)
	if err == nil {
		return true
	}
	var large *http.MaxBytesError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &large):
		Error(w, http.StatusRequestEntityTooLarge, TooLarge, "The request body is larger than %d bytes.", large.Limit)
	case errors.Is(err, io.EOF):
		Error(w, http.StatusBadRequest, InvalidBody, "The request has no body; a JSON value is needed.")
	case errors.As(err, &kind):
		Error(w, http.StatusBadRequest, InvalidBody, "%s is a JSON %s; %s is needed.", fieldName(kind.Field), kind.Value, kind.Type)
	default:
		Error(w, http.StatusBadRequest, InvalidBody, "The request body is not valid JSON: %v", err)
	}
	return false
}

func fieldName(field string) string {
	if field == "" {
		return "The request body"
	}
	return strings.TrimPrefix(field, ".")
}
