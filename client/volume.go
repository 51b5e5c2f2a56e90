package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// VolumeInfo is a named volume that the server keeps.
type VolumeInfo struct {
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
	// SizeBytes is what it takes on disk.
	SizeBytes int64 `json:"sizeBytes"`
}

// ListVolumes returns the named volumes.
func (c *Client) ListVolumes(ctx context.Context) ([]VolumeInfo, error) {
	var out struct {
		Items []VolumeInfo `json:"items"`
	}
	err := c.call(ctx, &request{method: http.MethodGet, path: "/volumes"}, nil, &out)
	return out.Items, err
}

// RemoveVolume removes a named volume and its content. One that a sandbox uses
// is kept, and the error says by which.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("the name of the volume is empty")
	}
	return c.remove(ctx, "/volumes/"+url.PathEscape(name), nil)
}
