package tarball

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
	ctx  context.Context
	opts PackOptions
	// out is below tw; sparse files are written to it directly.
	out   *bufio.Writer
	tw    *tar.Writer
	buf   []byte
	links map[inode]string
}

// PackOptions say how a tree is packed. The zero value keeps everything.
type PackOptions struct {
	// Name is that of the only entry of what is not a directory, instead of
	// the last part of its path.
	Name string
	// NoOwners leaves owners out: they mean nothing where the archive goes.
	NoOwners bool
}

// Pack writes an uncompressed tar archive of what is at path. The entry of a
// directory itself is "./", and those in it are relative to it; of anything else
// the archive holds one entry, of the link itself when it is a symlink. What
// vanishes meanwhile is left out, like sockets. An error means that the archive
// is not whole. It holds one descriptor for each level of the tree.
func Pack(ctx context.Context, w io.Writer, path string, o PackOptions) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	a := &archiver{ctx: ctx, opts: o, out: bufio.NewWriterSize(w, copySize), buf: *buf, links: make(map[inode]string)}
	a.tw = tar.NewWriter(a.out)
	if err := a.run(path); err != nil {
		return err
	}
	if err := a.tw.Close(); err != nil {
		return err
	}
	return a.out.Flush()
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
		name := a.opts.Name
		if name == "" {
			name = filepath.Base(path)
		}
		return a.entry(int(dir.Fd()), filepath.Base(path), name, 0)
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
	hdr := a.header(&st, name+"/")
	if name == "" {
		hdr.Name = "./"
	}
	hdr.Typeflag = tar.TypeDir
	var err error
	if hdr.PAXRecords, err = xattrs(dir); err != nil {
		return failure(name, err)
	}
	if err := a.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if IsPseudo(fd) {
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
	if Vanished(err) {
		return nil
	}
	return err
}

func (a *archiver) stated(parent int, base, name string, st *unix.Stat_t, depth int) error {
	hdr := a.header(st, name)
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
	hdr = a.header(&now, name)
	hdr.Typeflag, hdr.Size = tar.TypeReg, now.Size
	if hdr.PAXRecords, err = xattrs(f); err != nil {
		return failure(name, err)
	}
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
func (a *archiver) header(st *unix.Stat_t, name string) *tar.Header {
	h := &tar.Header{
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX,
	}
	if !a.opts.NoOwners {
		h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	}
	return h
}
