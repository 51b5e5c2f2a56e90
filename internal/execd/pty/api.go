package pty

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// maxSessions bounds the sessions of a sandbox.
const maxSessions = 256

// Options are what an API needs.
type Options struct {
	// Guest returns the sandbox; nil as long as it is not claimed.
	Guest func() *guest.Guest
	// Table starts the programs and must be running.
	Table *process.Table
}

// API serves the terminal routes. It may be used in parallel. Sessions live
// until they are deleted or the API is closed; when there are maxSessions, the
// oldest whose program has ended and that has no client makes room for a new
// one.
type API struct {
	guest  func() *guest.Guest
	procs  *process.Table
	budget budget
	times  times

	mu       sync.Mutex
	sessions map[string]*session
	// order lists the ids, the oldest first.
	order  []string
	closed bool
}

// times are the intervals of the OpenSandbox execd API.
type times struct {
	// ping is how often a client is asked whether it is there, silence how
	// long it may send nothing at all, write how long one write may take.
	ping, silence, write time.Duration
}

// New returns an API without sessions.
func New(o Options) *API {
	return &API{
		guest: o.Guest, procs: o.Table, sessions: make(map[string]*session),
		times: times{ping: 30 * time.Second, silence: time.Minute, write: 10 * time.Second},
	}
}

// Routes adds the routes of the OpenSandbox execd API.
func (a *API) Routes(mux *http.ServeMux) {
	mux.Handle("POST /pty", web.Handler(a.create))
	mux.Handle("GET /pty/{id}", web.Handler(a.status))
	mux.Handle("DELETE /pty/{id}", web.Handler(a.remove))
	mux.Handle("GET /pty/{id}/ws", web.Handler(a.connect))
}

// create is POST /pty. The program starts when the first client connects, so
// that it sees the right size and no output is missed.
func (a *API) create(w http.ResponseWriter, r *http.Request) error {
	g := a.guest()
	if g == nil {
		return web.NotClaimed()
	}
	var req createRequest
	if err := web.ReadOptionalJSON(w, r, &req); err != nil {
		return err
	}
	p, err := prepare(g, &req)
	if err != nil {
		return err
	}
	s := newSession(newID(), p, a.procs, &a.budget)
	if err := a.admit(s); err != nil {
		return err
	}
	web.JSON(w, http.StatusCreated, struct {
		ID string `json:"session_id"`
	}{s.id})
	return nil
}

// status is GET /pty/{id}.
func (a *API) status(w http.ResponseWriter, r *http.Request) error {
	s, err := a.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	web.JSON(w, http.StatusOK, s.status())
	return nil
}

// remove is DELETE /pty/{id}.
func (a *API) remove(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	a.mu.Lock()
	s := a.drop(id)
	a.mu.Unlock()
	if s == nil {
		return notFound(id)
	}
	s.close()
	w.WriteHeader(http.StatusOK)
	return nil
}

// admit registers a new session if there is room.
func (a *API) admit(s *session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return web.Errorf(http.StatusServiceUnavailable, web.CodeRuntime, "this sandbox is being stopped")
	}
	if len(a.sessions) >= maxSessions && !a.evict() {
		return web.Busy("this sandbox has %d terminals, which is the limit; delete one with DELETE /pty/ID", maxSessions)
	}
	a.sessions[s.id] = s
	a.order = append(a.order, s.id)
	return nil
}

// evict deletes the oldest session that is of no more use. The caller holds mu.
func (a *API) evict() bool {
	for _, id := range a.order {
		if s := a.sessions[id]; s.spent() {
			a.drop(id)
			// Does not wait: the program has ended.
			s.close()
			return true
		}
	}
	return false
}

// drop takes a session off the list, so that it is closed once. The caller
// holds mu.
func (a *API) drop(id string) *session {
	s := a.sessions[id]
	if s == nil {
		return nil
	}
	delete(a.sessions, id)
	for i := range a.order {
		if a.order[i] == id {
			a.order = append(a.order[:i], a.order[i+1:]...)
			break
		}
	}
	return s
}

func (a *API) find(id string) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sessions[id]; s != nil {
		return s, nil
	}
	return nil, notFound(id)
}

func notFound(id string) *web.Error {
	return web.Errorf(http.StatusNotFound, web.CodeContextNotFound, "pty session %q not found: it was deleted or never existed; make one with POST /pty", clip(id))
}

// Len is the number of sessions.
func (a *API) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sessions)
}

// Close ends all sessions and lets no more be made. It returns when their
// programs have ended, in bounded time.
func (a *API) Close() {
	a.mu.Lock()
	a.closed = true
	all := a.sessions
	a.sessions, a.order = make(map[string]*session), nil
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(s.close)
	}
	wg.Wait()
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
