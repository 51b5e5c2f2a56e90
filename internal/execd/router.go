package execd

import (
	"net/http"
	"path"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/files"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/execd/metrics"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// surface is the API as one listener shows it.
type surface struct {
	server *Server
	// host is true on the engine's socket.
	host bool
}

// ServeHTTP implements http.Handler.
func (f *surface) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.server.idle.begin()
	defer f.server.idle.end()
	web.Handler(f.serve).ServeHTTP(w, r)
}

func (f *surface) serve(w http.ResponseWriter, r *http.Request) error {
	s := f.server
	b := s.box.Load()
	// Where others than the engine can connect, there is no such route after it.
	if f.host && r.URL.Path == hostapi.ClaimPath && (b == nil || s.cfg.Key == "") {
		if r.Method != http.MethodPost {
			return wrongMethod(w, r, http.MethodPost)
		}
		return s.handleClaim(w, r)
	}
	if b == nil {
		if f.host && r.URL.Path == "/ping" {
			return nil
		}
		return web.NotClaimed()
	}
	if err := b.authorize(r); err != nil {
		return err
	}
	if strings.HasPrefix(r.URL.Path, "/proxy/") {
		// Not through the mux: the path is somebody else's and may not be
		// cleaned.
		s.forward.ServeHTTP(w, r)
		return nil
	}
	mux := s.inside
	if f.host {
		mux = s.outside
	}
	return dispatch(mux, forClient(w, r), r)
}

// dispatch serves a request from mux, in whose place it answers when there is
// no route: errors of execd have one shape.
func dispatch(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) error {
	if path.Clean(r.URL.Path) != r.URL.Path {
		// The mux would redirect, which clients don't follow.
		return noRoute(r)
	}
	h, pattern := mux.Handler(r)
	if pattern != "" {
		// Again through the mux: it sets the path's values.
		mux.ServeHTTP(w, r)
		return nil
	}
	refusal := refusal{header: make(http.Header)}
	h.ServeHTTP(&refusal, r)
	if refusal.status == http.StatusMethodNotAllowed {
		return wrongMethod(w, r, refusal.header.Get("Allow"))
	}
	return noRoute(r)
}

func noRoute(r *http.Request) error {
	return web.Errorf(http.StatusNotFound, web.CodeNotFound, "there is no route %s", r.URL.Path)
}

func wrongMethod(w http.ResponseWriter, r *http.Request, allowed string) error {
	w.Header().Set("Allow", allowed)
	return web.Errorf(http.StatusMethodNotAllowed, web.CodeMethodNotAllowed, "%s does not take %s; it takes %s", r.URL.Path, r.Method, allowed)
}

// refusal records what the mux would have answered.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) Write(p []byte) (int, error) { return len(p), nil }
func (r *refusal) WriteHeader(status int)      { r.status = status }

// routes adds what every listener serves.
func (s *Server) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /ping", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("POST /command", web.Handler(s.commands.Run))
	mux.Handle("DELETE /command", web.Handler(s.interrupt))
	// One pattern for two routes, which as patterns would be ambiguous.
	mux.Handle("GET /command/{first}/{second}", web.Handler(s.inspect))
	s.sessions.Routes(mux)
	s.code.Routes(mux)
	s.ptys.Routes(mux)
	isolated.Routes(mux)
	files.New(s.guest).Routes(mux)
	s.trees.Routes(mux)
	metrics.New(func() metrics.Limits { return s.box.Load().limits }, "").Routes(mux)
}

// interrupt is DELETE /command?id=, for commands and sessions alike
// (OpenSandbox execd API).
func (s *Server) interrupt(w http.ResponseWriter, r *http.Request) error {
	id := r.URL.Query().Get("id")
	if id == "" {
		return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter id is missing; it names the command to end")
	}
	if s.sessions.Has(id) {
		return s.sessions.Delete(w, id)
	}
	if s.code.Has(id) {
		return s.code.Interrupt(w, r, id)
	}
	return s.commands.Interrupt(w, id)
}

// inspect is GET /command/status/{id} and GET /command/{id}/logs.
func (s *Server) inspect(w http.ResponseWriter, r *http.Request) error {
	first, second := r.PathValue("first"), r.PathValue("second")
	switch {
	case first == "status":
		return s.commands.Status(w, second)
	case second == "logs":
		return s.commands.Logs(w, first, r.URL.Query().Get("cursor"))
	}
	return noRoute(r)
}
