package tree

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
	"github.com/paddock-sandbox/paddock/internal/tarball"
)

// archive is GET /directories/archive. A failure once the answer has begun
// breaks the connection off, so that nobody takes half a tree for a whole one.
func (a *API) archive(w http.ResponseWriter, r *http.Request, path string) error {
	out := newWriter(w)
	w.Header().Set("Content-Type", "application/x-tar")
	err := tarball.Pack(r.Context(), out, path, tarball.PackOptions{})
	if err != nil && out.begun {
		panic(http.ErrAbortHandler)
	}
	out.done()
	if err != nil {
		w.Header().Del("Content-Type")
		return refusal(err)
	}
	return nil
}

// extract is POST /directories/archive. The directory is made when it is
// missing.
func (a *API) extract(w http.ResponseWriter, r *http.Request, path string) error {
	made := false
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return refusal(err)
		}
		made = true
	}
	root, err := tarball.OpenRoot(path)
	if err != nil {
		return refusal(err)
	}
	defer root.Close()
	control := http.NewResponseController(w)
	defer control.SetReadDeadline(time.Time{})
	body := &patient{r: r.Body, control: control}
	done, err := tarball.Unpack(r.Context(), body, root, tarball.UnpackOptions{Made: made})
	if err != nil {
		return refusal(err)
	}
	web.JSON(w, http.StatusOK, done)
	return nil
}

// patient gives each piece of a request's body its own deadline.
type patient struct {
	r       io.Reader
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	// Where deadlines are not supported the connection's own limits hold.
	_ = p.control.SetReadDeadline(time.Now().Add(stall))
	return p.r.Read(b)
}
