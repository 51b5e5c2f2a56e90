package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// maxInlineLog bounds a log that is answered in one piece.
	maxInlineLog = 1 << 20
	// maxStreamTail only keeps the number in range: a stream is not held in
	// memory.
	maxStreamTail = 1_000_000_000
)

// streamLogs copies what the entrypoint printed, as it is printed.
func (s *Server) streamLogs(r *request) error {
	q, err := r.query()
	if err != nil {
		return err
	}
	opts := sandbox.LogOptions{}
	if t := q.Get("tail"); t != "" && t != "all" {
		if opts.Tail, err = queryInt(q, "tail", 0, maxStreamTail, 0); err != nil {
			return err
		}
	}
	if opts.Since, err = querySince(q); err != nil {
		return err
	}
	if opts.Timestamps, err = queryBool(q, "timestamps"); err != nil {
		return err
	}
	if opts.Follow, err = queryBool(q, "follow"); err != nil {
		return err
	}
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	log, err := s.manager.Logs(r.Context(), id, opts)
	if err != nil {
		return err
	}
	defer log.Close()
	streaming(r.w)
	plain(r.w.Header())
	r.w.WriteHeader(http.StatusOK)
	return copyFlushing(r.w, log, opts.Follow)
}

// copyFlushing copies a stream, each piece as soon as it is there.
func copyFlushing(w http.ResponseWriter, from io.Reader, flush bool) error {
	rc := http.NewResponseController(w)
	if flush {
		if err := rc.Flush(); err != nil {
			return err
		}
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if flush {
				if err := rc.Flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// querySince reads a span back from now, such as "10m", or an instant.
func querySince(q url.Values) (time.Time, error) {
	text := q.Get("since")
	if text == "" {
		return time.Time{}, nil
	}
	if span, ok := parseSpan(text); ok {
		return time.Now().Add(-span), nil
	}
	if at, ok := parseInstant(text); ok {
		return at, nil
	}
	return time.Time{}, invalid(sandbox.CodeInvalidParameter, `since is %s; it must be a span such as "90s", "10m", "2h" or "1d", or an RFC 3339 time.`, quote(text))
}

// parseSpan reads <number><unit> with the units s, m, h and d, at most ten
// years.
func parseSpan(text string) (time.Duration, bool) {
	if text == "" {
		return 0, false
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}
	unit, ok := units[text[len(text)-1]]
	n, err := strconv.ParseInt(text[:len(text)-1], 10, 32)
	if !ok || err != nil || n < 0 || time.Duration(n) > 10*365*24*time.Hour/unit {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// lastLines returns the end of a log that fits into one answer, beginning with a
// whole line, as valid UTF-8.
func (s *Server) lastLines(r *request, id string, opts sandbox.LogOptions) (text string, truncated bool, err error) {
	log, err := s.manager.Logs(r.Context(), id, opts)
	if err != nil {
		return "", false, err
	}
	defer log.Close()
	var kept []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := log.Read(buf)
		kept = append(kept, buf[:n]...)
		if len(kept) > 2*maxInlineLog {
			kept = append(kept[:0], kept[len(kept)-maxInlineLog:]...)
			truncated = true
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", false, err
		}
	}
	if len(kept) > maxInlineLog {
		kept = kept[len(kept)-maxInlineLog:]
		truncated = true
	}
	if truncated {
		if i := bytes.IndexByte(kept, '\n'); i >= 0 {
			kept = kept[i+1:]
		}
	}
	return strings.ToValidUTF8(string(kept), "\uFFFD"), truncated, nil
}
