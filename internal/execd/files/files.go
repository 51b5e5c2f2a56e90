package files

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/actas"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// scope is where the routes are that act as a given user.
const scope = "/v1/filesystem/{uid}/{gid}"

// maxScoped bounds requests that act as another user at one time: each holds an
// operating system thread until it ends, however slow its client is.
const maxScoped = 128

// API serves the file routes. It may be used in parallel.
type API struct {
	// guest is asked on each request, because the sandbox is claimed after
	// the routes are made.
	guest func() *guest.Guest
	// scoped has an element for each request that acts as another user.
	scoped chan struct{}
}

// New makes the API for the sandbox that guest returns.
func New(guest func() *guest.Guest) *API {
	return &API{guest: guest, scoped: make(chan struct{}, maxScoped)}
}

// call is one request and who it acts as.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	guest *guest.Guest
	as    account.Identity
}

// handler answers a request, or returns the error to answer with. It may not
// return an error once it has begun its answer.
type handler func(c *call) error

// Routes adds the routes.
func (a *API) Routes(mux *http.ServeMux) {
	for _, route := range []struct {
		method, path string
		handle       handler
	}{
		{"GET", "/files/info", info},
		{"DELETE", "/files", removeFiles},
		{"POST", "/files/permissions", permissions},
		{"POST", "/files/mv", move},
		{"GET", "/files/search", search},
		{"POST", "/files/replace", replace},
		{"POST", "/files/upload", upload},
		{"GET", "/files/download", download},
		{"GET", "/directories/list", list},
		{"POST", "/directories", makeDirectories},
		{"DELETE", "/directories", removeDirectories},
	} {
		serve := web.Handler(func(w http.ResponseWriter, r *http.Request) error {
			g := a.guest()
			id, err := g.RouteIdentity(r)
			if err != nil {
				return err
			}
			a.serve(&call{w, r, g, id}, route.handle)
			return nil
		})
		mux.Handle(route.method+" "+route.path, serve)
		mux.Handle(route.method+" "+scope+route.path, serve)
	}
}

// serve runs a handler with the call's identity.
func (a *API) serve(c *call, h handler) {
	if actas.Own(c.as) {
		c.answer(h)
		return
	}
	select {
	case a.scoped <- struct{}{}:
		defer func() { <-a.scoped }()
	default:
		web.Fail(c.w, web.Busy("%d requests act as other users at this moment, which is the limit; try again", maxScoped))
		return
	}
	err := actas.Do(c.as, func() { c.answer(h) })
	switch {
	case errors.Is(err, actas.ErrNotMapped):
		web.Fail(c.w, web.BadBody("%v", err))
	case errors.Is(err, actas.ErrNotAllowed):
		web.Fail(c.w, web.Errorf(http.StatusNotImplemented, web.CodeNotSupported, "%v", err))
	case err != nil:
		web.Fail(c.w, err)
	}
}

func (c *call) answer(h handler) {
	if err := h(c); err != nil {
		web.Fail(c.w, explain(err))
	}
}

// query returns a query parameter, empty when absent.
func (c *call) query(name string) string { return c.r.URL.Query().Get(name) }

// path resolves a path of a request.
func (c *call) path(asked string) (string, error) {
	path, err := c.guest.PathAs(c.as, asked)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, guest.ErrUndefined):
		return "", web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%v", err)
	}
	return "", web.BadBody("%v", err)
}

// queryPath resolves the query parameter "path", which must be there.
func (c *call) queryPath() (string, error) {
	asked := c.query("path")
	if asked == "" {
		return "", missingPath()
	}
	return c.path(asked)
}

func missingPath() error {
	return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter \"path\" is missing")
}

// ok answers 200 without a body.
func (c *call) ok() error {
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// explain gives an error of the operating system its status. The texts are those
// of strerror(3), which clients look for.
func explain(err error) error {
	var refused *web.Error
	if errors.As(err, &refused) {
		return refused
	}
	switch text := plain(err); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return web.Errorf(http.StatusNotFound, web.CodeFileNotFound, "%v", text)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return web.BadBody("%v", text)
	default:
		return web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%v", text)
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
