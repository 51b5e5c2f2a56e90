package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/tarball"
)

// maxLinks is how many links one path may lead through, as in the kernel
// (path_resolution(7)).
const maxLinks = 40

// destination is a place here that something from a sandbox goes to. It is held
// by a descriptor: what happens to the path afterwards, by a sandbox with a host
// volume, say, changes nothing.
type destination struct {
	// dir is the destination when that is a directory, else the directory that it
	// is in, where its name is name.
	dir  *os.File
	name string
	// st describes what is at name, which is no symbolic link; nil for nothing.
	st *unix.Stat_t
	// path is for messages.
	path string
}

func (d *destination) close() { d.dir.Close() }

// isDir reports whether the destination is a directory that is there.
func (d *destination) isDir() bool { return d.name == "" }

// linkError is returned for a destination behind a link that an earlier copy
// could have brought.
type linkError struct{ path, target string }

func (e *linkError) Error() string {
	return fmt.Sprintf("%s is a symbolic link to %q, perhaps one that came from a sandbox: remove it, give the path that it points to, or use --through-links", e.path, e.target)
}

// openDestination looks a destination up. Symbolic links on the way to it, and
// at it, are followed only where no copy can have put them, or with through.
// What a sandbox has copied here once may hold links to anywhere; else they
// would make it choose which file the next copy overwrites. A path that ends
// with a slash is made a directory when it is missing.
func openDestination(path string, through bool) (*destination, error) {
	start := "."
	if filepath.IsAbs(path) {
		start = "/"
	}
	dir, err := openPlace(unix.AT_FDCWD, start)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: start, Err: err}
	}
	w := &walk{dir: dir, through: through, path: path, make: strings.HasSuffix(path, "/")}
	d, err := w.run(parts(path))
	if err != nil {
		w.dir.Close()
		return nil, err
	}
	return d, nil
}

// walk is one look-up.
type walk struct {
	dir     *os.File
	through bool
	make    bool
	path    string
	links   int
}

// parts splits a path, of which empty parts and dots say nothing.
func parts(path string) []string {
	var list []string
	for p := range strings.SplitSeq(path, "/") {
		if p != "" && p != "." {
			list = append(list, p)
		}
	}
	return list
}

func (w *walk) run(left []string) (*destination, error) {
	for len(left) > 0 {
		name := left[0]
		left = left[1:]
		var st unix.Stat_t
		err := unix.Fstatat(int(w.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) && w.make {
			err = unix.Mkdirat(int(w.dir.Fd()), name, 0o755)
			if err == nil || errors.Is(err, unix.EEXIST) {
				err = unix.Fstatat(int(w.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
			}
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case errors.Is(err, unix.ENOENT) && len(left) == 0:
			return &destination{dir: w.dir, name: name, path: w.path}, nil
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: w.path, Err: err}
		case kind == unix.S_IFLNK:
			target, err := w.follow(name)
			if err != nil {
				return nil, err
			}
			if filepath.IsAbs(target) {
				if err := w.enter(unix.AT_FDCWD, "/"); err != nil {
					return nil, err
				}
			}
			left = append(parts(target), left...)
		case kind == unix.S_IFDIR:
			if err := w.enter(int(w.dir.Fd()), name); err != nil {
				return nil, err
			}
		case len(left) > 0 || w.make:
			return nil, &os.PathError{Op: "open", Path: w.path, Err: unix.ENOTDIR}
		default:
			return &destination{dir: w.dir, name: name, st: &st, path: w.path}, nil
		}
	}
	return &destination{dir: w.dir, path: w.path}, nil
}

// openPlace opens a directory to look things up in it.
func openPlace(parent int, name string) (*os.File, error) {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (w *walk) enter(parent int, name string) error {
	dir, err := openPlace(parent, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: w.path, Err: err}
	}
	w.dir.Close()
	w.dir = dir
	return nil
}

// follow returns where a link points to, or why it is not followed.
func (w *walk) follow(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(w.dir.Fd()), name, buf)
	if w.links++; err == nil && (w.links > maxLinks || n == len(buf)) {
		err = unix.ELOOP
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: w.path, Err: err}
	}
	target := string(buf[:n])
	if w.through || w.closed() {
		return target, nil
	}
	shown := name
	if in, err := os.Readlink(descriptorPath(w.dir)); err == nil {
		shown = filepath.Join(in, name)
	}
	return "", &linkError{shown, target}
}

