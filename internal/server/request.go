package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Headers of the contract, in the form in which net/http keeps them.
const (
	headerRequestID    = "X-Request-Id"
	headerAPIKey       = "Open-Sandbox-Api-Key"
	headerSecureAccess = "Opensandbox-Secure-Access"
	headerAccessRenew  = "Opensandbox-Access-Renew"
)

// maxRequestID bounds an id that a client chose.
const maxRequestID = 128

// requestID returns the client's id for the request if it can be shown and
// logged as it is, else a new one.
func requestID(r *http.Request) string {
	if v := r.Header[headerRequestID]; len(v) > 0 {
		if id := strings.TrimSpace(v[0]); id != "" && len(id) <= maxRequestID && visibleASCII(id) {
			return id
		}
	}
	var b [16]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	return hex.EncodeToString(b[:])
}

func visibleASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// recorder remembers the status of an answer. 0 means that none was begun.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Deadlines towards clients. They are set anew for each answer, because the
// connection may have served another request before.
const (
	// writeTimeout bounds sending an answer that is complete.
	writeTimeout = 30 * time.Second
	// readTimeout bounds receiving a JSON body.
	readTimeout = 30 * time.Second
	// drainTimeout bounds receiving what is left of a body after the answer.
	drainTimeout = 3 * time.Second
	// transferIdle is how long a client may stop in the middle of an archive.
	transferIdle = time.Minute
)

var answerBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooledBuffer keeps rare large answers from staying in memory.
const maxPooledBuffer = 256 << 10

// writeJSON writes a complete answer.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b := answerBuffers.Get().(*bytes.Buffer)
	b.Reset()
	defer func() {
		if b.Cap() <= maxPooledBuffer {
			answerBuffers.Put(b)
		}
	}()
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // our own types always encode
	}
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	writeBytes(w, status, b.Bytes())
}

const textPlain = "text/plain; charset=utf-8"

// plain sets the headers of an answer in plain text, which may hold what a
// sandbox has printed: that is not a page.
func plain(h http.Header) {
	h.Set("Content-Type", textPlain)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}

// writeText writes a complete answer in plain text.
func writeText(w http.ResponseWriter, status int, text string) {
	plain(w.Header())
	writeBytes(w, status, []byte(text))
}

func writeBytes(w http.ResponseWriter, status int, body []byte) {
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	// A failed write means that the client is gone.
	answering(w)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// answering bounds the writing of an answer, and the reading of what is left of
// the request's body: net/http drains some of it after the answer, and would wait
// for ever for one that never comes.
func answering(w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	now := time.Now()
	_ = rc.SetWriteDeadline(now.Add(writeTimeout))
	_ = rc.SetReadDeadline(now.Add(drainTimeout))
}

// streaming clears the deadline that an earlier request may have left.
func streaming(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
}

// query parses the query strictly: net/http drops what it can't read, and a
// filter that silently does not filter is worse than an error.
func (r *request) query() (url.Values, error) {
	if r.URL.RawQuery == "" {
		return nil, nil
	}
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid(sandbox.CodeInvalidParameter, "The query string %s is malformed. Percent-encode its values.", quote(r.URL.RawQuery))
	}
	return v, nil
}

// queryInt reads a whole number between low and high from the query.
func queryInt(q url.Values, name string, low, high, otherwise int) (int, error) {
	text := q.Get(name)
	if !q.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, invalid(sandbox.CodeInvalidParameter, "%s is %s; it must be a whole number from %d to %d.", name, quote(text), low, high)
	}
	return n, nil
}

// queryBool reads a truth value as the reference server does.
func queryBool(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	switch text := q.Get(name); strings.ToLower(text) {
	case "1", "true", "t", "yes", "y", "on":
		return true, nil
	case "0", "false", "f", "no", "n", "off":
		return false, nil
	default:
		return false, invalid(sandbox.CodeInvalidParameter, "%s is %s; it must be true or false.", name, quote(text))
	}
}

// accessLog writes one line per request: failures of the server and slow
// requests as warnings, everything else for debugging only. Paths and queries
// stay out of it, they may carry secrets.
func (s *Server) accessLog(r *request, pattern string, status int, took time.Duration) {
	level := slog.LevelDebug
	failed := status >= 500 && status != http.StatusNotImplemented && !r.theirs
	if failed || took >= slowRequest && pattern != proxyPattern && !r.ingress && !r.mayTakeLong() {
		level = slog.LevelWarn
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	attrs := []any{"request", r.id, "method", r.Method, "route", pattern, "status", status, "took", took}
	if len(r.args) > 0 && (r.ingress || strings.HasPrefix(pattern, "/sandboxes/")) {
		attrs = append(attrs, "sandbox", shorten(r.args[0]))
	}
	s.log.Log(context.Background(), level, "request", attrs...)
}

// mayTakeLong is whether a long request is nothing unusual.
func (r *request) mayTakeLong() bool {
	if r.route == nil {
		return false
	}
	switch r.route.pattern {
	case "/sandboxes":
		return r.Header.Get("Prefer") != ""
	case "/sandboxes/{id}/logs", "/sandboxes/{id}/events", "/images", "/images/import", "/images/export", "/images/prune":
		return true
	}
	return false
}
