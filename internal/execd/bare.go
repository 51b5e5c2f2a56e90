package execd

import (
	"bytes"
	"net/http"
	"strings"
)

// bareClient is the first release of the SDK for the JVM. It takes every line
// of a stream for an event, as the first execd sent them, without the "data:"
// of server-sent events, and drops what it can't read.
const bareClient = "OpenSandbox-Kotlin-SDK/1.0.0"

// forClient returns the writer for a client's answer.
func forClient(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if agent, _, _ := strings.Cut(r.UserAgent(), " "); agent == bareClient {
		return &bareWriter{w}
	}
	return w
}

// bareWriter takes the field names away from an event stream. Every write of a
// stream is of whole events, each one line and a blank one.
type bareWriter struct{ http.ResponseWriter }

var (
	fieldName = []byte("data: ")
	nextEvent = []byte("\n\n")
)

func (w *bareWriter) Write(p []byte) (int, error) {
	if w.Header().Get("Content-Type") != "text/event-stream" {
		return w.ResponseWriter.Write(p)
	}
	bare := bytes.TrimPrefix(p, fieldName)
	bare = bytes.ReplaceAll(bare, append(nextEvent[:2:2], fieldName...), nextEvent)
	if _, err := w.ResponseWriter.Write(bare); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Unwrap is for http.ResponseController.
func (w *bareWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
