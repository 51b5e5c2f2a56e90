package execd

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/files"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/execd/metrics"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// defaultRunTimeout is that of a foreground run (OpenSandbox isolated runs);
	// maxRunTimeout is the longest, in seconds.
	defaultRunTimeout = 300 * time.Second
	maxRunTimeout     = 30 * 24 * 3600
)

// isolatedSession is what an execd serves that was claimed for an isolated
// session. Foreground runs share one shell, so that what one leaves behind is
// there for the next; background runs are commands of their own.
type isolatedSession struct {
	id string
	// shell is the id of the session's shell, made by the first run.
	mu    sync.Mutex
	shell string
	// lent are the variables that the last run got for itself. Only the run
	// that has the shell's turn uses it.
	lent []string
}

// claimSession is a claim for an isolated session.
func (s *Server) claimSession(c *hostapi.Claim) (*box, error) {
	switch {
	case c.Token == "" || c.Session.ID == "":
		return nil, web.BadBody("the claim needs a token and the session's id")
	case len(c.Entrypoint) > 0 || c.PreStart != nil || len(c.Periodic) > 0:
		return nil, web.BadBody("a session has no entrypoint and no hooks")
	}
	if err := guest.CheckEnv(c.Env); err != nil {
		return nil, web.BadBody("env: %v", err)
	}
	// The root has been switched since execd started.
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	id, err := sessionIdentity(c)
	if err != nil {
		return nil, refuse(hostapi.CodeUserNotFound, "the session's user can't be used: %v", err)
	}
	g := guest.New(c.Env, id, c.Cwd)
	return &box{token: []byte(c.Token), guest: g, limits: metrics.Limits{}, session: &isolatedSession{id: c.Session.ID}}, nil
}

func sessionIdentity(c *hostapi.Claim) (account.Identity, error) {
	if c.Session.UID == nil {
		return account.System.Resolve(c.User)
	}
	var gid *uint32
	if c.Session.GID != nil {
		n := uint32(*c.Session.GID)
		gid = &n
	}
	return account.System.ByUID(uint32(*c.Session.UID), gid)
}

// isolatedRoutes adds what only the engine's socket shows: the routes of a
// session, and what the engine needs to make one.
func (s *Server) isolatedRoutes(mux *http.ServeMux) {
	mux.Handle("GET "+hostapi.BasePath, web.Handler(s.handleBase))
	mux.HandleFunc("GET "+hostapi.BusyPath, func(w http.ResponseWriter, _ *http.Request) {
		web.JSON(w, http.StatusOK, hostapi.Busy{Running: s.commands.Running()})
	})
	const at = isolated.Prefix + "session/{session}"
	mux.Handle("POST "+at+"/run", web.Handler(s.isolatedRun))
	mux.Handle("GET "+at+"/runs/{run}", web.Handler(s.isolatedStatus))
	mux.Handle("GET "+at+"/runs/{run}/logs", web.Handler(s.isolatedLogs))
	tree := http.NewServeMux()
	files.New(s.guest).Routes(tree)
	serve := web.Handler(func(w http.ResponseWriter, r *http.Request) error {
		own, err := s.session(r)
		if err != nil {
			return err
		}
		inner := r.Clone(r.Context())
		inner.URL.Path = strings.TrimPrefix(r.URL.Path, isolated.Prefix+"session/"+own.id)
		inner.URL.RawPath = ""
		return dispatch(tree, w, inner)
	})
	for _, dir := range []string{"files", "directories"} {
		mux.Handle(at+"/"+dir, serve)
		mux.Handle(at+"/"+dir+"/", serve)
	}
}

// session returns the one that this execd serves, if the request means it.
func (s *Server) session(r *http.Request) (*isolatedSession, error) {
	own := s.box.Load().session
	id := r.PathValue("session")
	if own == nil || own.id != id {
		return nil, web.Errorf(http.StatusNotFound, web.CodeContextNotFound, "isolated session %q not found: it was deleted, has been idle for too long, or never existed", id)
	}
	return own, nil
}

