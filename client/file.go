package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// FileInfo describes one path in a sandbox. A symbolic link is described
// itself, not what it points to.
type FileInfo struct {
	Path string `json:"path"`
	// Type is "file", "directory", "symlink" or "other".
	Type       string    `json:"type"`
	Size       int64     `json:"size"`
	ModifiedAt time.Time `json:"modified_at"`
	CreatedAt  time.Time `json:"created_at"`
	Owner      string    `json:"owner"`
	Group      string    `json:"group"`
	// Mode is the permission bits in the API's notation: use Perm.
	Mode Mode `json:"mode"`
}

// Mode is a permission as the API writes it: the decimal digits are the octal
// mode, so 755 means 0755. Zero leaves a mode as it is.
type Mode int

// ModeOf returns the Mode for permission bits such as 0o755.
func ModeOf(perm uint32) Mode {
	n, _ := strconv.Atoi(strconv.FormatUint(uint64(perm&0o7777), 8))
	return Mode(n)
}

// Perm returns the permission bits; zero when m is not made of octal digits.
func (m Mode) Perm() uint32 {
	n, err := strconv.ParseUint(strconv.Itoa(int(m)), 8, 32)
	if err != nil {
		return 0
	}
	return uint32(n) & 0o7777
}

// Permission is what Chmod and Mkdir set. Zero values leave things as they are.
type Permission struct {
	Mode  Mode   `json:"mode"`
	Owner string `json:"owner,omitempty"`
	Group string `json:"group,omitempty"`
}

// FileInfo describes the given paths, keyed as they were asked for. One that
// does not exist is an error for which IsNotFound is true.
func (c *Client) FileInfo(ctx context.Context, id string, paths ...string) (map[string]FileInfo, error) {
	out := map[string]FileInfo{}
	err := c.files(ctx, id, http.MethodGet, "/files/info", url.Values{"path": paths}, nil, &out)
	return out, err
}

// ListDir lists a directory: its entries for depth 1, theirs too for 2, and so
// on.
func (c *Client) ListDir(ctx context.Context, id, path string, depth int) ([]FileInfo, error) {
	var out []FileInfo
	q := url.Values{"path": {path}, "depth": {strconv.Itoa(depth)}}
	err := c.files(ctx, id, http.MethodGet, "/directories/list", q, nil, &out)
	return out, err
}

// SearchFiles finds files below a directory whose name matches a glob; an empty
// pattern matches all.
func (c *Client) SearchFiles(ctx context.Context, id, dir, pattern string) ([]FileInfo, error) {
	q := url.Values{"path": {dir}}
	if pattern != "" {
		q.Set("pattern", pattern)
	}
	var out []FileInfo
	err := c.files(ctx, id, http.MethodGet, "/files/search", q, nil, &out)
	return out, err
}

// Mkdir makes directories with their parents. The permission is applied to
// those that did not exist.
func (c *Client) Mkdir(ctx context.Context, id string, dirs map[string]Permission) error {
	return c.files(ctx, id, http.MethodPost, "/directories", nil, dirs, nil)
}

// RemoveFiles removes files. A missing one is no error, a directory is.
func (c *Client) RemoveFiles(ctx context.Context, id string, paths ...string) error {
	return c.files(ctx, id, http.MethodDelete, "/files", url.Values{"path": paths}, nil, nil)
}

// RemoveDirs removes directories with all that is in them. A missing one is no
// error.
func (c *Client) RemoveDirs(ctx context.Context, id string, paths ...string) error {
	return c.files(ctx, id, http.MethodDelete, "/directories", url.Values{"path": paths}, nil, nil)
}

// Chmod sets the mode and owner of paths.
func (c *Client) Chmod(ctx context.Context, id string, perms map[string]Permission) error {
	return c.files(ctx, id, http.MethodPost, "/files/permissions", nil, perms, nil)
}

// Move is one rename.
type Move struct {
	Src  string `json:"src"`
	Dest string `json:"dest"`
}

// MoveFiles renames in order and stops at the first failure. A destination that
// exists is an error.
func (c *Client) MoveFiles(ctx context.Context, id string, moves ...Move) error {
	return c.files(ctx, id, http.MethodPost, "/files/mv", nil, moves, nil)
}

// Replacement is one text for another.
type Replacement struct {
	Old string `json:"old"`
	New string `json:"new"`
}

// ReplaceInFiles replaces every occurrence in each file and returns how many
// there were.
func (c *Client) ReplaceInFiles(ctx context.Context, id string, edits map[string]Replacement) (map[string]int, error) {
	var out map[string]struct {
		Count int `json:"replacedCount"`
	}
	err := c.files(ctx, id, http.MethodPost, "/files/replace", url.Values{"verbose": {"true"}}, edits, &out)
	if err != nil {
		return nil, err
	}
	counts := make(map[string]int, len(out))
	for path, r := range out {
		counts[path] = r.Count
	}
	return counts, nil
}

func (c *Client) files(ctx context.Context, id, method, route string, q url.Values, in, out any) error {
	p, err := c.filesPath(id, route)
	if err != nil {
		return err
	}
	return c.call(ctx, &request{method: method, path: p, query: q}, in, out)
}

// DownloadOptions choose a part of a file.
type DownloadOptions struct {
	// Offset is the first byte, Length how many; zero Length means to the end.
	Offset, Length int64
	// FirstLine is the first line, counted from 1, Lines how many; zero means
	// from the beginning and to the end. Lines come joined by "\n", without one
	// at the end. They exclude Offset and Length.
	FirstLine, Lines int
}

// Download is a file on its way out of a sandbox.
type Download struct {
	io.ReadCloser
	// Size is how many bytes will come, -1 when it is not known.
	Size int64
}

// DownloadFile opens a file in a sandbox for reading. The caller closes it. A
// transfer that breaks ends with an error, never with io.EOF.
func (c *Client) DownloadFile(ctx context.Context, id, path string, o DownloadOptions) (*Download, error) {
	p, err := c.filesPath(id, "/files/download")
	if err != nil {
		return nil, err
	}
	if o.Offset < 0 || o.Length < 0 {
		return nil, errors.New("the offset and the length of a download are not negative")
	}
	r := &request{method: http.MethodGet, path: p, query: url.Values{"path": {path}}, repeatable: true,
		header: http.Header{"Accept": {"application/octet-stream"}}}
	if o.FirstLine < 0 || o.Lines < 0 {
		return nil, errors.New("the first line and the number of lines of a download are not negative")
	}
	if o.FirstLine > 0 {
		r.query.Set("offset", strconv.Itoa(o.FirstLine))
	}
	if o.Lines > 0 {
		r.query.Set("limit", strconv.Itoa(o.Lines))
	}
	ranged := o.Offset > 0 || o.Length > 0
	if ranged {
		last := ""
		if o.Length > 0 {
			last = strconv.FormatInt(o.Offset+o.Length-1, 10)
		}
		r.header.Set("Range", "bytes="+strconv.FormatInt(o.Offset, 10)+"-"+last)
	}
	resp, _, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	if ranged && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, fmt.Errorf("the sandbox answered a range request with status %d instead of the range", resp.StatusCode)
	}
	return &Download{ReadCloser: resp.Body, Size: resp.ContentLength}, nil
}
