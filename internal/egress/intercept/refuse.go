package intercept

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
)

// via marks answers that are the proxy's own.
const via = "1.1 paddock"

// body is the explanation of a refusal, in the form of those of the proxy.
func (s *session) body(r *refusal) []byte {
	b, err := json.Marshal(map[string]any{
		"code": r.code, "message": sentence(r.message), "sandbox": s.c.Sandbox,
		"destination": s.c.Original.String(), "host": s.name, "rule": r.rule,
	})
	if err != nil {
		return nil // strings and numbers always encode
	}
	return append(b, '\n')
}

// sentence makes one of the reason.
func sentence(s string) string {
	if s == "" {
		return s
	}
	if c := s[0]; c >= 'a' && c <= 'z' {
		s = string(c-'a'+'A') + s[1:]
	}
	return s + "."
}

// answer1 is the whole answer over HTTP/1, after which the connection ends.
func (s *session) answer1(r *refusal, method string) []byte {
	body := s.body(r)
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nVia: %s\r\nConnection: close\r\n\r\n",
		r.status, http.StatusText(r.status), len(body), via)
	if method == http.MethodHead {
		return []byte(head)
	}
	return append([]byte(head), body...)
}

// answer2 is the answer over HTTP/2, on its stream only.
func (s *session) answer2(w http.ResponseWriter, r *refusal) {
	body := s.body(r)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Via", via)
	w.WriteHeader(r.status)
	_, _ = w.Write(body)
}

// discard takes what the HTTP/2 server would print about its clients.
var discard = log.New(io.Discard, "", 0)
