package tarball

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// later is what a directory gets when everything in it is there.
type later struct {
	name   string
	mode   uint32
	time   time.Time
	xattrs map[string]string
}

// place makes an entry under its clean name.
func (x *extractor) place(hdr *tar.Header, name string, content io.Reader) error {
	if name == "." {
		return x.top(hdr)
	}
	parent, err := x.dir(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch hdr.Typeflag {
	case tar.TypeDir:
		return x.directory(hdr, parent, base, name)
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse:
		return x.file(hdr, parent, base, content)
	case tar.TypeLink:
		return x.link(hdr, parent, base)
	case tar.TypeSymlink:
		return x.replace(hdr, parent, base, func(temporary string) error {
			if err := unix.Symlinkat(hdr.Linkname, parent, temporary); err != nil {
				return err
			}
			return x.ownAt(hdr, parent, temporary)
		})
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		if x.opts.Foreign {
			return &skipError{"devices and named pipes are not taken from a sandbox"}
		}
		return x.special(hdr, parent, base)
	}
	return &skipError{fmt.Sprintf("entries of type %q are not known here", hdr.Typeflag)}
}

// top is the entry of the directory itself, which gets the mode of one that it
// was made for, and keeps its own otherwise.
func (x *extractor) top(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return badArchive("entry %q would take the place of the directory itself", clip(hdr.Name))
	}
	if !x.opts.Made {
		return nil
	}
	fd, err := x.dir(".")
	if err != nil {
		return err
	}
	if err := x.own(hdr, func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }); err != nil {
		return err
	}
	return x.postpone(hdr, ".")
}

