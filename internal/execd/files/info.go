package files

import (
	"encoding/base64"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Info describes a file, by lstat(2).
type Info struct {
	Path string `json:"path"`
	// Raw is the path in base64 when it is not UTF-8.
	Raw        string    `json:"raw,omitempty"`
	Type       string    `json:"type"`
	Size       int64     `json:"size"`
	ModifiedAt time.Time `json:"modified_at"`
	CreatedAt  time.Time `json:"created_at"`
	Owner      string    `json:"owner"`
	Group      string    `json:"group"`
	Mode       int       `json:"mode"`
	// Matches and Truncated are of a search by content.
	Matches   []Match `json:"matches,omitempty"`
	Truncated bool    `json:"truncated,omitempty"`
}

// describe is one system call, because listings describe many files.
func describe(path string, names *account.Names) (Info, error) {
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x)
	if err != nil {
		return Info{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	i := Info{
		Path:       path,
		Type:       kind(x.Mode),
		Size:       int64(x.Size),
		ModifiedAt: at(x.Mtime),
		Owner:      names.User(x.Uid),
		Group:      names.Group(x.Gid),
		Mode:       modeDigits(uint32(x.Mode)),
	}
	if !utf8.ValidString(path) {
		i.Raw = base64.StdEncoding.EncodeToString([]byte(path))
	}
	// Not every filesystem knows when a file was made.
	if i.CreatedAt = i.ModifiedAt; x.Mask&unix.STATX_BTIME != 0 {
		i.CreatedAt = at(x.Btime)
	}
	return i, nil
}

// at makes a time that JSON can hold: a file's owner may set any 64-bit number
// of seconds, and RFC 3339 has years of four digits.
func at(t unix.StatxTimestamp) time.Time {
	const first, last = -62167219200, 253402300799 // years 0 and 9999
	return time.Unix(min(max(t.Sec, first), last), int64(t.Nsec)).UTC()
}

func kind(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	}
	return "other"
}

// info answers with an object whose keys are the paths as they were asked for.
func info(c *call) error {
	names := c.guest.Accounts.Names()
	out := map[string]Info{}
	for _, asked := range c.r.URL.Query()["path"] {
		path, err := c.path(asked)
		if err != nil {
			return err
		}
		i, err := describe(path, names)
		if err != nil {
			return err
		}
		// Two paths may differ only in bytes that no key can hold.
		key := toUnicode(asked)
		if other, ok := out[key]; ok && other.Raw != i.Raw {
			return web.BadBody("two of the paths are %q in JSON; ask for each of them in a request of its own", key)
		}
		out[key] = i
	}
	web.JSON(c.w, http.StatusOK, out)
	return nil
}

// toUnicode is what the JSON encoder makes of a string.
func toUnicode(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

// list answers with the entries of a directory, parents before children.
func list(c *call) error {
	root, err := c.queryPath()
	if err != nil {
		return err
	}
	depth := 1
	if text := c.query("depth"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return web.BadBody("depth is %q; it must be a whole number, 0 or more", text)
		}
		depth = n
	}
	st, err := os.Lstat(root)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidFile, "%s: not a directory", root)
	}
	names := c.guest.Accounts.Names()
	out := &array{w: c.w}
	err = walk(c.r.Context(), root, depth, func(path string, _ fs.DirEntry) error {
		i, err := describe(path, names)
		if err != nil {
			return nil // gone since the directory was read
		}
		return out.add(i)
	})
	return out.end(err)
}
