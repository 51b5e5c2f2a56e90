package files

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Permission is a mode and an owner to set. A mode's decimal digits are the
// octal mode: 755 means 0755. Zero and empty leave things as they are.
type Permission struct {
	Mode  *int   `json:"mode"`
	Owner string `json:"owner"`
	Group string `json:"group"`
}

// errMode is returned for a number that does not read as an octal mode.
var errMode = errors.New("mode must be written in octal digits, such as 644 or 1755")

// fileMode turns 755 into 0755.
func fileMode(digits int) (uint32, error) {
	if digits < 0 || digits > 7777 {
		return 0, errMode
	}
	mode, shift := uint32(0), 0
	for ; digits > 0; digits /= 10 {
		d := digits % 10
		if d > 7 {
			return 0, errMode
		}
		mode |= uint32(d) << shift
		shift += 3
	}
	return mode, nil
}

// modeDigits turns 0755 into 755.
func modeDigits(bits uint32) int {
	digits, place := 0, 1
	for bits &= 0o7777; bits > 0; bits >>= 3 {
		digits += int(bits&7) * place
		place *= 10
	}
	return digits
}

// resolved is a Permission with its names looked up.
type resolved struct {
	mode     uint32 // 0: leave
	uid, gid int    // -1: leave
}

// unchanged leaves everything as it is.
var unchanged = resolved{uid: -1, gid: -1}

func (p *Permission) resolve(users account.Files) (resolved, error) {
	r := unchanged
	if p.Mode != nil {
		mode, err := fileMode(*p.Mode)
		if err != nil {
			return r, err
		}
		r.mode = mode
	}
	if p.Owner != "" {
		uid, err := users.UID(p.Owner)
		if err != nil {
			return r, err
		}
		r.uid = int(uid)
	}
	if p.Group != "" {
		gid, err := users.GID(p.Group)
		if err != nil {
			return r, err
		}
		r.gid = int(gid)
	}
	return r, nil
}

// apply sets owner, then mode: a change of owner drops the set-user-id bits.
func (r resolved) apply(path string) error {
	if r.uid >= 0 || r.gid >= 0 {
		if err := os.Chown(path, r.uid, r.gid); err != nil {
			return err
		}
	}
	if r.mode != 0 {
		if err := syscall.Chmod(path, r.mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	return nil
}

// over fills in what the existing file has.
func (r resolved) over(st *syscall.Stat_t) resolved {
	if r.mode == 0 {
		r.mode = st.Mode & 0o7777
	}
	if r.uid < 0 {
		r.uid = int(st.Uid)
	}
	if r.gid < 0 {
		r.gid = int(st.Gid)
	}
	return r
}

// besides leaves out what the existing file has already, because not everyone
// who may write to a file may set it.
func (r resolved) besides(st *syscall.Stat_t) resolved {
	if r.mode == st.Mode&0o7777 {
		r.mode = 0
	}
	if r.uid == int(st.Uid) {
		r.uid = -1
	}
	if r.gid == int(st.Gid) {
		r.gid = -1
	}
	return r
}

// change is one path with what is to be set on it.
type change struct {
	path string
	set  resolved
}

// changes reads and checks a body that maps paths to permissions.
func (c *call) changes() ([]change, error) {
	var body map[string]Permission
	if err := c.readBody(&body); err != nil {
		return nil, err
	}
	var out []change
	for asked, p := range body {
		path, err := c.path(asked)
		if err != nil {
			return nil, err
		}
		set, err := p.resolve(c.guest.Accounts)
		switch {
		case errors.Is(err, errMode):
			return nil, web.BadBody("%s: %v", asked, err)
		case errors.Is(err, account.ErrUnknown):
			return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%s: %v", asked, err)
		case err != nil:
			return nil, err
		}
		out = append(out, change{path, set})
	}
	return out, nil
}

func permissions(c *call) error {
	list, err := c.changes()
	if err != nil {
		return err
	}
	for _, ch := range list {
		if _, err := os.Stat(ch.path); err != nil {
			return err
		}
		if err := ch.set.apply(ch.path); err != nil {
			return err
		}
	}
	return c.ok()
}

// makeDirectories makes directories with their parents. Permissions apply to
// directories that were not there.
func makeDirectories(c *call) error {
	list, err := c.changes()
	if err != nil {
		return err
	}
	for _, ch := range list {
		if st, err := os.Stat(ch.path); err == nil && st.IsDir() {
			continue
		}
		if err := os.MkdirAll(ch.path, newDirectoryMode); err != nil {
			// Not "not found": nothing that was asked for is missing.
			return web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%v", plain(err))
		}
		if err := ch.set.apply(ch.path); err != nil {
			return err
		}
	}
	return c.ok()
}
