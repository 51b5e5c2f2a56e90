package local

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// isolatedHeader bounds the header of a request, in bytes, and
	// isolatedIdle how long a connection without one is kept: longer than the
	// gateway keeps its side.
	isolatedHeader = 256 << 10
	isolatedIdle   = 5 * time.Minute
)

// dialIsolated returns a connection on which the engine itself answers the
// routes of isolated runs. The gateway treats it like one to execd, which keeps
// streams, uploads and limits the same for both.
func (e *Engine) dialIsolated(s *shell) (net.Conn, error) {
	near, far, err := connected()
	if err != nil {
		return nil, err
	}
	l := newOneConn(far)
	srv := &http.Server{
		Handler:           (&isolatedAPI{e: e, s: s}).handler(),
		ReadHeaderTimeout: isolatedIdle,
		IdleTimeout:       isolatedIdle,
		MaxHeaderBytes:    isolatedHeader,
		BaseContext:       func(net.Listener) context.Context { return e.ctx },
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				l.Close()
			}
		},
	}
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		stop := context.AfterFunc(e.ctx, func() { srv.Close() })
		defer stop()
		_ = srv.Serve(l) // it ends with the connection
	}()
	return near, nil
}

// connected returns two ends of a connection.
func connected() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a connection: %w", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "isolated")
		c, cerr := net.FileConn(f)
		f.Close()
		ends[i], err = c, errors.Join(err, cerr)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

// oneConn is a listener that has one connection, and ends with it.
type oneConn struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
	l.conn <- c
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.addr }

// isolatedAPI answers for one sandbox.
type isolatedAPI struct {
	e *Engine
	s *shell
}

