package tree

import (
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/actas"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
	"github.com/paddock-sandbox/paddock/internal/tarball"
)

const (
	// maxArchives bounds the archives that are read or written at one time,
	// maxWatches the watches.
	maxArchives = 32
	maxWatches  = 64
	// stall is how long a client may take for the next piece of an archive, or
	// to read what was sent.
	stall = 2 * time.Minute
)

// API serves the tree routes. It may be used in parallel.
type API struct {
	guest    func() *guest.Guest
	archives chan struct{}
	watches  chan struct{}
	// heartbeat is how often a silent watch sends a comment, so that whatever
	// is between execd and the client keeps the connection.
	heartbeat time.Duration
	// watchLimit bounds the directories of one watch.
	watchLimit int
}

// New makes the API for the sandbox that guest returns, nil before its claim.
func New(guest func() *guest.Guest) *API {
	return &API{
		guest:    guest,
		archives: make(chan struct{}, maxArchives), watches: make(chan struct{}, maxWatches),
		heartbeat: 15 * time.Second, watchLimit: maxWatched,
	}
}

// scope is where the routes are that act as a given user.
const scope = "/v1/filesystem/{uid}/{gid}"

// handler answers a request about a path, with the identity that the calling
// thread has. It starts no goroutine that touches files.
type handler func(w http.ResponseWriter, r *http.Request, path string) error

// Routes adds the routes. Like those of files they act as the sandbox's user,
// and below scope as the one that is named there.
func (a *API) Routes(mux *http.ServeMux) {
	for _, route := range []struct {
		method, path string
		slots        chan struct{}
		handle       handler
	}{
		{"GET", "/directories/archive", a.archives, a.archive},
		{"POST", "/directories/archive", a.archives, a.extract},
		{"GET", "/directories/watch", a.watches, a.watch},
	} {
		serve := web.Handler(func(w http.ResponseWriter, r *http.Request) error {
			return a.serve(w, r, route.slots, route.handle)
		})
		mux.Handle(route.method+" "+route.path, serve)
		mux.Handle(route.method+" "+scope+route.path, serve)
	}
}

// serve resolves the query parameter "path", takes a slot for the request, and
// lets h answer it with the identity that was asked for.
func (a *API) serve(w http.ResponseWriter, r *http.Request, slots chan struct{}, h handler) error {
	g := a.guest()
	if g == nil {
		return web.NotClaimed()
	}
	id, err := g.RouteIdentity(r)
	if err != nil {
		return err
	}
	given := r.URL.Query().Get("path")
	if given == "" {
		return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter path is missing; it names the directory")
	}
	path, err := g.PathAs(id, given)
	switch {
	case errors.Is(err, guest.ErrUndefined):
		return err
	case err != nil:
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "path: %v", err)
	}
	select {
	case slots <- struct{}{}:
	default:
		return web.Busy("%d requests to %s are under way, which is the limit; end one of them", cap(slots), r.URL.Path)
	}
	defer func() { <-slots }()
	var failed error
	err = actas.Do(id, func() { failed = h(w, r, path) })
	switch {
	case errors.Is(err, actas.ErrNotMapped):
		return web.BadBody("%v", err)
	case errors.Is(err, actas.ErrNotAllowed):
		return web.Errorf(http.StatusNotImplemented, web.CodeNotSupported, "%v", err)
	case err != nil:
		return err
	}
	return failed
}

// boolean reads a query parameter that is absent, true or false.
func boolean(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "%s is %q; it must be true or false", name, v)
	}
	return b, nil
}

// refusal puts an error of the operating system into the contract's words. The
// texts are those of strerror(3), which clients look for.
func refusal(err error) error {
	var e *web.Error
	if errors.As(err, &e) {
		return e
	}
	var bad *tarball.FormatError
	var conflict *tarball.ConflictError
	var entry *tarball.EntryError
	switch {
	case errors.As(err, &bad):
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidContent, "%v", err)
	case errors.As(err, &conflict):
		return web.Errorf(http.StatusConflict, web.CodeInvalidFile, "%v", err)
	case errors.As(err, &entry):
		return web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%v", err)
	}
	status, code := http.StatusInternalServerError, web.CodeRuntime
	switch {
	case errors.Is(err, fs.ErrNotExist):
		status, code = http.StatusNotFound, web.CodeFileNotFound
	case errors.Is(err, syscall.ENOTDIR):
		status, code = http.StatusBadRequest, web.CodeInvalidFile
	}
	return web.Errorf(status, code, "%v", plain(err))
}

// plain drops the name of the system call from an error.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return errors.New(pe.Path + ": " + pe.Err.Error())
	}
	return err
}

// writer is an answer whose client must keep reading.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func newWriter(w http.ResponseWriter) *writer {
	return &writer{ResponseWriter: w, control: http.NewResponseController(w)}
}

func (w *writer) Write(p []byte) (int, error) {
	w.begun = true
	// Where deadlines are not supported the connection's own limits hold.
	_ = w.control.SetWriteDeadline(time.Now().Add(stall))
	return w.ResponseWriter.Write(p)
}

// done takes the deadline away, which is the connection's.
func (w *writer) done() { _ = w.control.SetWriteDeadline(time.Time{}) }
