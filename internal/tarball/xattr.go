package tarball

import (
	"archive/tar"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// xattrKey begins the records of extended attributes, as star introduced
	// them and GNU tar and bsdtar read and write them.
	xattrKey = "SCHILY.xattr."
	// userSpace is the only class of attributes that is carried: the others
	// (security, system, trusted) mean something to the system they are on.
	userSpace = "user."
	// maxXattrs bounds the attributes of one file, in bytes. archive/tar reads
	// at most a mebibyte of a header.
	maxXattrs = 512 << 10
)

// errXattrs is returned for a file whose attributes don't fit into a header.
var errXattrs = errors.New("its extended attributes are larger than 512 KiB together")

// xattrs reads the extended attributes of an open file as the records of a
// header, nil when there are none.
func xattrs(f *os.File) (map[string]string, error) {
	fd := int(f.Fd())
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || unsupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The kernel's bound of a list and of a value (xattr(7)); a list that grows
	// in between is an error that the next try does not have.
	names := make([]byte, 64<<10)
	if n, err = unix.Flistxattr(fd, names); err != nil {
		return nil, err
	}
	var out map[string]string
	total := 0
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		// A record's key ends with the first "=".
		if !strings.HasPrefix(name, userSpace) || strings.Contains(name, "=") {
			continue
		}
		value, err := xattr(fd, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if total += len(name) + len(value); total > maxXattrs {
			return nil, errXattrs
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[xattrKey+name] = value
	}
	return out, nil
}

func xattr(fd int, name string) (string, error) {
	n, err := unix.Fgetxattr(fd, name, nil)
	if err != nil || n == 0 {
		return "", err
	}
	value := make([]byte, n)
	n, err = unix.Fgetxattr(fd, name, value)
	if err != nil {
		return "", err
	}
	return string(value[:n]), nil
}

// setXattrs gives an open file the attributes of its header. A filesystem that
// has none loses them, as with tar.
func setXattrs(fd int, hdr *tar.Header) error {
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrKey)
		if !ok || !strings.HasPrefix(name, userSpace) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		switch {
		case unsupported(err):
			return nil
		case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
			return badArchive("entry %q has the extended attribute %q, which the kernel does not take", clip(hdr.Name), clip(name))
		case err != nil:
			return err
		}
	}
	return nil
}

// unsupported is what filesystems without such attributes answer, and what the
// kernel answers where only the owner may set them.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM)
}
