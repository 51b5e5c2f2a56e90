package execd

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hooks"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/metrics"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/proxy"
	"github.com/paddock-sandbox/paddock/internal/execd/pty"
	"github.com/paddock-sandbox/paddock/internal/execd/session"
	"github.com/paddock-sandbox/paddock/internal/execd/tree"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxHeader bounds a request's header, in bytes.
	maxHeader = 64 << 10
	// headerTimeout bounds how long a request's header may take on TCP, where
	// the sandbox's own processes may connect, whoever else does.
	headerTimeout = 30 * time.Second
	// idleTimeout closes unused connections on TCP. The engine keeps one
	// connection on the Unix socket for the life of the sandbox.
	idleTimeout = 5 * time.Minute
	// maxConns bounds connections on TCP.
	maxConns = 4096
)

// Config is what execd is started with.
type Config struct {
	// Host is the engine's listener; nil when there is no engine.
	Host net.Listener
	// Key, unless it is empty, is what a claim must carry.
	Key string
	// TCP is where the API is served inside the sandbox; nil for nowhere.
	TCP net.Listener
	// Log records the entrypoint's output; nil drops it.
	Log *entrylog.Writer
	// Procs must be running.
	Procs *process.Table
	// Logger is for faults of execd itself.
	Logger *slog.Logger
}

// Server is one execd.
type Server struct {
	cfg Config
	// claim serialises claims.
	claim sync.Mutex
	// box is nil until claimed. No route is served before.
	box  atomic.Pointer[box]
	idle idler

	commands *command.Manager
	sessions *session.API
	code     *code.API
	ptys     *pty.API
	trees    *tree.API
	proxy    *proxy.API
	// forward serves /proxy/.
	forward http.Handler
	// inside and outside are what TCP and the engine's socket show.
	inside, outside *http.ServeMux
	// interpreter hands Serve the listener that a claim opens.
	interpreter chan net.Listener
}

// box is a claimed sandbox.
type box struct {
	token  []byte
	guest  *guest.Guest
	limits metrics.Limits
	// entry and hooks are nil when there is no entrypoint.
	entry *entrypoint
	hooks *hooks.Runner
	// session is nil but in the execd of an isolated session.
	session *isolatedSession
}

// New returns a server. Nothing is served before Serve. All that can be made
// ahead is made here: a claim is on the way of every create, while this is done
// when nobody waits.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, proxy: proxy.New(), inside: http.NewServeMux(), outside: http.NewServeMux(),
		interpreter: make(chan net.Listener, 1)}
	s.commands = command.NewManager(s.guest, cfg.Procs)
	s.sessions = session.New(session.Options{Guest: s.guest, Table: cfg.Procs})
	s.code = code.New(code.Options{Guest: s.guest, Table: cfg.Procs, Commands: s.commands})
	s.trees = tree.New(s.guest)
	s.ptys = pty.New(pty.Options{Guest: s.guest, Table: cfg.Procs})
	forward := http.NewServeMux()
	s.proxy.Routes(forward)
	s.forward, _ = forward.Handler(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/proxy/"}})
	s.routes(s.inside)
	s.routes(s.outside)
	s.hostRoutes(s.outside)
	warmUp()
	return s
}

// guest returns the sandbox; only claimed routes ask.
func (s *Server) guest() *guest.Guest { return s.box.Load().guest }

// warmUp does once what is slow the first time: encoding/json looks at types.
func warmUp() {
	var c hostapi.Claim
	_ = json.Unmarshal([]byte(`{"env":{"A":"b"},"entrypoint":["a"]}`), &c)
	var r command.Request
	_ = json.Unmarshal([]byte(`{"command":"a","envs":{"A":"b"}}`), &r)
}

// ClaimStandalone opens the API without an engine. An empty token lets every
// request in.
func (s *Server) ClaimStandalone(g *guest.Guest, token string) {
	s.box.Store(&box{guest: g, token: []byte(token)})
}

// Serve serves both listeners, and the one that a claim may open, until ctx
// ends. It fails when a listener does.
func (s *Server) Serve(ctx context.Context) error {
	var servers []*http.Server
	failed := make(chan error, 3)
	run := func(l net.Listener, host bool) {
		srv := &http.Server{
			Handler:        &surface{server: s, host: host},
			MaxHeaderBytes: maxHeader,
			ErrorLog:       slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
			// Handlers of a foreground command need to know at once when the
			// client goes; nothing else depends on it.
			BaseContext: func(net.Listener) context.Context { return ctx },
		}
		if _, tcp := l.(*net.TCPListener); host && !tcp {
			l = sendingListener{l}
		} else {
			srv.ReadHeaderTimeout = headerTimeout
			srv.IdleTimeout = idleTimeout
			l = limitConns(l, maxConns)
		}
		servers = append(servers, srv)
		go func() { failed <- srv.Serve(l) }()
	}
	if s.cfg.Host != nil {
		run(s.cfg.Host, true)
	}
	if s.cfg.TCP != nil {
		run(s.cfg.TCP, false)
	}
	err := func() error {
		for {
			select {
			case l := <-s.interpreter:
				run(l, false)
			case err := <-failed:
				return err
			case <-ctx.Done():
				return nil
			}
		}
	}()
	for _, srv := range servers {
		srv.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// authorize checks the token of a request in constant time.
func (b *box) authorize(r *http.Request) error {
	if len(b.token) == 0 {
		return nil
	}
	given := []byte(r.Header.Get(hostapi.TokenHeader))
	if subtle.ConstantTimeCompare(given, b.token) == 1 {
		return nil
	}
	return web.Errorf(http.StatusUnauthorized, web.CodeUnauthorized,
		"missing or wrong access token: send the sandbox's token in the header %s", hostapi.TokenHeader)
}

// limitConns closes connections that come when there are max already.
func limitConns(l net.Listener, max int64) net.Listener {
	return &limitedListener{Listener: l, max: max}
}

type limitedListener struct {
	net.Listener
	max  int64
	open atomic.Int64
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) > l.max {
			l.open.Add(-1)
			c.Close()
			continue
		}
		tc, ok := c.(*net.TCPConn)
		if !ok {
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
		}
		return &limitedTCP{TCPConn: tc, release: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// limitedTCP keeps the methods of a TCP connection, ReadFrom (sendfile) and
// CloseWrite among them.
type limitedTCP struct {
	*net.TCPConn
	release func()
}

func (c *limitedTCP) Close() error {
	c.release()
	return c.TCPConn.Close()
}
