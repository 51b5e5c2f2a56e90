package execd

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/files"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/metrics"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/proxy"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxHeader bounds a request's header, in bytes.
	maxHeader = 64 << 10
	// headerTimeout bounds how long a request's header may take on TCP, where
	// the sandbox's own processes may connect.
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
	// box is nil until claimed.
	box  atomic.Pointer[box]
	idle idler
}

// box is a claimed sandbox with all that serves it.
type box struct {
	token    []byte
	commands *command.Manager
	files    *files.API
	metrics  *metrics.API
	proxy    *proxy.API
	// forward serves /proxy/.
	forward http.Handler
	// inside and outside are what TCP and the engine's socket show.
	inside, outside *http.ServeMux
	// entry is nil when there is no entrypoint.
	entry *entrypoint
}

// New returns a server. Nothing is served before Serve.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}
}

// newBox makes what serves a claimed sandbox. entry may be nil.
func (s *Server) newBox(g *guest.Guest, token string, limits metrics.Limits, entry *entrypoint) *box {
	b := &box{
		token:    []byte(token),
		commands: command.NewManager(g, s.cfg.Procs),
		files:    files.New(func() *guest.Guest { return g }),
		metrics:  metrics.New(func() metrics.Limits { return limits }, ""),
		proxy:    proxy.New(),
		inside:   http.NewServeMux(),
		outside:  http.NewServeMux(),
		entry:    entry,
	}
	forward := http.NewServeMux()
	b.proxy.Routes(forward)
	b.forward, _ = forward.Handler(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/proxy/"}})
	b.routes(b.inside)
	b.routes(b.outside)
	b.hostRoutes(b.outside)
	return b
}

// ClaimStandalone opens the API without an engine. An empty token lets every
// request in.
func (s *Server) ClaimStandalone(g *guest.Guest, token string) {
	s.box.Store(s.newBox(g, token, metrics.Limits{}, nil))
}

// Serve serves both listeners until ctx ends. It fails when a listener that was
// given does.
func (s *Server) Serve(ctx context.Context) error {
	var servers []*http.Server
	failed := make(chan error, 2)
	run := func(l net.Listener, host bool) {
		srv := &http.Server{
			Handler:        &surface{server: s, host: host},
			MaxHeaderBytes: maxHeader,
			ErrorLog:       slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
			// Handlers of a foreground command need to know at once when the
			// client goes; nothing else depends on it.
			BaseContext: func(net.Listener) context.Context { return ctx },
		}
		if !host {
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
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
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
