package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Endpoint is how to reach a port of a sandbox.
type Endpoint struct {
	// Endpoint is host[:port][/path], without a scheme.
	Endpoint string `json:"endpoint"`
	// Headers must be sent with every request. They hold a secret.
	Headers map[string]string `json:"headers,omitempty"`
}

// Endpoint returns how to reach a port. It answers while the sandbox is still
// Pending; requests to the endpoint are held until it runs.
func (c *Client) Endpoint(ctx context.Context, id string, port int) (*Endpoint, error) {
	return c.endpoint(ctx, id, port, url.Values{"use_server_proxy": {"true"}})
}

// SignedEndpoint returns how to reach a port without a key or a header until a
// moment, in whole seconds. Whoever has the address can use it. Servers without
// a key to sign with answer an error.
func (c *Client) SignedEndpoint(ctx context.Context, id string, port int, until time.Time) (*Endpoint, error) {
	return c.endpoint(ctx, id, port, url.Values{"expires": {strconv.FormatInt(until.Unix(), 10)}})
}

func (c *Client) endpoint(ctx context.Context, id string, port int, query url.Values) (*Endpoint, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	ep := new(Endpoint)
	r := &request{method: http.MethodGet, path: p + "/endpoints/" + strconv.Itoa(port), query: query}
	if err := c.call(ctx, r, nil, ep); err != nil {
		return nil, err
	}
	return ep, nil
}

// EndpointURL completes an endpoint with the scheme of this client's server.
func (c *Client) EndpointURL(e *Endpoint) string {
	scheme, _, _ := strings.Cut(c.root, "://")
	return scheme + "://" + e.Endpoint
}