// dir returns a descriptor of a directory beneath the root, which is made when
// it is missing. It is valid until the next call.
func (x *extractor) dir(name string) (int, error) {
	if x.parent != nil && x.parentName == name {
		return int(x.parent.Fd()), nil
	}
	x.closeParent()
	const flags = os.O_RDONLY | unix.O_DIRECTORY | unix.O_NONBLOCK
	f, err := x.root.OpenFile(name, flags, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := x.root.MkdirAll(name, 0o755); err != nil {
			return -1, err
		}
		f, err = x.root.OpenFile(name, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	x.parent, x.parentName = f, name
	return int(f.Fd()), nil
}

func (x *extractor) closeParent() {
	if x.parent != nil {
		x.parent.Close()
		x.parent = nil
	}
}

// directory makes a directory, or gives one that is there its owner and mode. A
// symlink to a directory beneath the root counts as one and is left alone.
func (x *extractor) directory(hdr *tar.Header, parent int, base, name string) error {
	// Nobody else is let in before it is complete.
	err := unix.Mkdirat(parent, base, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	there := err != nil
	if there {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			to, err := x.root.Stat(name)
			if err == nil && to.IsDir() {
				return nil
			}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return unix.ENOTDIR
		}
	}
	if there && x.opts.Foreign {
		return nil
	}
	if err := x.ownAt(hdr, parent, base); err != nil {
		return err
	}
	return x.postpone(hdr, name)
}

// postpone remembers mode and time of a directory: what is made in it would
// change the time, and the mode may forbid that it is made.
func (x *extractor) postpone(hdr *tar.Header, name string) error {
	l := later{name, x.mode(hdr), hdr.ModTime, hdr.PAXRecords}
	if len(x.later) >= maxLater {
		return x.apply(l)
	}
	x.later = append(x.later, l)
	return nil
}

// settle applies what was deferred, the innermost directories first.
func (x *extractor) settle() error {
	var first error
	for i := len(x.later) - 1; i >= 0; i-- {
		l := x.later[i]
		if err := x.apply(l); err != nil && first == nil && !Vanished(err) {
			first = &EntryError{clip(l.name), err}
		}
	}
	return first
}

func (x *extractor) apply(l later) error {
	fd, err := x.dir(path.Dir(l.name))
	if err != nil {
		return err
	}
	f, err := openat(fd, path.Base(l.name), unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := setXattrs(int(f.Fd()), &tar.Header{Name: l.name, PAXRecords: l.xattrs}); err != nil {
		return err
	}
	// The mode last: it may forbid the rest.
	if err := unix.UtimesNanoAt(int(f.Fd()), ".", times(l.time), 0); err != nil {
		return err
	}
	return unix.Fchmod(int(f.Fd()), l.mode)
}

// file makes a regular file.
func (x *extractor) file(hdr *tar.Header, parent int, base string, content io.Reader) error {
	if hdr.Size > maxFile {
		return badArchive("entry %q has %d bytes; at most %d are taken", clip(hdr.Name), hdr.Size, int64(maxFile))
	}
	return x.replace(hdr, parent, base, func(temporary string) error {
		fd, err := unix.Openat(parent, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		defer f.Close()
		if err := fill(x.ctx, f, content, hdr.Size, x.buf); err != nil {
			return err
		}
		if err := setXattrs(fd, hdr); err != nil {
			return err
		}
		// The owner first: a change of it takes set-user-id away.
		if err := x.own(hdr, func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, x.mode(hdr)); err != nil {
			return err
		}
		// Some filesystems report a full disk only here.
		if err := f.Close(); err != nil {
			return err
		}
		x.sum.Bytes += hdr.Size
		return nil
	})
}

// sourceError marks an error of reading an archive, to tell it from one of
// writing what it holds.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// fill writes size bytes of content to an empty file. Blocks of zeros become
// holes.
func fill(ctx context.Context, f *os.File, content io.Reader, size int64, buf []byte) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, buf[:min(int64(len(buf)), size-at)])
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return io.ErrUnexpectedEOF
			}
			return &sourceError{err}
		}
		if err := writeData(f, buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// page is the least that can be a hole in most filesystems, in bytes.
const page = 4096

var zeros [page]byte

// writeData writes the pages of p that are not all zeros.
func writeData(f *os.File, p []byte, at int64) error {
	start := 0
	for i := 0; i < len(p); i += page {
		end := min(i+page, len(p))
		if string(p[i:end]) != string(zeros[:end-i]) {
			continue
		}
		if start < i {
			if _, err := f.WriteAt(p[start:i], at+int64(start)); err != nil {
				return err
			}
		}
		start = end
	}
	if start < len(p) {
		_, err := f.WriteAt(p[start:], at+int64(start))
		return err
	}
	return nil
}

// link makes another name of a file that is beneath the root already.
func (x *extractor) link(hdr *tar.Header, parent int, base string) error {
	target, err := local(hdr.Linkname)
	if err != nil || target == "." {
		return badArchive("entry %q is a hard link to %q: it must name a file beneath the directory", clip(hdr.Name), clip(hdr.Linkname))
	}
	dir, err := x.root.OpenFile(path.Dir(target), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	temporary := temporaryName()
	if err := unix.Linkat(int(dir.Fd()), path.Base(target), parent, temporary, 0); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return badArchive("entry %q is a hard link to %q, which is not there", clip(hdr.Name), clip(hdr.Linkname))
		}
		return err
	}
	// Nothing happens, and the temporary name stays, when both are names of
	// the same file (rename(2)).
	defer unix.Unlinkat(parent, temporary, 0)
	return unix.Renameat(parent, temporary, parent, base)
}

// special makes a FIFO or a device. Devices are refused by the kernel in most
// sandboxes.
func (x *extractor) special(hdr *tar.Header, parent int, base string) error {
	kind, device := uint32(unix.S_IFIFO), uint64(0)
	if hdr.Typeflag != tar.TypeFifo {
		kind = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor > 1<<12-1 || hdr.Devminor > 1<<20-1 {
			return badArchive("entry %q is a device with the numbers %d, %d, which Linux does not have", clip(hdr.Name), hdr.Devmajor, hdr.Devminor)
		}
		device = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	return x.replace(hdr, parent, base, func(temporary string) error {
		err := unix.Mknodat(parent, temporary, kind|x.mode(hdr)&0o777, int(device))
		if errors.Is(err, unix.EPERM) && kind != unix.S_IFIFO {
			return &skipError{"devices can't be made in this sandbox"}
		}
		if err != nil {
			return err
		}
		if err := x.ownAt(hdr, parent, temporary); err != nil {
			return err
		}
		// Kernels before 6.6 can't do this; the mode is then what the umask
		// has left.
		err = unix.Fchmodat(parent, temporary, x.mode(hdr), unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		return err
	})
}

// replace makes a file under a temporary name, gives it its time, and puts it in
// the place of whatever is there but a directory.
func (x *extractor) replace(hdr *tar.Header, parent int, base string, create func(temporary string) error) error {
	temporary := temporaryName()
	err := create(temporary)
	if err == nil {
		err = unix.UtimesNanoAt(parent, temporary, times(hdr.ModTime), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Renameat(parent, temporary, parent, base)
	}
	if err != nil {
		_ = unix.Unlinkat(parent, temporary, 0)
	}
	return err
}

// ownAt sets the owner of a name.
func (x *extractor) ownAt(hdr *tar.Header, parent int, base string) error {
	return x.own(hdr, func(uid, gid int) error {
		return unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// own sets the owner. Without privileges files stay execd's, as tar has it.
func (x *extractor) own(hdr *tar.Header, chown func(uid, gid int) error) error {
	if x.opts.Foreign {
		return nil
	}
	const most = 1<<32 - 2
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid > most || hdr.Gid > most {
		return badArchive("entry %q belongs to %d:%d; ids must be from 0 to %d", clip(hdr.Name), hdr.Uid, hdr.Gid, most)
	}
	err := chown(hdr.Uid, hdr.Gid)
	switch {
	case err == nil || errors.Is(err, unix.EPERM) && !x.privileged:
		return nil
	case errors.Is(err, unix.EINVAL):
		return badArchive("entry %q belongs to %d:%d, which this sandbox does not have; send ids below 65536", clip(hdr.Name), hdr.Uid, hdr.Gid)
	}
	return err
}

// mode is what an entry's permissions become.
func (x *extractor) mode(hdr *tar.Header) uint32 {
	if x.opts.Foreign {
		return uint32(hdr.Mode & 0o777)
	}
	return uint32(hdr.Mode & 0o7777)
}

// times is for utimensat: the time of access stays as it is.
func times(t time.Time) []unix.Timespec {
	return []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Unix(), Nsec: int64(t.Nanosecond())}}
}

// temporaryName is what nobody else has.
func temporaryName() string {
	var b [12]byte
	// Never fails on Linux (crypto/rand).
	_, _ = rand.Read(b[:])
	return ".paddock-" + hex.EncodeToString(b[:]) + ".tmp"
}
