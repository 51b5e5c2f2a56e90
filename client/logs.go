package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// LogOptions choose a part of what the entrypoint printed.
type LogOptions struct {
	// Tail is the number of last lines; zero means all that is kept.
	Tail int
	// Since drops what is older; zero means from the beginning.
	Since time.Time
	// Timestamps prefixes each line with its time.
	Timestamps bool
	// Follow keeps the stream open until the entrypoint has ended.
	Follow bool
}

// Logs returns what the sandbox's entrypoint printed, oldest first. The caller
// closes it.
func (c *Client) Logs(ctx context.Context, id string, o LogOptions) (io.ReadCloser, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	if o.Tail > 0 {
		q.Set("tail", strconv.Itoa(o.Tail))
	}
	if !o.Since.IsZero() {
		q.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.Timestamps {
		q.Set("timestamps", "true")
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	resp, _, err := c.send(ctx, &request{method: http.MethodGet, path: p + "/logs", query: q,
		header: http.Header{"Accept": {"text/plain"}}, repeatable: true})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
