package execd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

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
		if !filepath.IsAbs(f.Path) {
			return web.BadBody("the path %q is not absolute", f.Path)
		}
		if err := placeFile(f.Path, f.Content); err != nil {
			return refuse(hostapi.CodeTrustUnwritable, "%v", err)
		}
	}
	s.guest().AddEnv(t.Env)
	return nil
}

// placeFile makes a file that everybody can read and only root can write, in one
// step: a program that reads it meanwhile sees the old one or the new one.
func placeFile(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return named(path, os.Rename(f.Name(), path))
}

// named gives an error of a rename the name that is worth telling.
func named(path string, err error) error {
	var link *os.LinkError
	if errors.As(err, &link) {
		return &fs.PathError{Op: "writing", Path: path, Err: link.Err}
	}
	return err
}
