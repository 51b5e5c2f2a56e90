package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// requestTimeout bounds each request of Do.
const requestTimeout = 60 * time.Second

// Response is an answer of the server.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON decodes the body.
func (r *Response) JSON(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal(r.Body, into); err != nil {
		t.Fatalf("the body is not the JSON that was expected: %v\n%s", err, r.Body)
	}
}

// Error is the error that the body holds.
func (r *Response) Error(t testing.TB) (code, message string) {
	t.Helper()
	var e struct{ Code, Message string }
	r.JSON(t, &e)
	if e.Code == "" || e.Message == "" {
		t.Fatalf("status %d without code and message: %s", r.Status, r.Body)
	}
	return e.Code, e.Message
}

// Do sends a request with the API key. Headers are given in pairs and win; an
// empty value removes the header. The body is JSON unless it is a string.
func (s *Server) Do(t testing.TB, method, path string, body any, headers ...string) *Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if s.Key != "" {
		req.Header.Set("OPEN-SANDBOX-API-KEY", s.Key)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	hc := *noRedirects
	if s.http != nil {
		hc.Transport = s.http
	}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	return &Response{Status: resp.StatusCode, Header: resp.Header, Body: data}
}

var noRedirects = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func isNotFound(err error) bool { return client.IsNotFound(err) }

func (s *Server) listAll(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		var ids []string
		for sb, err := range s.Client.All(ctx, client.ListOptions{}) {
			if err != nil {
				yield("", err)
				return
			}
			ids = append(ids, sb.ID)
		}
		for _, id := range ids {
			if !yield(id, nil) {
				return
			}
		}
	}
}
