package session

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// maxSessions bounds sessions at one time: each is a shell, a few MiB.
const maxSessions = 256

// maxTimeout keeps milliseconds within a time.Duration.
const maxTimeout = int64(1<<63-1) / int64(time.Millisecond)

// Options is what the API needs.
type Options struct {
	// Guest returns the claimed sandbox, nil before it is claimed.
	Guest func() *guest.Guest
	// Table starts the shells. Its Run must be running.
	Table *process.Table
}

// API owns all sessions. Its methods may be called in parallel; those that are
// handlers return the error to answer with, which Routes does.
type API struct {
	guest  func() *guest.Guest
	procs  *process.Table
	states budget

	mu       sync.Mutex
	sessions map[string]*session
	closed   bool
}

// New returns an API without sessions.
func New(o Options) *API {
	return &API{guest: o.Guest, procs: o.Table, sessions: make(map[string]*session)}
}

// Routes adds the routes of the OpenSandbox execd API.
func (a *API) Routes(mux *http.ServeMux) {
	mux.Handle("POST /session", web.Handler(a.Create))
	mux.Handle("POST /session/{id}/run", web.Handler(func(w http.ResponseWriter, r *http.Request) error {
		return a.Run(w, r, r.PathValue("id"))
	}))
	mux.Handle("DELETE /session/{id}", web.Handler(func(w http.ResponseWriter, r *http.Request) error {
		return a.Delete(w, r.PathValue("id"))
	}))
}

// createRequest is the body of POST /session.
type createRequest struct {
	Cwd string `json:"cwd"`
}

// Create is POST /session. The shell is started at once: what is wrong with it
// is known now, and the first run does not wait for it.
func (a *API) Create(w http.ResponseWriter, r *http.Request) error {
	g := a.guest()
	if g == nil {
		return web.NotClaimed()
	}
	var req createRequest
	if err := web.ReadOptionalJSON(w, r, &req); err != nil {
		return err
	}
	dir, err := command.MakeDirectory(g, req.Cwd)
	if err != nil {
		return err
	}
	s := &session{
		id: newID(), dir: dir, guest: g, procs: a.procs, states: &a.states,
		turn: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	if err := a.admit(s); err != nil {
		return err
	}
	if _, err := s.start(); err != nil {
		if a.take(s.id) != nil {
			s.close()
		}
		return err
	}
	web.JSON(w, http.StatusOK, struct {
		ID string `json:"session_id"`
	}{s.id})
	return nil
}

// admit registers a new session if there is room.
func (a *API) admit(s *session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return web.Errorf(http.StatusServiceUnavailable, web.CodeRuntime, "this sandbox is being stopped")
	}
	if len(a.sessions) >= maxSessions {
		return web.Busy("this sandbox has %d sessions, which is the limit; delete one with DELETE /session/ID", maxSessions)
	}
	a.sessions[s.id] = s
	return nil
}

// runRequest is the body of POST /session/{id}/run.
type runRequest struct {
	Command string `json:"command"`
	// Cwd, when not empty, is where the run begins; where it ends is where the
	// next one begins.
	Cwd string `json:"cwd"`
	// Timeout is in milliseconds; 0 or absent means none.
	Timeout int64 `json:"timeout"`
}

// check refuses what no shell can be given.
func (req *runRequest) check() error {
	if strings.TrimSpace(req.Command) == "" {
		return web.BadBody("command is empty")
	}
	if strings.ContainsRune(req.Command, 0) {
		return web.BadBody("command contains a NUL byte, which no shell accepts")
	}
	if req.Timeout < 0 || req.Timeout > maxTimeout {
		return web.BadBody("timeout is %d; it must be a number of milliseconds from 1 on, or 0 for none", req.Timeout)
	}
	return nil
}

// Run is POST /session/{id}/run. A run whose client goes is ended.
func (a *API) Run(w http.ResponseWriter, r *http.Request, id string) error {
	s := a.find(id)
	if s == nil {
		return notFound(id)
	}
	var req runRequest
	if err := web.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if err := req.check(); err != nil {
		return err
	}
	dir := ""
	if req.Cwd != "" {
		var err error
		if dir, err = command.Directory(s.guest, req.Cwd); err != nil {
			return err
		}
	}
	if err := s.acquire(r.Context()); err != nil {
		return err
	}
	defer s.release()
	stream := event.Open(w, id)
	err := s.run(r.Context(), stream, dir, req.Command, time.Duration(req.Timeout)*time.Millisecond)
	if err != nil {
		stream.Error(event.ExecError, err.Error(), err.Error())
	}
	return nil
}

// Delete is DELETE /session/{id}. A run that is under way ends with an error.
func (a *API) Delete(w http.ResponseWriter, id string) error {
	s := a.take(id)
	if s == nil {
		return notFound(id)
	}
	s.close()
	w.WriteHeader(http.StatusOK)
	return nil
}

// Has reports whether id names a session.
func (a *API) Has(id string) bool { return a.find(id) != nil }

// Len is the number of sessions.
func (a *API) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sessions)
}

// Close ends all sessions and lets no more be made. It returns when their
// shells have ended, in bounded time.
func (a *API) Close() {
	a.mu.Lock()
	a.closed = true
	all := a.sessions
	a.sessions = make(map[string]*session)
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(s.close)
	}
	wg.Wait()
}

func (a *API) find(id string) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions[id]
}

// take removes a session from the list, so that it is closed once.
func (a *API) take(id string) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sessions[id]
	delete(a.sessions, id)
	return s
}

func notFound(id string) *web.Error {
	return web.Errorf(http.StatusNotFound, web.CodeContextNotFound, "session %q not found: it was deleted or never existed; make one with POST /session", id)
}

// newID returns a random UUID (RFC 9562, version 4), as the contract has them.
func newID() string {
	var b [16]byte
	// Never fails on Linux (crypto/rand).
	_, _ = rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
