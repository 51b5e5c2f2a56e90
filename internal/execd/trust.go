package execd

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// trustPaths are where the engine has files placed (package intercept, which is
// too large for execd).
var trustPaths = []string{"/etc/paddock/ca.crt", "/etc/paddock/ca-bundle.crt", "/etc/paddock/ca-bundle.p12"}

// handleTrust is POST hostapi.TrustPath. What runs already has its environment
// and keeps it.
func (s *Server) handleTrust(w http.ResponseWriter, r *http.Request) error {
	var t hostapi.Trust
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, hostapi.MaxTrust)).Decode(&t); err != nil {
		return web.BadBody("what to trust can't be read: %v", err)
	}
	if err := guest.CheckEnv(t.Env); err != nil {
		return web.BadBody("env: %v", err)
	}
	for _, f := range t.Files {
		if !slices.Contains(trustPaths, f.Path) {
			return web.BadBody("%q is no place for what to trust", f.Path)
		}
		if err := placeFile(f.Path, f.Content); err != nil {
			return refuse(hostapi.CodeTrustUnwritable, "%v", err)
		}
	}
	s.guest().AddEnv(t.Env)
	return nil
}

// placeFile makes a file that everybody can read and only root can write, in one
// step: a program that reads it meanwhile sees the old one or the new one. The
// sandbox may have put a link in its way, and must not have it written to a
// volume, which others use and which outlives the sandbox.
func placeFile(path string, content []byte) (err error) {
	name := filepath.Base(path)
	dir, err := ownDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	temp := ".new-" + rand.Text()
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return named(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			dir.Remove(temp)
		}
	}()
	if _, err := f.Write(content); err != nil {
		return named(path, err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return named(path, dir.Rename(temp, name))
}

// ownDir opens a directory of the root filesystem, and makes it when it is
// missing. What is opened stays what it is, wherever its path leads later.
func ownDir(path string) (*os.Root, error) {
	// Nothing is made on a volume either.
	at := path
	for at != "/" {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		at = filepath.Dir(at)
	}
	if st, err := os.Stat(at); err != nil {
		return nil, err
	} else if err := onRoot(path, st); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	st, err := dir.Stat(".")
	if err == nil {
		err = onRoot(path, st)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// onRoot fails for what is on another filesystem than the root directory.
func onRoot(path string, st fs.FileInfo) error {
	root, err := os.Stat("/")
	if err != nil {
		return err
	}
	if st.Sys().(*syscall.Stat_t).Dev != root.Sys().(*syscall.Stat_t).Dev {
		return &fs.PathError{Op: "writing", Path: path, Err: errors.New("it is on a volume or another filesystem than the root directory")}
	}
	return nil
}

// named gives an error the name that is worth telling.
func named(path string, err error) error {
	var link *os.LinkError
	var at *fs.PathError
	switch {
	case errors.As(err, &link):
		return &fs.PathError{Op: "writing", Path: path, Err: link.Err}
	case errors.As(err, &at):
		return &fs.PathError{Op: "writing", Path: path, Err: at.Err}
	}
	return err
}
