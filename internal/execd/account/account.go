package account

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ErrUnknown is returned when a name is in neither file.
var ErrUnknown = errors.New("not found")

// Files names the two databases. Methods read them anew each time and may run
// in parallel.
type Files struct {
	Passwd string
	Group  string
}

// System is where every Linux keeps them.
var System = Files{Passwd: "/etc/passwd", Group: "/etc/group"}

// Identity is who a process runs as.
type Identity struct {
	UID, GID uint32
	// Groups are the supplementary groups.
	Groups []uint32
	// Name is empty for a uid without a passwd entry.
	Name string
	// Home is "/" for a uid without a passwd entry, as with Docker.
	Home string
}

// Credential returns the identity for a start of a process.
func (id Identity) Credential() *syscall.Credential {
	return &syscall.Credential{Uid: id.UID, Gid: id.GID, Groups: id.Groups}
}

// Resolve reads a USER value of an image: "", "name", "uid", and either with
// ":group" or ":gid". A name must exist; a number need not. As with Docker a
// given group replaces the user's supplementary groups.
func (f Files) Resolve(spec string) (Identity, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	id, err := f.resolveUser(name)
	if err != nil {
		return Identity{}, err
	}
	if hasGroup && group != "" {
		if id.GID, err = f.GID(group); err != nil {
			return Identity{}, err
		}
		id.Groups = nil
		return id, nil
	}
	id.Groups, err = f.groupsOf(id)
	return id, err
}

// ByUID returns the identity for a numeric user. gid, when not nil, replaces
// the primary group; the user's supplementary groups are kept.
func (f Files) ByUID(uid uint32, gid *uint32) (Identity, error) {
	id, err := f.resolveUser(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return Identity{}, err
	}
	if gid != nil {
		id.GID = *gid
	}
	id.Groups, err = f.groupsOf(id)
	return id, err
}

func (f Files) resolveUser(name string) (Identity, error) {
	uid, numeric := ID(name)
	if name == "" {
		uid, numeric = 0, true
	}
	id := Identity{UID: uid, Home: "/"}
	found := false
	err := f.users(func(u User) bool {
		// A numeric name that is in the file as a name wins, as in Docker.
		if u.Name == name || numeric && u.UID == uid {
			id = Identity{UID: u.UID, GID: u.GID, Name: u.Name, Home: u.Home}
			found = true
		}
		return !found
	})
	if err != nil {
		return Identity{}, err
	}
	if !found && !numeric {
		return Identity{}, fmt.Errorf("user %q: %w in %s; use a name from that file or a numeric id from 0 to 4294967294", name, ErrUnknown, f.Passwd)
	}
	if id.Home == "" {
		id.Home = "/"
	}
	return id, nil
}

// groupsOf lists the groups that name the user as a member.
func (f Files) groupsOf(id Identity) ([]uint32, error) {
	if id.Name == "" {
		return nil, nil
	}
	var gids []uint32
	err := f.groups(func(g Group) bool {
		if g.GID != id.GID && slices.Contains(g.Members, id.Name) && !slices.Contains(gids, g.GID) {
			gids = append(gids, g.GID)
		}
		return len(gids) < maxGroups
	})
	return gids, err
}

// UID returns the id of a user, given by name or number.
func (f Files) UID(name string) (uint32, error) {
	id, err := f.resolveUser(name)
	if name == "" {
		err = fmt.Errorf("the user's name is empty: %w", ErrUnknown)
	}
	return id.UID, err
}

// GID returns the id of a group, given by name or number.
func (f Files) GID(name string) (uint32, error) {
	gid, found := uint32(0), false
	err := f.groups(func(g Group) bool {
		if g.Name == name {
			gid, found = g.GID, true
		}
		return !found
	})
	if err != nil || found {
		return gid, err
	}
	if gid, ok := ID(name); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("group %q: %w in %s; use a name from that file or a numeric id from 0 to 4294967294", name, ErrUnknown, f.Group)
}

// Names is a snapshot of both files for turning many ids into names.
type Names struct {
	users, groups map[uint32]string
}

// Names reads both files. Unreadable ones give no names.
func (f Files) Names() *Names {
	n := &Names{users: make(map[uint32]string), groups: make(map[uint32]string)}
	_ = f.users(func(u User) bool {
		if _, ok := n.users[u.UID]; !ok {
			n.users[u.UID] = u.Name
		}
		return true
	})
	_ = f.groups(func(g Group) bool {
		if _, ok := n.groups[g.GID]; !ok {
			n.groups[g.GID] = g.Name
		}
		return true
	})
	return n
}

// User returns the name of uid, or its decimal digits.
func (n *Names) User(uid uint32) string { return nameOr(n.users, uid) }

// Group returns the name of gid, or its decimal digits.
func (n *Names) Group(gid uint32) string { return nameOr(n.groups, gid) }

func nameOr(names map[uint32]string, id uint32) string {
	if s, ok := names[id]; ok {
		return s
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (f Files) users(each func(User) bool) error {
	file, err := open(f.Passwd)
	if file == nil {
		return err
	}
	defer file.Close()
	return parseUsers(file, each)
}

func (f Files) groups(each func(Group) bool) error {
	file, err := open(f.Group)
	if file == nil {
		return err
	}
	defer file.Close()
	return parseGroups(file, each)
}

// open returns nil and no error for a file that isn't there: images without
// users are common. A FIFO or device in its place would block or never end.
func open(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
