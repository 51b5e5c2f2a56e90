package files

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxContent bounds the text that is searched for, in bytes.
	maxContent = 4 << 10
	// defaultMatches and maxMatches are how many lines of one file are shown.
	defaultMatches = 20
	maxMatches     = 1000
)

// search answers with the files whose base name matches the pattern, and that
// contain what "content" says, if it is given.
func search(c *call) error {
	root, err := c.queryPath()
	if err != nil {
		return err
	}
	pattern := c.query("pattern")
	if pattern == "" {
		pattern = "**"
	}
	if !doublestar.ValidatePattern(pattern) {
		return web.BadBody("pattern %q is not a valid glob pattern", pattern)
	}
	content, err := c.contentQuery()
	if err != nil {
		return err
	}
	st, err := os.Lstat(root)
	if err != nil {
		return err
	}
	names := c.guest.Accounts.Names()
	out := &array{w: c.w}
	visit := func(path string, d fs.DirEntry) error {
		if d.IsDir() {
			return nil
		}
		if match, _ := doublestar.Match(pattern, d.Name()); !match {
			return nil
		}
		var found finding
		if content != nil {
			if !d.Type().IsRegular() {
				return nil
			}
			// What can't be read is left out, as below.
			if found, err = content.inFile(c.r.Context(), path); err != nil || len(found.matches) == 0 {
				return c.r.Context().Err()
			}
		}
		i, err := describe(path, names)
		if err != nil {
			return nil // gone in the meantime
		}
		i.Matches, i.Truncated = found.matches, found.truncated
		return out.add(i)
	}
	if st.IsDir() {
		err = walk(c.r.Context(), root, maxDepth, visit)
	} else {
		err = visit(filepath.Clean(root), fs.FileInfoToDirEntry(st))
	}
	return out.end(err)
}

// maxDepth is deeper than any path can lead: PATH_MAX is 4096 bytes.
const maxDepth = 4096

// contentQuery reads the parameters of a search by content; nil when there is
// none.
func (c *call) contentQuery() (*needle, error) {
	q := c.r.URL.Query()
	if !q.Has("content") {
		return nil, nil
	}
	n := &needle{text: []byte(q.Get("content")), most: defaultMatches}
	switch {
	case len(n.text) == 0:
		return nil, web.BadBody("content is empty; give the text to look for, or leave the parameter out")
	case len(n.text) > maxContent:
		return nil, web.BadBody("content is %d bytes long; at most %d are allowed", len(n.text), maxContent)
	case bytes.ContainsAny(n.text, "\n\x00"):
		return nil, web.BadBody("content has a line end or a NUL byte in it; it must be a part of one line of text")
	}
	if text := q.Get("max_matches"); text != "" {
		most, err := strconv.Atoi(text)
		if err != nil || most < 1 || most > maxMatches {
			return nil, web.BadBody("max_matches is %q; it must be a whole number from 1 to %d", text, maxMatches)
		}
		n.most = most
	}
	return n, nil
}
