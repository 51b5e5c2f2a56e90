package files

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

// newDirectoryMode is the mode of parents that are made on the way.
const newDirectoryMode = 0o755

func (a *API) removeFiles(w http.ResponseWriter, r *http.Request) {
	a.eachPath(w, r, func(path string) error {
		err := unix.Unlink(path)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			if st, serr := os.Lstat(path); serr == nil && st.IsDir() {
				err = syscall.EISDIR
			}
		}
		return missingIsFine(path, err)
	})
}

func (a *API) removeDirectories(w http.ResponseWriter, r *http.Request) {
	a.eachPath(w, r, os.RemoveAll)
}

func missingIsFine(path string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return &fs.PathError{Op: "unlink", Path: path, Err: err}
}

// eachPath applies f to all query parameters "path", which are checked before
// anything happens.
func (a *API) eachPath(w http.ResponseWriter, r *http.Request, f func(string) error) {
	asked := r.URL.Query()["path"]
	if len(asked) == 0 {
		answer.Error(w, http.StatusBadRequest, answer.MissingQuery, "The query parameter \"path\" is missing.")
		return
	}
	var paths []string
	for _, p := range asked {
		path, ok := a.path(w, p)
		if !ok {
			return
		}
		paths = append(paths, path)
	}
	for _, path := range paths {
		if err := f(path); err != nil {
			fail(w, err)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}

// change is one path with what is to be set on it.
type change struct {
	path string
	set  resolved
}

// changes reads and checks a body that maps paths to permissions.
func (a *API) changes(w http.ResponseWriter, r *http.Request) ([]change, bool) {
	var body map[string]Permission
	if !answer.Decode(w, r, &body) {
		return nil, false
	}
	users := a.guest().Accounts
	var out []change
	for asked, p := range body {
		path, ok := a.path(w, asked)
		if !ok {
			return nil, false
		}
		set, err := p.resolve(users)
		if err != nil {
			badPermission(w, asked, err)
			return nil, false
		}
		out = append(out, change{path, set})
	}
	return out, true
}

func badPermission(w http.ResponseWriter, path string, err error) {
	if errors.Is(err, errMode) {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "%s: %v", path, err)
		return
	}
	if errors.Is(err, account.ErrUnknown) {
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%s: %v", path, err)
		return
	}
	fail(w, err)
}

func (a *API) permissions(w http.ResponseWriter, r *http.Request) {
	list, ok := a.changes(w, r)
	if !ok {
		return
	}
	for _, c := range list {
		if _, err := os.Stat(c.path); err != nil {
			fail(w, err)
			return
		}
		if err := c.set.apply(c.path); err != nil {
			fail(w, err)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}

// makeDirectories makes directories with their parents. Permissions apply to
// directories that were not there.
func (a *API) makeDirectories(w http.ResponseWriter, r *http.Request) {
	list, ok := a.changes(w, r)
	if !ok {
		return
	}
	for _, c := range list {
		if st, err := os.Stat(c.path); err == nil && st.IsDir() {
			continue
		}
		if err := os.MkdirAll(c.path, newDirectoryMode); err != nil {
			answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%v", plain(err))
			return
		}
		if err := c.set.apply(c.path); err != nil {
			fail(w, err)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}

type moveItem struct {
	Src  string `json:"src"`
	Dest string `json:"dest"`
}

// move renames in order and stops at the first failure. An existing target is
// never replaced.
func (a *API) move(w http.ResponseWriter, r *http.Request) {
	var items []moveItem
	if !answer.Decode(w, r, &items) {
		return
	}
	for i := range items {
		var ok bool
		if items[i].Src, ok = a.path(w, items[i].Src); !ok {
			return
		}
		if items[i].Dest, ok = a.path(w, items[i].Dest); !ok {
			return
		}
	}
	for _, m := range items {
		if err := moveOne(m.Src, m.Dest); err != nil {
			fail(w, err)
			return
		}
	}
	w.WriteHeader(http.StatusOK)
}

func moveOne(src, dest string) error {
	if _, err := os.Lstat(src); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dest), newDirectoryMode); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, src, unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EXDEV) {
		return copyAcross(src, dest)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: src, New: dest, Err: err}
	}
	return nil
}

// copyAcross moves a file to another filesystem (a volume, say), and a
// directory that lies in the image, which overlayfs does not rename.
func copyAcross(src, dest string) error {
	if _, err := os.Lstat(dest); err == nil {
		return &os.LinkError{Op: "rename", Old: src, New: dest, Err: syscall.EEXIST}
	}
	if err := copyTree(src, dest); err != nil {
		return errors.Join(err, os.RemoveAll(dest))
	}
	return os.RemoveAll(src)
}

func copyTree(src, dest string) error {
	st, err := os.Lstat(src)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return &fs.PathError{Op: "stat", Path: src, Err: syscall.EINVAL}
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		if err := os.Mkdir(dest, 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(src)
		if err != nil {
			return err
		}
		for _, d := range entries {
			if err := copyTree(filepath.Join(src, d.Name()), filepath.Join(dest, d.Name())); err != nil {
				return err
			}
		}
	case fs.ModeSymlink:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, dest); err != nil {
			return err
		}
		return os.Lchown(dest, int(sys.Uid), int(sys.Gid))
	case 0:
		if err := copyFile(src, dest); err != nil {
			return err
		}
	case fs.ModeNamedPipe:
		if err := unix.Mkfifo(dest, 0o600); err != nil {
			return &fs.PathError{Op: "mkfifo", Path: dest, Err: err}
		}
	default:
		return &fs.PathError{Op: "copy", Path: src, Err: syscall.EXDEV}
	}
	if err := os.Lchown(dest, int(sys.Uid), int(sys.Gid)); err != nil {
		return err
	}
	if err := syscall.Chmod(dest, sys.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: dest, Err: err}
	}
	return os.Chtimes(dest, st.ModTime(), st.ModTime())
}

func copyFile(src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	return errors.Join(err, out.Close())
}
