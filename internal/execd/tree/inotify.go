package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// interest is what a watch of a directory asks the kernel for (inotify(7)).
const interest = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF |
	unix.IN_DONT_FOLLOW | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// notice is an event of the kernel.
type notice struct {
	wd     int32
	mask   uint32
	cookie uint32
	name   string
}

// parseNotices takes the events out of what was read from inotify. It fails
// when that is not made of whole events, which the kernel promises.
func parseNotices(b []byte) ([]notice, error) {
	var all []notice
	for len(b) > 0 {
		if len(b) < unix.SizeofInotifyEvent {
			return all, fmt.Errorf("%d bytes are left, which is no inotify event", len(b))
		}
		size := uint64(binary.NativeEndian.Uint32(b[12:]))
		if size > uint64(len(b)-unix.SizeofInotifyEvent) {
			return all, fmt.Errorf("an inotify event has a name of %d bytes", size)
		}
		end := unix.SizeofInotifyEvent + int(size)
		name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:end]), "\x00")
		all = append(all, notice{
			wd:     int32(binary.NativeEndian.Uint32(b)),
			mask:   binary.NativeEndian.Uint32(b[4:]),
			cookie: binary.NativeEndian.Uint32(b[8:]),
			name:   name,
		})
		b = b[end:]
	}
	return all, nil
}

// errWatchLimit is returned when one more directory would be too many.
var errWatchLimit = errors.New("too many directories")

// watched is the set of directories of one watch. Names are relative to the
// top, which is ".".
type watched struct {
	fd    int
	root  *os.Root
	limit int
	names map[int32]string
	wds   map[string]int32
	// holder is the watch of the directory that holds the top.
	holder int32
}

// add watches a directory. It goes by descriptor, so that what is watched is
// beneath the top whatever happens to the names meanwhile. The directory is
// returned open.
func (s *watched) add(name string) (*os.File, error) {
	if _, known := s.wds[name]; !known && len(s.names) >= s.limit {
		return nil, errWatchLimit
	}
	dir, err := s.open(name)
	if err != nil {
		return nil, err
	}
	// A magic link is followed although the flags refuse symlinks: the dot
	// makes it a directory on the way.
	wd, err := unix.InotifyAddWatch(s.fd, self(int(dir.Fd()))+"/.", interest)
	if err != nil {
		dir.Close()
		if errors.Is(err, unix.ENOSPC) {
			err = errWatchLimit
		}
		return nil, err
	}
	s.set(int32(wd), name)
	return dir, nil
}

// addHolder watches the directory that holds the top for removals: the kernel
// does not tell of that of a directory that is open.
func (s *watched) addHolder() error {
	top, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	// The root of the filesystem holds itself, and is watched for more.
	const mask = unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_ONLYDIR | unix.IN_MASK_CREATE
	wd, err := unix.InotifyAddWatch(s.fd, self(int(top.Fd()))+"/..", mask)
	s.holder = int32(wd)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EACCES):
		// The request's user may not read it. The removal is then noticed at
		// the next heartbeat.
		s.holder = -1
		return nil
	case errors.Is(err, unix.ENOSPC):
		return errWatchLimit
	}
	return err
}

// removed reports whether the top was removed.
func (s *watched) removed() bool {
	st, err := s.root.Stat(".")
	if err != nil {
		return true
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// reset forgets all names and returns a function that ends the watches that were
// not added again.
func (s *watched) reset() (sweep func()) {
	old := s.names
	s.names, s.wds = make(map[int32]string), make(map[string]int32)
	return func() {
		for wd := range old {
			if _, again := s.names[wd]; !again {
				_, _ = unix.InotifyRmWatch(s.fd, uint32(wd))
			}
		}
	}
}

// open opens a directory that is not a symlink.
func (s *watched) open(name string) (*os.File, error) {
	parent, err := s.root.OpenFile(path.Dir(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), path.Base(name),
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path.Base(name)), nil
}

// self is a name for an open descriptor.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (s *watched) set(wd int32, name string) {
	// A directory that was moved has its descriptor still; a new one under its
	// old name takes the name over.
	if old, ok := s.names[wd]; ok && s.wds[old] == wd {
		delete(s.wds, old)
	}
	s.names[wd] = name
	s.wds[name] = wd
}

// forget drops what the kernel watches no more.
func (s *watched) forget(wd int32) {
	if name, ok := s.names[wd]; ok {
		delete(s.names, wd)
		if s.wds[name] == wd {
			delete(s.wds, name)
		}
	}
}

// renamed follows a directory that was moved within the tree.
func (s *watched) renamed(from, to string) {
	for wd, name := range s.names {
		if name == from || strings.HasPrefix(name, from+"/") {
			s.set(wd, to+name[len(from):])
		}
	}
}

// leave ends the watch of a directory that is no more in the tree, and of those
// below it.
func (s *watched) leave(gone string) {
	for wd, name := range s.names {
		if name == gone || strings.HasPrefix(name, gone+"/") {
			_, _ = unix.InotifyRmWatch(s.fd, uint32(wd))
			s.forget(wd)
		}
	}
}