// closed reports whether no copy can have made a link in the directory: it is
// not the caller's to write in, or the root directory, whose links are how some
// systems are laid out.
func (w *walk) closed() bool {
	switch unix.Faccessat(int(w.dir.Fd()), ".", unix.W_OK, unix.AT_EACCESS) {
	case unix.EACCES, unix.EROFS:
		return true
	}
	var here, root unix.Stat_t
	return unix.Fstat(int(w.dir.Fd()), &here) == nil && unix.Stat("/", &root) == nil && here.Dev == root.Dev && here.Ino == root.Ino
}

// into returns the destination of that name within a directory. A link there is
// never followed: the user has named the directory, not it.
func (d *destination) into(name string) (*destination, error) {
	dir, err := openPlace(int(d.dir.Fd()), ".")
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.path, Err: err}
	}
	w := &walk{dir: dir, path: filepath.Join(d.path, name)}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, _ := os.Readlink(filepath.Join(descriptorPath(dir), name))
		dir.Close()
		return nil, &linkError{w.path, target}
	}
	inner, err := w.run([]string{name})
	if err != nil {
		w.dir.Close()
	}
	return inner, err
}

// directory returns the destination as a directory, which is made when there is
// nothing.
func (d *destination) directory() (root *os.Root, made bool, err error) {
	if d.isDir() {
		root, err = d.root()
		return root, false, err
	}
	err = unix.Mkdirat(int(d.dir.Fd()), d.name, 0o755)
	made = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, &os.PathError{Op: "mkdir", Path: d.path, Err: err}
	}
	dir, err := openPlace(int(d.dir.Fd()), d.name)
	if err != nil {
		return nil, made, &os.PathError{Op: "open", Path: d.path, Err: err}
	}
	defer dir.Close()
	root, err = tarball.OpenRoot(descriptorPath(dir))
	return root, made, err
}

// root is the directory in which the destination is, or which it is.
func (d *destination) root() (*os.Root, error) {
	root, err := tarball.OpenRoot(descriptorPath(d.dir))
	var pe *os.PathError
	if errors.As(err, &pe) {
		pe.Path = d.path
	}
	return root, err
}

// save writes a file, which appears when it is complete. What is there and is no
// file, such as a device, is written to.
func (d *destination) save(r io.Reader, mode os.FileMode) error {
	root, err := d.root()
	if err != nil {
		return err
	}
	defer root.Close()
	if d.st != nil && d.st.Mode&unix.S_IFMT != unix.S_IFREG {
		fd, err := unix.Openat(int(d.dir.Fd()), d.name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: d.path, Err: err}
		}
		return writeAll(os.NewFile(uintptr(fd), d.path), r)
	}
	temporary := ".paddock-" + rand.Text()
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", d.path, err)
	}
	err = f.Chmod(mode)
	if werr := writeAll(f, r); err == nil {
		err = werr
	}
	if err == nil {
		err = root.Rename(temporary, d.name)
	}
	if err != nil {
		_ = root.Remove(temporary)
		return fmt.Errorf("writing %s: %w", d.path, err)
	}
	return nil
}

// writeAll writes everything and closes.
func writeAll(f *os.File, r io.Reader) error {
	_, err := io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// descriptorPath names an open directory.
func descriptorPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// isDescriptor reports whether a path names a descriptor of this process, such
// as /dev/stdout. Those are links, and what the caller of paddock has opened.
func isDescriptor(path string) bool {
	switch path = filepath.Clean(path); filepath.Dir(path) {
	case "/dev/fd", "/proc/self/fd":
		return true
	}
	return path == "/dev/stdout" || path == "/dev/stderr"
}
