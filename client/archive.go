package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// DownloadDir opens a directory of a sandbox as an uncompressed tar archive. Its
// own entry is "./" and the names of the others are relative to it; of anything
// else than a directory the archive holds the one entry. The caller closes it. A
// transfer that breaks ends with an error, never with io.EOF. Names in the
// archive are the sandbox's: unpack it beneath a directory of its own.
//
// Servers other than paddock do not have this route.
func (c *Client) DownloadDir(ctx context.Context, id, path string) (io.ReadCloser, error) {
	p, err := c.filesPath(id, "/directories/archive")
	if err != nil {
		return nil, err
	}
	resp, _, err := c.send(ctx, &request{method: http.MethodGet, path: p, query: url.Values{"path": {path}}, repeatable: true,
		header: http.Header{"Accept": {"application/x-tar"}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Unpacked is what UploadDir has made.
type Unpacked struct {
	// Entries counts what was made, Bytes the sizes of the files.
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// Skipped are the first of the entries that could not be made, such as
	// devices; SkippedTotal counts all.
	Skipped []struct {
		Name   string `json:"name"`
		Reason string `json:"reason"`
	} `json:"skipped,omitempty"`
	SkippedTotal int64 `json:"skipped_total,omitempty"`
}

// UploadDir unpacks an uncompressed tar archive, which is read to its end, into a
// directory of a sandbox, which is made when it is missing. What was made before
// a failure stays.
//
// Servers other than paddock do not have this route.
func (c *Client) UploadDir(ctx context.Context, id, path string, archive io.Reader) (*Unpacked, error) {
	p, err := c.filesPath(id, "/directories/archive")
	if err != nil {
		return nil, err
	}
	source := &sourceReader{r: archive}
	resp, err := c.attempt(ctx, &request{method: http.MethodPost, path: p, query: url.Values{"path": {path}},
		stream: source, size: -1, contentType: "application/x-tar"})
	if err != nil {
		// The request breaks when its source does, and that is the cause.
		if source.err != nil {
			return nil, fmt.Errorf("reading the archive: %w", source.err)
		}
		return nil, err
	}
	defer resp.Body.Close()
	out := new(Unpacked)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(out); err != nil {
		return nil, fmt.Errorf("the archive was sent, but its answer is not the JSON that is due: %w", err)
	}
	return out, nil
}

// sourceReader remembers why its source failed. The error is read after the
// request is over.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
