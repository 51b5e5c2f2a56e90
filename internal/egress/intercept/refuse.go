package intercept

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/paddock-sandbox/paddock/internal/egress/h2"
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

// refusal2 is the answer over HTTP/2, on its stream only.
func (s *session) refusal2(r *refusal) *h2.Refusal {
	return &h2.Refusal{Status: r.status, Body: s.body(r), Fields: []h2.Field{
		{Name: "content-type", Value: "application/json"}, {Name: "via", Value: via},
	}}
}
