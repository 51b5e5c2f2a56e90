package local

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// userXattrs begins the names of the attributes that a commit takes. The
	// others mean something to the system: rights, labels, and what overlays
	// note for themselves, under either name.
	userXattrs    = "user."
	overlayXattrs = "user.overlay."
	// maxXattrs bounds the attributes of one file, in number and bytes. Some
	// filesystems hold hundreds of megabytes.
	maxXattrs     = 1024
	maxXattrBytes = 1 << 20
	// maxXattrList and maxXattrValue are the kernel's own bounds (xattr(7)), in
	// bytes.
	maxXattrList  = 64 << 10
	maxXattrValue = 64 << 10
)

var errTooManyXattrs = fmt.Errorf("its extended attributes are more than %d or larger than %d bytes together", maxXattrs, maxXattrBytes)

// copyXattrs gives an open file the extended attributes of users that another
// has, and no further ones. Filesystems without them lose them.
func copyXattrs(dst, src int) error {
	names, err := listXattrs(src)
	if err != nil {
		return err
	}
	old, err := listXattrs(dst)
	if err != nil {
		return err
	}
	stale := make(map[string]bool, len(old))
	for _, name := range old {
		stale[name] = true
	}
	total := 0
	var buf []byte
	for _, name := range names {
		if buf == nil {
			buf = make([]byte, maxXattrValue)
		}
		n, err := unix.Fgetxattr(src, name, buf)
		if errors.Is(err, unix.ENODATA) {
			continue // it has just been removed
		}
		if err != nil {
			return fmt.Errorf("reading its extended attribute %q: %w", name, err)
		}
		if total += len(name) + n; total > maxXattrBytes {
			return errTooManyXattrs
		}
		err = unix.Fsetxattr(dst, name, buf[:n], 0)
		if withoutXattrs(err) {
			return nil
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
			// The room for attributes, not the disk: no reason to give up.
			return fmt.Errorf("its extended attribute %q does not fit into the filesystem there", name)
		}
		if err != nil {
			return fmt.Errorf("setting its extended attribute %q: %w", name, err)
		}
		delete(stale, name)
	}
	for name := range stale {
		if err := unix.Fremovexattr(dst, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("removing its extended attribute %q: %w", name, err)
		}
	}
	return nil
}

// listXattrs returns the names of attributes that a commit takes.
func listXattrs(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || withoutXattrs(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing its extended attributes: %w", err)
	}
	// Hostile code may add some in between.
	buf := make([]byte, maxXattrList)
	if n, err = unix.Flistxattr(fd, buf); err != nil {
		return nil, fmt.Errorf("listing its extended attributes: %w", err)
	}
	var names []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if !strings.HasPrefix(name, userXattrs) || strings.HasPrefix(name, overlayXattrs) {
			continue
		}
		if names = append(names, name); len(names) > maxXattrs {
			return nil, errTooManyXattrs
		}
	}
	return names, nil
}

// withoutXattrs reports whether a filesystem has no such attributes.
func withoutXattrs(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
