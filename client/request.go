package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	retryBase     = 100 * time.Millisecond
	retryMax      = 5 * time.Second
	maxRetryAfter = 30 * time.Second
	// codePullFailed ends the code of failures between server and registry.
	codePullFailed = "::SANDBOX_IMAGE_PULL_FAILED"
	// maxJSONAnswer bounds an answer that is held in memory. The largest is a
	// directory listing, written by the sandbox.
	maxJSONAnswer = 64 << 20
)

// request is one HTTP request. Exactly one of body and stream may be set.
type request struct {
	method string
	// path is escaped and follows base, or root when fromRoot.
	path     string
	fromRoot bool
	query    url.Values
	header   http.Header
	// body is replayed on a retry.
	body []byte
	// stream is sent once; size is its length, -1 when unknown.
	stream      io.Reader
	size        int64
	contentType string
	// repeatable requests are retried.
	repeatable bool
}

// newRequest builds the *http.Request of one attempt.
func (c *Client) newRequest(ctx context.Context, r *request) (*http.Request, error) {
	target := c.base
	if r.fromRoot {
		target = c.root
	}
	target += r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body io.Reader
	switch {
	case r.stream != nil:
		body = r.stream
	case r.body != nil:
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, err
	}
	if r.stream != nil {
		req.ContentLength = r.size
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	req.Header.Set("User-Agent", c.userAgent)
	if c.apiKey != "" {
		req.Header[headerAPIKey] = []string{c.apiKey}
	}
	return req, nil
}

// send makes the request, with retries when it is repeatable, and returns the
// answer when its status is a success. The body is then the caller's to close.
// It also reports how many attempts were made.
func (c *Client) send(ctx context.Context, r *request) (resp *http.Response, attempts int, err error) {
	for {
		attempts++
		resp, err = c.attempt(ctx, r)
		if err == nil {
			return resp, attempts, nil
		}
		wait, again := c.retryDelay(ctx, r, attempts, err)
		if !again {
			return nil, attempts, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, attempts, err
		case <-timer.C:
		}
	}
}

func (c *Client) attempt(ctx context.Context, r *request) (*http.Response, error) {
	req, err := c.newRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode >= 300 {
		return nil, errorFrom(resp)
	}
	return resp, nil
}

// retryDelay decides whether a failed attempt is repeated and how long to wait
// first: the server's Retry-After, else a doubling delay with jitter, so that
// many clients do not come back in step.
func (c *Client) retryDelay(ctx context.Context, r *request, attempts int, err error) (time.Duration, bool) {
	if !r.repeatable || attempts > c.maxRetries || ctx.Err() != nil {
		return 0, false
	}
	wait := min(retryBase<<(attempts-1), retryMax)
	wait = wait/2 + jitter(wait/2)
	var e *Error
	if errors.As(err, &e) {
		switch e.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
		default:
			return 0, false
		}
		// A registry that does not answer has been tried already, by the server.
		if e.RetryAfter > maxRetryAfter || strings.HasSuffix(e.Code, codePullFailed) {
			return 0, false
		}
		wait = max(wait, e.RetryAfter)
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
		return 0, false
	}
	return wait, true
}

func jitter(upTo time.Duration) time.Duration {
	var b [2]byte
	_, _ = rand.Read(b[:])
	return time.Duration(int64(upTo) * (int64(b[0])<<8 | int64(b[1])) >> 16)
}

// explain turns a transport failure into words. The URL is left out: a path
// may hold what the user thinks private.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("nothing listens at %s: start it with `paddock serve`, or name the right server with --server or PADDOCK_SERVER: %w", c.root, err)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return fmt.Errorf("the host of %s cannot be resolved: check --server or PADDOCK_SERVER: %w", c.root, err)
	}
	return fmt.Errorf("talking to %s: %w", c.root, err)
}

// bound applies the request time-out to a call that does not stream.
func (c *Client) bound(ctx context.Context, extra time.Duration) (context.Context, context.CancelFunc) {
	if c.timeout < 0 {
		return context.WithCancel(ctx)
	}
	limit := c.timeout + extra
	return context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("%s did not answer within %s: %w", c.root, limit, context.DeadlineExceeded))
}

// call makes a bounded request with an optional JSON body and decodes the JSON
// answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, r *request, in, out any) error {
	_, err := c.callExtra(ctx, r, in, out, 0)
	return err
}

func (c *Client) callExtra(ctx context.Context, r *request, in, out any, extra time.Duration) (attempts int, err error) {
	ctx, cancel := c.bound(ctx, extra)
	defer cancel()
	if in != nil {
		if r.body, err = json.Marshal(in); err != nil {
			return 0, fmt.Errorf("encoding the request: %w", err)
		}
		r.contentType = "application/json"
	}
	if r.method == http.MethodGet || r.method == http.MethodDelete {
		r.repeatable = true
	}
	resp, attempts, err := c.send(ctx, r)
	if err != nil {
		return attempts, err
	}
	defer resp.Body.Close()
	if out == nil {
		// Drained so that the connection can be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, 256<<10)
		return attempts, nil
	}
	if err := decode(resp, out); err != nil {
		if ctx.Err() != nil {
			return attempts, context.Cause(ctx)
		}
		return attempts, err
	}
	return attempts, nil
}

// remove makes a DELETE. When a repeated one finds nothing, an earlier attempt did
// it and only its answer was lost.
func (c *Client) remove(ctx context.Context, path string, query url.Values) error {
	attempts, err := c.callExtra(ctx, &request{method: http.MethodDelete, path: path, query: query}, nil, nil, 0)
	if attempts > 1 && IsNotFound(err) {
		return nil
	}
	return err
}

// interrupt makes a DELETE at an execd route that ends what is under way, and does
// not repeat it: a second one may be an error, or end what came after.
func (c *Client) interrupt(ctx context.Context, id, route, what string) error {
	p, err := execdPath(id, route)
	if err != nil {
		return err
	}
	ctx, cancel := c.bound(ctx, 0)
	defer cancel()
	resp, err := c.attempt(ctx, &request{method: http.MethodDelete, path: p, query: url.Values{"id": {what}}})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// decode reads one bounded JSON answer.
func decode(resp *http.Response, out any) error {
	limited := &io.LimitedReader{R: resp.Body, N: maxJSONAnswer + 1}
	err := json.NewDecoder(limited).Decode(out)
	switch {
	case limited.N <= 0:
		return fmt.Errorf("the answer is larger than %d MiB and was dropped", maxJSONAnswer>>20)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the answer (status %d) is empty where JSON is due", resp.StatusCode)
	case err != nil:
		return fmt.Errorf("the answer (status %d) is not the JSON that is due: %w", resp.StatusCode, err)
	}
	_, _ = io.CopyN(io.Discard, limited, 4<<10)
	return nil
}

// sandboxPath is the escaped path of one sandbox.
func sandboxPath(id string) (string, error) {
	if id == "" {
		return "", errors.New("the sandbox id is empty")
	}
	// A dot segment would be resolved away and name another resource.
	if id == "." || id == ".." {
		return "", fmt.Errorf("%q is not a sandbox id", id)
	}
	return "/sandboxes/" + url.PathEscape(id), nil
}

// execdPath is the escaped path of an execd route, through the server's proxy.
// Asking the endpoints route for it first would cost a round trip and give the
// same place.
func execdPath(id, route string) (string, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return "", err
	}
	return p + "/proxy/" + strconv.Itoa(execdPort) + route, nil
}

// filesPath is the escaped path of a route about files.
func (c *Client) filesPath(id, route string) (string, error) { return execdPath(id, c.scope+route) }