func (a *isolatedAPI) handler() http.Handler {
	mux := http.NewServeMux()
	route := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				web.Fail(w, err)
			}
		})
	}
	if a.s.behindGVisor() {
		isolated.Without(mux, noIsolated)
	} else {
		a.routes(route)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := []byte(r.Header.Get(hostapi.TokenHeader))
		if subtle.ConstantTimeCompare(given, []byte(a.s.token)) != 1 {
			web.Fail(w, web.Errorf(http.StatusUnauthorized, web.CodeUnauthorized,
				"missing or wrong access token: send the sandbox's token in the header %s", hostapi.TokenHeader))
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			refuse(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// noIsolated is why there are no isolated sessions behind gVisor.
const noIsolated = "This sandbox has no isolated sessions: its isolation is gVisor, through whose wall no namespaces are shared. Make a sandbox without the extension paddock.isolation."

func (a *isolatedAPI) routes(route func(string, func(http.ResponseWriter, *http.Request) error)) {
	const one = isolated.Prefix + "session/{session}"
	route("GET "+isolated.Prefix+"capabilities", a.capabilities)
	route("POST "+isolated.Prefix+"session", a.create)
	route("GET "+isolated.Prefix+"sessions", a.list)
	route("GET "+one, a.get)
	route("DELETE "+one, a.delete)
	route("GET "+one+"/diff", a.diff)
	route("POST "+one+"/commit", a.commit)
	route(one+"/{rest...}", a.forward)
}

// isolatedMethods are the methods of the routes that are not handed on.
var isolatedMethods = map[string]string{
	isolated.Prefix + "capabilities": "GET, HEAD", isolated.Prefix + "session": "POST", isolated.Prefix + "sessions": "GET, HEAD",
}

// refuse answers a request without a route in the form of all errors.
func refuse(w http.ResponseWriter, r *http.Request) {
	methods, ok := isolatedMethods[r.URL.Path]
	if rest, one := strings.CutPrefix(r.URL.Path, isolated.Prefix+"session/"); !ok && one && rest != "" && !strings.Contains(rest, "/") {
		methods, ok = "DELETE, GET, HEAD", true
	}
	if !ok {
		web.Fail(w, web.Errorf(http.StatusNotFound, web.CodeNotFound, "there is no route %s", r.URL.Path))
		return
	}
	w.Header().Set("Allow", methods)
	web.Fail(w, web.Errorf(http.StatusMethodNotAllowed, web.CodeMethodNotAllowed, "%s does not take %s; it takes %s", r.URL.Path, r.Method, methods))
}

func (a *isolatedAPI) capabilities(w http.ResponseWriter, _ *http.Request) error {
	web.JSON(w, http.StatusOK, isolated.Available(string(a.e.runtime.Kind()), "1"))
	return nil
}

func (a *isolatedAPI) create(w http.ResponseWriter, r *http.Request) error {
	var settings isolated.Settings
	if err := web.ReadJSON(w, r, &settings); err != nil {
		return err
	}
	if err := settings.Complete(); err != nil {
		return err
	}
	if frozen, err := a.s.group.Frozen(); err != nil || frozen {
		return web.Errorf(http.StatusConflict, web.CodeNotSupported, "the sandbox is paused; resume it first")
	}
	is, err := a.e.makeIsolated(r.Context(), a.s, &settings)
	if err != nil {
		return isolatedError(err)
	}
	web.JSON(w, http.StatusCreated, isolated.Created{ID: is.record.ID, CreatedAt: is.record.CreatedAt, Settings: is.record.Settings})
	return nil
}

// isolatedError says what of a failed making is the caller's.
func isolatedError(err error) error {
	var claim *claimError
	switch {
	case errors.Is(err, errIsolatedFull):
		return web.Busy("%v", err)
	case errors.Is(err, errIsolatedEnding):
		return web.Errorf(http.StatusConflict, web.CodeRuntime, "%v", err)
	case errors.Is(err, rootfs.ErrSource), errors.Is(err, rootfs.ErrMountPoint):
		return web.BadBody("%v", err)
	case errors.As(err, &claim):
		return web.BadBody("the session can't be started: %s", claim.answer.Message)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return web.Errorf(http.StatusInsufficientStorage, web.CodeRuntime, "there is no space left for the session's copies")
	}
	return err
}

func (a *isolatedAPI) list(w http.ResponseWriter, _ *http.Request) error {
	list := isolated.List{Sessions: []isolated.Summary{}}
	for _, is := range a.s.isolation.all() {
		list.Sessions = append(list.Sessions, isolated.Summary{ID: is.record.ID, Status: is.status(),
			CreatedAt: is.record.CreatedAt, LastRunAt: is.lastRun(), IdleRemaining: is.remaining()})
	}
	slices.SortFunc(list.Sessions, func(x, y isolated.Summary) int { return x.CreatedAt.Compare(y.CreatedAt) })
	web.JSON(w, http.StatusOK, list)
	return nil
}

func (a *isolatedAPI) find(r *http.Request) (*isolatedSession, error) {
	id := r.PathValue("session")
	if is := a.s.isolation.find(id); is != nil {
		return is, nil
	}
	return nil, web.Errorf(http.StatusNotFound, web.CodeContextNotFound,
		"isolated session %q not found: it was deleted, has been idle for too long, or never existed", id)
}

func (a *isolatedAPI) get(w http.ResponseWriter, r *http.Request) error {
	is, err := a.find(r)
	if err != nil {
		return err
	}
	web.JSON(w, http.StatusOK, isolated.State{Status: is.status(), CreatedAt: is.record.CreatedAt,
		LastRunAt: is.lastRun(), IdleRemaining: is.remaining(), Settings: is.record.Settings})
	return nil
}

func (a *isolatedAPI) delete(w http.ResponseWriter, r *http.Request) error {
	is := a.s.isolation.take(r.PathValue("session"))
	if is == nil {
		_, err := a.find(r)
		return err
	}
	if err := a.e.endIsolated(r.Context(), a.s, is); err != nil {
		a.s.isolation.giveBack(is)
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// lastRun is when the last run began.
func (is *isolatedSession) lastRun() time.Time {
	is.mu.Lock()
	defer is.mu.Unlock()
	return is.record.LastRunAt
}

// ran takes note of a run, for a restarted server too.
func (is *isolatedSession) ran() error {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.record.LastRunAt = time.Now().UTC()
	return is.save()
}

// forward hands a request about runs or files to the session's own execd.
func (a *isolatedAPI) forward(w http.ResponseWriter, r *http.Request) error {
	is, err := a.find(r)
	if err != nil {
		return err
	}
	if !is.alive() {
		return web.Errorf(http.StatusConflict, web.CodeRuntime, "isolated session %q is dead: its processes have ended; compare or commit its files, or delete it", is.record.ID)
	}
	defer is.begin()()
	if r.PathValue("rest") == "run" && r.Method == http.MethodPost {
		if err := is.ran(); err != nil {
			return err
		}
	}
	// The answer may begin while the body is still being read, if only its end.
	_ = http.NewResponseController(w).EnableFullDuplex()
	proxy := &httputil.ReverseProxy{
		Transport:     is.http,
		FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "http", Host: "execd", Path: p.In.URL.Path, RawPath: p.In.URL.RawPath, RawQuery: p.In.URL.RawQuery}
			p.Out.Host = "execd"
			p.Out.Header.Set(hostapi.TokenHeader, is.record.Token)
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				a.e.log.Debug("an isolated session did not answer", "sandbox", a.s.id, "error", err)
			}
			web.Fail(w, web.Errorf(http.StatusBadGateway, web.CodeRuntime, "the isolated session broke off before it had answered"))
		},
		ErrorLog: slog.NewLogLogger(a.e.log.With("sandbox", a.s.id).Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
	return nil
}
