package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

// maxExecdAnswer bounds what is read of an answer of execd, in bytes. execd is
// next to hostile code and may not be what it was.
const maxExecdAnswer = 64 << 10

// execdConn is one connection to execd's Unix listener. It serves one request
// at a time; it exists because a shell needs exactly three requests (ping,
// claim, end of the entrypoint) and an http.Client would cost two goroutines
// and twice the memory for each sandbox.
type execdConn struct {
	mu   sync.Mutex
	conn net.Conn
	r    *bufio.Reader
	// key is what a claim must carry; empty for nothing.
	key string
}

func dialExecd(ctx context.Context, socket string) (*execdConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to execd: %w", err)
	}
	return &execdConn{conn: c}, nil
}

// connect returns a connection to the sandbox's execd.
func (e *Engine) connect(ctx context.Context, s *shell) (*execdConn, error) {
	c, err := e.dialExecdConn(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("connecting to execd: %w", err)
	}
	return &execdConn{conn: c}, nil
}

func (c *execdConn) Close() error { return c.conn.Close() }

// send writes a request.
func (c *execdConn) send(method, path, token string, body []byte) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: execd\r\n", method, path)
	if token != "" {
		fmt.Fprintf(&b, "%s: %s\r\n", hostapi.TokenHeader, token)
	}
	if path == hostapi.ClaimPath && c.key != "" {
		fmt.Fprintf(&b, "%s: %s\r\n", hostapi.KeyHeader, c.key)
	}
	if body != nil {
		b.WriteString("Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
	_, err := c.conn.Write(b.Bytes())
	return err
}

// receive reads one answer.
func (c *execdConn) receive() (status int, body []byte, err error) {
	if c.r == nil {
		c.r = bufio.NewReaderSize(io.LimitReader(c.conn, maxExecdAnswer), 1024)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// call sends a request and waits for its answer until ctx ends.
func (c *execdConn) call(ctx context.Context, method, path, token string, body []byte) (int, []byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.send(method, path, token, body); err != nil {
		return 0, nil, ctxError(ctx, err)
	}
	status, answer, err := c.receive()
	return status, answer, ctxError(ctx, err)
}

// ctxError prefers the reason why ctx ended over the I/O error that it caused.
func ctxError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *execdConn) ping(ctx context.Context) error {
	status, _, err := c.call(ctx, http.MethodGet, "/ping", "", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("ping was answered with status %d", status)
	}
	return nil
}

// claimError is execd's refusal of a claim.
type claimError struct{ answer hostapi.Error }

func (e *claimError) Error() string { return e.answer.Message }

func (c *execdConn) claim(ctx context.Context, claim *hostapi.Claim) (result hostapi.ClaimResult, err error) {
	body, err := json.Marshal(claim)
	if err != nil {
		return result, err
	}
	status, answer, err := c.call(ctx, http.MethodPost, hostapi.ClaimPath, "", body)
	if err != nil {
		return result, fmt.Errorf("handing over the entrypoint: %w", err)
	}
	if status == http.StatusOK {
		return result, json.Unmarshal(answer, &result)
	}
	refused := &claimError{}
	if err := json.Unmarshal(answer, &refused.answer); err != nil || refused.answer.Message == "" {
		return result, fmt.Errorf("handing over the entrypoint: execd answered with status %d", status)
	}
	return result, refused
}

// errExecdLost is returned when the connection to execd ended.
var errExecdLost = errors.New("the connection to execd was lost")

// awaitExit asks for the entrypoint's end and waits for it, or for runs of hooks
// with a higher number than after.
func (c *execdConn) awaitExit(token string, after int64) (hostapi.ExitStatus, error) {
	var exit hostapi.ExitStatus
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetDeadline(time.Time{})
	// The reader's limit counts from here: what the claim's answer took is
	// not this request's.
	c.r = nil
	if err := c.send(http.MethodGet, hostapi.ExitPath+"?hooks="+strconv.FormatInt(after, 10), token, nil); err != nil {
		return exit, fmt.Errorf("%w: %w", errExecdLost, err)
	}
	status, body, err := c.receive()
	if err != nil {
		return exit, fmt.Errorf("%w: %w", errExecdLost, err)
	}
	if status != http.StatusOK {
		return exit, fmt.Errorf("%w: status %d", errExecdLost, status)
	}
	if err := json.Unmarshal(body, &exit); err != nil {
		return exit, fmt.Errorf("%w: %w", errExecdLost, err)
	}
	return exit, nil
}
