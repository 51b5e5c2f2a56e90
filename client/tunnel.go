package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// Tunnel is a connection to a TCP port in a sandbox, for any protocol. Reading
// and writing may go on at the same time; Close ends both.
type Tunnel struct {
	stream io.ReadWriteCloser
	cancel context.CancelFunc
}

// DialPort connects to a TCP port in a sandbox, through the server, and waits
// for a sandbox that is still Pending. When nothing listens the error says so.
// The context is for the dialing; the connection outlives it.
//
// Servers other than paddock do not have this route.
func (c *Client) DialPort(ctx context.Context, id string, port int) (*Tunnel, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	// The transport takes a context's end for that of the connection.
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	end := func() { cancel(nil) }
	resp, err := c.attempt(life, &request{method: http.MethodGet, path: p + "/tunnel/" + strconv.Itoa(port),
		header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}}})
	if !stop() && err == nil {
		resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return nil, err
	}
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		end()
		return nil, fmt.Errorf("the server answered a request for a tunnel with status %d; it may be no paddock, or a proxy in front of it does not pass upgrades on", resp.StatusCode)
	}
	return &Tunnel{stream: stream, cancel: end}, nil
}

// Read reads what the program in the sandbox sends.
func (t *Tunnel) Read(p []byte) (int, error) { return t.stream.Read(p) }

// Write sends to the program in the sandbox.
func (t *Tunnel) Write(p []byte) (int, error) { return t.stream.Write(p) }

// CloseWrite tells the program that nothing more comes. It may still answer.
func (t *Tunnel) CloseWrite() error {
	half, ok := t.stream.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// Close ends the connection. It may be called more than once.
func (t *Tunnel) Close() error {
	defer t.cancel()
	return t.stream.Close()
}
