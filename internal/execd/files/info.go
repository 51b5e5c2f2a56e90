package files

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

// maxEntries bounds the answers of list and search: a sandbox can hold more
// files than a client or execd has memory for.
const maxEntries = 200_000

// Info describes a file, by lstat(2).
type Info struct {
	Path       string    `json:"path"`
	Type       string    `json:"type"`
	Size       int64     `json:"size"`
	ModifiedAt time.Time `json:"modified_at"`
	CreatedAt  time.Time `json:"created_at"`
	Owner      string    `json:"owner"`
	Group      string    `json:"group"`
	Mode       int       `json:"mode"`
}

func describe(path string, st fs.FileInfo, names *account.Names) Info {
	i := Info{Path: path, Type: kind(st.Mode()), Size: st.Size(), ModifiedAt: st.ModTime().UTC(), Mode: modeDigits(st.Mode())}
	i.CreatedAt = i.ModifiedAt
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		i.Owner, i.Group = names.User(sys.Uid), names.Group(sys.Gid)
	}
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &x); err == nil && x.Mask&unix.STATX_BTIME != 0 {
		i.CreatedAt = time.Unix(x.Btime.Sec, int64(x.Btime.Nsec)).UTC()
	}
	return i
}

func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	}
	return "other"
}

// info answers with an object whose keys are the paths as they were asked for.
func (a *API) info(w http.ResponseWriter, r *http.Request) {
	names := a.guest().Accounts.Names()
	out := map[string]Info{}
	for _, asked := range r.URL.Query()["path"] {
		path, ok := a.path(w, asked)
		if !ok {
			return
		}
		st, err := os.Lstat(path)
		if err != nil {
			fail(w, err)
			return
		}
		out[asked] = describe(path, st, names)
	}
	answer.JSON(w, http.StatusOK, out)
}

// list answers with the entries of a directory, parents before children.
func (a *API) list(w http.ResponseWriter, r *http.Request) {
	root, ok := a.queryPath(w, r)
	if !ok {
		return
	}
	depth := 1
	if text := r.URL.Query().Get("depth"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "depth is %q; it must be a whole number, 0 or more.", text)
			return
		}
		depth = n
	}
	st, err := os.Lstat(root)
	if err != nil {
		fail(w, err)
		return
	}
	if !st.IsDir() {
		answer.Error(w, http.StatusBadRequest, answer.InvalidFile, "%s: not a directory", root)
		return
	}
	l := &lister{names: a.guest().Accounts.Names(), out: []Info{}}
	if err := l.walk(r, root, depth); err != nil {
		fail(w, err)
		return
	}
	answer.JSON(w, http.StatusOK, l.out)
}

type lister struct {
	names *account.Names
	out   []Info
}

func (l *lister) walk(r *http.Request, dir string, depth int) error {
	if depth == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if err := r.Context().Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, d.Name())
		st, err := os.Lstat(path)
		if err != nil {
			continue // gone since the directory was read
		}
		if len(l.out) == maxEntries {
			return tooMany(dir)
		}
		l.out = append(l.out, describe(path, st, l.names))
		if st.IsDir() {
			// What may not be read below the top is left out, as find(1) does.
			if err := l.walk(r, path, depth-1); err != nil && !os.IsPermission(err) && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

func tooMany(dir string) error {
	return &fs.PathError{Op: "list", Path: dir, Err: errTooMany}
}

// errTooMany is the limit of a listing.
var errTooMany = tooManyError{}

type tooManyError struct{}

func (tooManyError) Error() string {
	return "more than " + strconv.Itoa(maxEntries) + " entries; choose a smaller directory or a pattern"
}

// search answers with the files whose base name matches the pattern.
func (a *API) search(w http.ResponseWriter, r *http.Request) {
	root, ok := a.queryPath(w, r)
	if !ok {
		return
	}
	pattern := r.URL.Query().Get("pattern")
	if pattern == "" {
		pattern = "**"
	}
	if !doublestar.ValidatePattern(pattern) {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "pattern %q is not a valid glob pattern.", pattern)
		return
	}
	if _, err := os.Stat(root); err != nil {
		fail(w, err)
		return
	}
	names := a.guest().Accounts.Names()
	out := []Info{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if r.Context().Err() != nil {
			return r.Context().Err()
		}
		if err != nil {
			if path == root {
				return err
			}
			return nil // unreadable or gone: left out
		}
		if d.IsDir() {
			return nil
		}
		if match, _ := doublestar.Match(pattern, d.Name()); !match {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return nil
		}
		if len(out) == maxEntries {
			return tooMany(root)
		}
		out = append(out, describe(path, st, names))
		return nil
	})
	if err != nil {
		fail(w, err)
		return
	}
	answer.JSON(w, http.StatusOK, out)
}