// handleBase is GET hostapi.BasePath.
func (s *Server) handleBase(w http.ResponseWriter, _ *http.Request) error {
	g := s.guest()
	list, _ := g.Environ(g.Identity, nil)
	env := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	user := itoa(g.Identity.UID)
	if g.Identity.Name != "" {
		user = g.Identity.Name
	}
	web.JSON(w, http.StatusOK, hostapi.Base{Env: env, User: user})
	return nil
}

// isolatedRun is POST …/run.
func (s *Server) isolatedRun(w http.ResponseWriter, r *http.Request) error {
	own, err := s.session(r)
	if err != nil {
		return err
	}
	var req isolated.RunRequest
	if err := web.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if strings.TrimSpace(req.Code) == "" || strings.ContainsRune(req.Code, 0) {
		return web.BadBody("code is empty or contains a NUL byte; send shell text")
	}
	if err := guest.CheckEnv(req.Envs); err != nil {
		return web.BadBody("envs: %v", err)
	}
	timeout := defaultRunTimeout
	if req.Timeout != nil {
		if *req.Timeout < 1 || *req.Timeout > maxRunTimeout {
			return web.BadBody("timeout_seconds is %d; it must be from 1 to %d", *req.Timeout, maxRunTimeout)
		}
		timeout = time.Duration(*req.Timeout) * time.Second
	}
	if req.Background {
		return s.isolatedBackground(w, own, &req)
	}
	shell, err := own.open(s)
	if err != nil {
		return err
	}
	return s.sessions.RunText(w, r, shell, own.id, timeout, func() string { return own.text(&req) })
}

// open returns the session's shell.
func (own *isolatedSession) open(s *Server) (string, error) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.shell != "" && s.sessions.Has(own.shell) {
		return own.shell, nil
	}
	id, err := s.sessions.Open()
	if err == nil {
		own.shell = id
	}
	return id, err
}

func (s *Server) isolatedBackground(w http.ResponseWriter, own *isolatedSession, req *isolated.RunRequest) error {
	c := command.Request{Command: &req.Code, Envs: req.Envs}
	if req.Timeout != nil {
		ms := *req.Timeout * 1000
		c.Timeout = &ms
	}
	run, err := s.commands.Begin(&c)
	if err != nil {
		return err
	}
	web.JSON(w, http.StatusAccepted, isolated.BackgroundRun{Session: own.id, ID: runID(run.ID), StartedAt: run.Started.UTC()})
	return nil
}

// isolatedStatus is GET …/runs/{run}.
func (s *Server) isolatedStatus(w http.ResponseWriter, r *http.Request) error {
	own, err := s.session(r)
	if err != nil {
		return err
	}
	id := r.PathValue("run")
	state, err := s.commands.State(commandID(id))
	if err != nil {
		return noRun(id)
	}
	web.JSON(w, http.StatusOK, isolated.RunStatus{
		Session: own.id, ID: id, Running: state.Running, ExitCode: state.Code, Error: state.Error,
		StartedAt: state.Started.UTC(), FinishedAt: state.Finished,
	})
	return nil
}

// isolatedLogs is GET …/runs/{run}/logs.
func (s *Server) isolatedLogs(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.session(r); err != nil {
		return err
	}
	id, cursor := r.PathValue("run"), r.URL.Query().Get("cursor")
	if strings.Trim(cursor, "0123456789") != "" || len(cursor) > 18 {
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "cursor is %q; it must be a number of bytes, as the header %s of the last answer has it", cursor, isolated.CursorHeader)
	}
	if _, err := s.commands.State(commandID(id)); err != nil {
		return noRun(id)
	}
	return s.commands.LogsAs(w, commandID(id), cursor, isolated.CursorHeader)
}

func noRun(id string) error {
	return web.Errorf(http.StatusNotFound, web.CodeCommandNotFound, "run %q not found: the id is unknown, or the run ended and was forgotten", id)
}

// runID writes the id of a command as the contract has those of runs.
func runID(id string) string {
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

func commandID(run string) string { return strings.ReplaceAll(run, "-", "") }
