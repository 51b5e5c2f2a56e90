package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// newDirectoryMode is the mode of parents that are made on the way.
const newDirectoryMode = 0o755

func removeFiles(c *call) error {
	return c.eachPath(func(path string) error {
		err := unix.Unlink(path)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			if st, serr := os.Lstat(path); serr == nil && st.IsDir() {
				err = syscall.EISDIR
			}
		}
		return missingIsFine(path, err)
	})
}

func removeDirectories(c *call) error {
	return c.eachPath(os.RemoveAll)
}

func missingIsFine(path string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return &fs.PathError{Op: "unlink", Path: path, Err: err}
}

// eachPath applies f to all query parameters "path", which are checked before
// anything happens.
func (c *call) eachPath(f func(string) error) error {
	asked := c.r.URL.Query()["path"]
	if len(asked) == 0 {
		return missingPath()
	}
	var paths []string
	for _, p := range asked {
		path, err := c.path(p)
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	for _, path := range paths {
		if err := f(path); err != nil {
			return err
		}
	}
	return c.ok()
}

type moveItem struct {
	Src  string `json:"src"`
	Dest string `json:"dest"`
}

// move renames in order and stops at the first failure. An existing target is
// never replaced.
func move(c *call) error {
	var items []moveItem
	if err := c.readBody(&items); err != nil {
		return err
	}
	for i := range items {
		var err error
		if items[i].Src, err = c.path(items[i].Src); err != nil {
			return err
		}
		if items[i].Dest, err = c.path(items[i].Dest); err != nil {
			return err
		}
	}
	for _, m := range items {
		if err := moveOne(m.Src, m.Dest); err != nil {
			return err
		}
	}
	return c.ok()
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
		return moveAcross(src, dest)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: src, New: dest, Err: err}
	}
	return nil
}
