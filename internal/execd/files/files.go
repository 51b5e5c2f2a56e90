package files

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/answer"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

// API serves the file routes. It may be used in parallel.
type API struct {
	// guest is asked on each request, because the sandbox is claimed after
	// the routes are made.
	guest func() *guest.Guest
}

// New makes the API for the sandbox that guest returns.
func New(guest func() *guest.Guest) *API { return &API{guest: guest} }

// Routes adds the routes.
func (a *API) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /files/info", a.info)
	mux.HandleFunc("DELETE /files", a.removeFiles)
	mux.HandleFunc("POST /files/permissions", a.permissions)
	mux.HandleFunc("POST /files/mv", a.move)
	mux.HandleFunc("GET /files/search", a.search)
	mux.HandleFunc("POST /files/replace", a.replace)
	mux.HandleFunc("POST /files/upload", a.upload)
	mux.HandleFunc("GET /files/download", a.download)
	mux.HandleFunc("GET /directories/list", a.list)
	mux.HandleFunc("POST /directories", a.makeDirectories)
	mux.HandleFunc("DELETE /directories", a.removeDirectories)
}

// path resolves a path of a request; when it returns false the error has been
// answered.
func (a *API) path(w http.ResponseWriter, path string) (string, bool) {
	p, err := a.guest().Path(path)
	switch {
	case err == nil:
		return p, true
	case errors.Is(err, guest.ErrUndefined):
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%v", err)
	default:
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "%v", err)
	}
	return "", false
}

// queryPath resolves the query parameter "path", which must be there.
func (a *API) queryPath(w http.ResponseWriter, r *http.Request) (string, bool) {
	path := r.URL.Query().Get("path")
	if path == "" {
		answer.Error(w, http.StatusBadRequest, answer.MissingQuery, "The query parameter \"path\" is missing.")
		return "", false
	}
	return a.path(w, path)
}

// fail answers an error of the operating system. The texts are those of
// strerror(3), which clients look for.
func fail(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		answer.Error(w, http.StatusNotFound, answer.FileNotFound, "%v", plain(err))
	case errors.Is(err, syscall.ENAMETOOLONG):
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "%v", plain(err))
	default:
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%v", plain(err))
	}
}

// plain drops the name of the system call: "lstat /x: no such file or
// directory" becomes "/x: no such file or directory".
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return errors.New(pe.Path + ": " + pe.Err.Error())
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return errors.New(le.Old + " to " + le.New + ": " + le.Err.Error())
	}
	return err
}

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
func modeDigits(m fs.FileMode) int {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	digits, place := 0, 1
	for ; bits > 0; bits >>= 3 {
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

func (p *Permission) resolve(users account.Files) (resolved, error) {
	r := resolved{uid: -1, gid: -1}
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
