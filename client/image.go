package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Image is an image that the server holds.
type Image struct {
	// Name is the full reference, such as "docker.io/library/python:3.11".
	Name     string   `json:"name"`
	Digest   string   `json:"digest"`
	Platform Platform `json:"platform"`
	// SizeBytes is what it takes on disk.
	SizeBytes int64     `json:"sizeBytes"`
	CreatedAt time.Time `json:"createdAt"`
}

// PullProgress is how far a pull is.
type PullProgress struct {
	// Phase is "resolving", "downloading", "unpacking" or "done".
	Phase string `json:"phase"`
	// Message is a sentence for a person.
	Message     string `json:"message"`
	LayersDone  int    `json:"layersDone"`
	LayersTotal int    `json:"layersTotal"`
	BytesDone   int64  `json:"bytesDone"`
	BytesTotal  int64  `json:"bytesTotal"`
}

// PullRequest names an image to pull.
type PullRequest struct {
	Image    string
	Auth     *RegistryAuth
	Platform *Platform
}

// ListImages returns the images that the server holds.
func (c *Client) ListImages(ctx context.Context) ([]Image, error) {
	var out struct {
		Items []Image `json:"items"`
	}
	err := c.call(ctx, &request{method: http.MethodGet, path: "/images"}, nil, &out)
	return out.Items, err
}

// PullImage asks the registry for an image and downloads what is missing. The
// progress function may be nil; it is called from this goroutine.
func (c *Client) PullImage(ctx context.Context, r PullRequest, progress func(PullProgress)) (*Image, error) {
	body, err := json.Marshal(struct {
		Image    ImageRef  `json:"image"`
		Platform *Platform `json:"platform,omitempty"`
	}{ImageRef{URI: r.Image, Auth: r.Auth}, r.Platform})
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	// Pulling twice is pulling once, so it may be repeated until it streams.
	resp, _, err := c.send(ctx, &request{method: http.MethodPost, path: "/images", body: body, repeatable: true,
		contentType: "application/json", header: http.Header{"Accept": {"text/event-stream"}}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	img, err := followPull(newEventReader(resp.Body), progress)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return img, err
}

func followPull(events *eventReader, progress func(PullProgress)) (*Image, error) {
	for {
		raw, err := events.next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("the server ended the pull without saying how it went: try again, finished layers are kept")
		}
		if err != nil {
			return nil, fmt.Errorf("reading the progress of the pull: %w", err)
		}
		var ev struct {
			PullProgress
			Image *Image `json:"image"`
			Error *Error `json:"error"`
		}
		if err := json.Unmarshal(raw, &ev); err != nil {
			return nil, fmt.Errorf("an event of the pull is not valid JSON: %w", err)
		}
		switch {
		case ev.Phase == "error":
			if ev.Error == nil {
				ev.Error = &Error{Message: "the pull failed and the server gave no reason"}
			}
			return nil, ev.Error
		case ev.Phase == "done" && ev.Image != nil:
			return ev.Image, nil
		case progress != nil:
			progress(ev.PullProgress)
		}
	}
}

// ImportImage loads an archive: an OCI layout or what `docker save` writes,
// compressed or not. A name replaces that of the one image in it.
func (c *Client) ImportImage(ctx context.Context, archive io.Reader, name string) ([]Image, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	resp, err := c.attempt(ctx, &request{method: http.MethodPost, path: "/images/import", query: q,
		stream: archive, size: -1, contentType: "application/octet-stream"})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out struct {
		Items []Image `json:"items"`
	}
	if err := decode(resp, &out); err != nil {
		return nil, err
	}
	return out.Items, nil
}

// ExportImage opens an image as an OCI archive. The caller closes it. A
// transfer that breaks ends with an error, never with io.EOF.
func (c *Client) ExportImage(ctx context.Context, ref string) (io.ReadCloser, error) {
	resp, _, err := c.send(ctx, &request{method: http.MethodGet, path: "/images/export",
		query: url.Values{"ref": {ref}}, repeatable: true, header: http.Header{"Accept": {"application/x-tar"}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// RemoveImage removes an image by name or digest. Sandboxes that use it go on.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.remove(ctx, "/images", url.Values{"ref": {ref}})
}

// Pruned is what a prune removed.
type Pruned struct {
	Images []string `json:"images"`
	// Bytes is the space that was freed.
	Bytes int64 `json:"bytes"`
}

// PruneImages removes what nothing needs: leftovers, and with all every image
// that no sandbox uses.
func (c *Client) PruneImages(ctx context.Context, all bool) (*Pruned, error) {
	out := new(Pruned)
	in := struct {
		All bool `json:"all"`
	}{all}
	err := c.call(ctx, &request{method: http.MethodPost, path: "/images/prune", repeatable: true}, in, out)
	if err != nil {
		return nil, err
	}
	return out, nil
}
