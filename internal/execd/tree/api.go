package tree

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
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

// Routes adds the routes.
func (a *API) Routes(mux *http.ServeMux) {
	handle := func(pattern string, slots chan struct{}, h func(http.ResponseWriter, *http.Request, string) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := a.serve(w, r, slots, h); err != nil {
				web.Fail(w, err)
			}
		})
	}
	handle("GET /directories/archive", a.archives, a.archive)
	handle("POST /directories/archive", a.archives, a.extract)
	handle("GET /directories/watch", a.watches, a.watch)
}

// serve resolves the query parameter "path" and takes a slot for the request.
func (a *API) serve(w http.ResponseWriter, r *http.Request, slots chan struct{}, h func(http.ResponseWriter, *http.Request, string) error) error {
	g := a.guest()
	if g == nil {
		return web.Errorf(http.StatusServiceUnavailable, web.CodeNotClaimed, "this sandbox is not ready yet; try again")
	}
	given := r.URL.Query().Get("path")
	if given == "" {
		return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter path is missing; it names the directory")
	}
	path, err := g.Path(given)
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
	return h(w, r, path)
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

// failure is an error of the operating system about a file.
func failure(name string, err error) error {
	return &fs.PathError{Op: "tree", Path: name, Err: err}
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

// openDir opens a directory, following symlinks in its path.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
}

// openRoot opens a directory beneath which names are looked up. os.OpenRoot
// alone would wait for the writer of a FIFO.
func openRoot(path string) (*os.Root, error) {
	dir, err := openDir(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return os.OpenRoot(self(int(dir.Fd())))
}

// self is a name for an open descriptor.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
