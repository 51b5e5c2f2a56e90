package tree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds how deep a tree may be, because each level holds a
	// descriptor.
	maxDepth = 256
	// maxLinks bounds the files with several names that are remembered; what
	// comes after is sent as separate files.
	maxLinks = 1 << 16
	// nameBatch is how many names of a directory are held at one time.
	nameBatch = 256
	copySize  = 64 << 10
)

// buffers are for file content.
var buffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// inode identifies a file whatever its names.
type inode struct{ dev, ino uint64 }

// archiver writes one archive.
type archiver struct {
	ctx context.Context
	// out is below tw; sparse files are written to it directly.
	out   *bufio.Writer
	tw    *tar.Writer
	buf   []byte
	links map[inode]string
}

// archive is GET /directories/archive. A directory's own entry is "./", those
// in it are relative to it; of anything else than a directory the archive holds
// one entry. A failure once the answer has begun breaks the connection off, so
// that nobody takes half a tree for a whole one.
func (a *API) archive(w http.ResponseWriter, r *http.Request, path string) error {
	out := newWriter(w)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	ar := &archiver{ctx: r.Context(), out: bufio.NewWriterSize(out, copySize), buf: *buf, links: make(map[inode]string)}
	ar.tw = tar.NewWriter(ar.out)
	w.Header().Set("Content-Type", "application/x-tar")
	err := ar.run(path)
	if err == nil {
		err = ar.tw.Close()
	}
	if err == nil {
		err = ar.out.Flush()
	}
	if err != nil && out.begun {
		panic(http.ErrAbortHandler)
	}
	out.done()
	if err != nil {
		w.Header().Del("Content-Type")
		return refusal(err)
	}
	return nil
}

func (a *archiver) run(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		dir, err := openDir(filepath.Dir(path))
		if err != nil {
			return err
		}
		defer dir.Close()
		return a.entry(int(dir.Fd()), filepath.Base(path), filepath.Base(path), 0)
	}
	dir, err := openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return a.tree(dir, "", 0)
}

// tree writes an open directory and what is in it. name is "" for the top.
func (a *archiver) tree(dir *os.File, name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: the tree is more than %d directories deep", name, maxDepth)
	}
	fd := int(dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failure(name, err)
	}
	hdr := header(&st, name+"/")
	if name == "" {
		hdr.Name = "./"
	}
	hdr.Typeflag = tar.TypeDir
	if err := a.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if isPseudo(fd) {
		return nil
	}
	for {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(nameBatch)
		for _, n := range names {
			below := n
			if name != "" {
				below = name + "/" + n
			}
			if err := a.entry(fd, n, below, depth+1); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return failure(name, err)
		}
	}
}

// entry writes one name of a directory. What has vanished meanwhile is left
// out, like sockets, which mean nothing without their process.
func (a *archiver) entry(parent int, base, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = a.stated(parent, base, name, &st, depth)
	}
	if vanished(err) {
		return nil
	}
	return err
}

// vanished reports whether an error means that a name is no more what it was.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (a *archiver) stated(parent int, base, name string, st *unix.Stat_t, depth int) error {
	hdr := header(st, name)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		f, err := openat(parent, base, unix.O_DIRECTORY)
		if err != nil {
			return failure(name, err)
		}
		defer f.Close()
		return a.tree(f, name, depth)
	case unix.S_IFREG:
		return a.regular(parent, base, hdr, st)
	case unix.S_IFLNK:
		target, err := readlinkat(parent, base)
		if err != nil {
			return failure(name, err)
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil
	}
	return a.named(hdr, st)
}

// named writes an entry without content, or a link to an earlier one of the
// same file.
func (a *archiver) named(hdr *tar.Header, st *unix.Stat_t) error {
	if a.seen(hdr, st) {
		hdr.Typeflag, hdr.Size = tar.TypeLink, 0
	}
	return a.tw.WriteHeader(hdr)
}

// seen reports whether the file was sent under another name, which it sets as
// the link's target.
func (a *archiver) seen(hdr *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 {
		return false
	}
	key := inode{st.Dev, st.Ino}
	if first, ok := a.links[key]; ok {
		hdr.Linkname = first
		return true
	}
	if len(a.links) < maxLinks {
		a.links[key] = hdr.Name
	}
	return false
}

// regular writes a file. It is stated again once it is open, and its size is
// then kept whatever happens to it: what is missing is filled with zeros.
func (a *archiver) regular(parent int, base string, hdr *tar.Header, st *unix.Stat_t) error {
	if a.seen(hdr, st) {
		hdr.Typeflag = tar.TypeLink
		return a.tw.WriteHeader(hdr)
	}
	f, err := openat(parent, base, 0)
	if err != nil {
		return failure(hdr.Name, err)
	}
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return failure(hdr.Name, err)
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	name := hdr.Name
	hdr = header(&now, name)
	hdr.Typeflag, hdr.Size = tar.TypeReg, now.Size
	if now.Blocks*512 < now.Size {
		if data := extents(f, now.Size); data != nil {
			return a.sparse(f, hdr, data)
		}
	}
	if err := a.tw.WriteHeader(hdr); err != nil {
		return err
	}
	return a.copy(a.tw, f, name, extent{0, now.Size})
}

// copy writes a part of a file.
func (a *archiver) copy(w io.Writer, f *os.File, name string, part extent) error {
	for part.size > 0 {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		p := a.buf[:min(int64(len(a.buf)), part.size)]
		n, err := f.ReadAt(p, part.offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return failure(name, errors.Unwrap(err))
		}
		if n == 0 {
			// It has become shorter.
			clear(p)
			n = len(p)
		}
		if _, err := w.Write(p[:n]); err != nil {
			return err
		}
		part.offset, part.size = part.offset+int64(n), part.size-int64(n)
	}
	return nil
}

// header holds what all kinds of entries have. Names of users are left out:
// the numbers are what the files have.
func header(st *unix.Stat_t, name string) *tar.Header {
	return &tar.Header{
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX,
	}
}

// openat opens a name of a directory for reading. It neither follows a symlink
// nor waits for a FIFO's writer.
func openat(parent int, base string, flags int) (*os.File, error) {
	fd, err := unix.Openat(parent, base, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

func readlinkat(parent int, base string) (string, error) {
	// Longer than PATH_MAX, which bounds a symlink on all but odd filesystems.
	buf := make([]byte, 4097)
	n, err := unix.Readlinkat(parent, base, buf)
	if err == nil && n == len(buf) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// isPseudo reports whether a directory belongs to a filesystem that shows the
// kernel instead of holding files. Reading those may never end.
func isPseudo(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.SELINUX_MAGIC:
		return true
	}
	return false
}
