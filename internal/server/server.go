package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// Manager is what the server needs of *sandbox.Manager, which documents the
// methods.
type Manager interface {
	Create(ctx context.Context, opts sandbox.CreateOptions) (s *sandbox.Sandbox, replayed bool, err error)
	Wait(ctx context.Context, id string) (*sandbox.Sandbox, error)
	Get(id string) (*sandbox.Sandbox, error)
	List(f sandbox.Filter) (items []*sandbox.Sandbox, total int)
	PatchMetadata(ctx context.Context, id string, patch map[string]*string) (*sandbox.Sandbox, error)
	Renew(ctx context.Context, id string, at time.Time) (*sandbox.Sandbox, error)
	RenewOnAccess(ctx context.Context, id string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
	Dial(ctx context.Context, id string, port int) (net.Conn, error)
	Logs(ctx context.Context, id string, opts sandbox.LogOptions) (io.ReadCloser, error)
	Events(id string) (sandbox.Events, error)
	FollowEvents(ctx context.Context, id string, after int64, give func([]sandbox.Event) error) error
	Volumes(ctx context.Context) ([]sandbox.VolumeInfo, error)
	RemoveVolume(ctx context.Context, name string) error
	Stats() sandbox.ManagerStats
	EnforcesPolicies() bool
	HoldPolicy(ctx context.Context, id string, use func(context.Context, *sandbox.HeldPolicy) error) error
	SetPolicy(ctx context.Context, id string, version int64, edit func(*policy.Policy) (*policy.Policy, error)) (*sandbox.Sandbox, error)
}

// Images is what the server needs of *image.Store, which documents the methods.
type Images interface {
	List(ctx context.Context) ([]*image.Image, error)
	Pull(ctx context.Context, ref string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(image.Progress)) (*image.Image, error)
	Import(ctx context.Context, archive io.Reader, name string) ([]*image.Image, error)
	Export(ctx context.Context, ref string, w io.Writer) error
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, all bool) (image.PruneResult, error)
}

// Options configure a Server. Manager, and either APIKey or NoAuth, are
// required.
type Options struct {
	Manager Manager
	// Images may be nil; the image routes then answer 501.
	Images Images
	// Vaults keep the credentials of sandboxes. They may be nil; creates with
	// credentialProxy are then refused, and the credential routes answer 501.
	Vaults *vault.Vaults
	// PlainCredentials takes credentials over plain HTTP from other machines,
	// for a server behind a proxy that has TLS.
	PlainCredentials bool
	// APIKey is what callers send in OPEN-SANDBOX-API-KEY.
	APIKey string
	// NoAuth lets everybody do everything who can connect.
	NoAuth bool
	// Collectors have further metrics.
	Collectors []prometheus.Collector
	// PublicHost is the host, or host and port, in the addresses of endpoints;
	// the request's own Host when empty.
	PublicHost string
	// MaxTimeout bounds the timeout of a create; 0 for no bound.
	MaxTimeout time.Duration
	// Isolation is that of a create which asks for none; empty for a container.
	Isolation sandbox.Isolation
	// Origins are those whose pages may call the API from a browser, "*" for
	// any. None by default. Credentials that a browser sends by itself are
	// never allowed; the API does not use them.
	Origins []string
	// Version is shown at /version.
	Version string
	// Logger defaults to slog.Default.
	Logger *slog.Logger
	// H2C accepts HTTP/2 without TLS.
	H2C bool
	// Ingress are the other ways to ports of sandboxes.
	Ingress Ingress
	// Limits that are 0 have the values that are noted with them.
	Limits Limits
}

// Limits bound what callers can make the server do at once.
type Limits struct {
	// Body is the size of a JSON body in bytes; 1 MiB.
	Body int64
	// Requests are those in flight on the API, streams of logs and images
	// included; 2048.
	Requests int64
	// Streams are those in flight to ports in sandboxes; 16384.
	Streams int64
	// Held are those of them that wait for their sandbox to start; 1024.
	Held int
	// HoldTimeout bounds that wait; 5 minutes.
	HoldTimeout time.Duration
	// StreamIdle is how long a connection into a sandbox may be silent; 1 hour.
	StreamIdle time.Duration
	// PerSandbox are the streams to one sandbox; 4096.
	PerSandbox int
	// RatePerSandbox are the streams to one sandbox that may begin in a second;
	// any number.
	RatePerSandbox float64
	// Header is the size of a request's header in bytes; 64 KiB.
	Header int
}

func (l Limits) withDefaults() Limits {
	if l.Body <= 0 {
		l.Body = 1 << 20
	}
	if l.Requests <= 0 {
		l.Requests = 2048
	}
	if l.Streams <= 0 {
		l.Streams = 16384
	}
	if l.Header <= 0 {
		l.Header = 64 << 10
	}
	return l
}

// Server answers the API. Make it with New.
type Server struct {
	opts     Options
	log      *slog.Logger
	manager  Manager
	images   Images
	gateway  *gateway.Gateway
	keyHash  [sha256.Size]byte
	routes   *node
	metrics  *metrics
	origins  origins
	requests atomic.Int64
	streams  atomic.Int64
	draining atomic.Bool

	guesses guesses
	// baseDomain and basePort are Ingress.BaseDomain.
	baseDomain, basePort string
}

// New makes a Server. Close it when done.
func New(opts Options) (*Server, error) {
	switch {
	case opts.Manager == nil:
		return nil, errors.New("server: a manager is required")
	case opts.APIKey == "" && !opts.NoAuth:
		return nil, errors.New("server: an API key is required, unless authentication is switched off")
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Version == "" {
		opts.Version = "0.0.0-dev"
	}
	opts.Limits = opts.Limits.withDefaults()
	s := &Server{opts: opts, log: opts.Logger, manager: opts.Manager, images: opts.Images,
		keyHash: sha256.Sum256([]byte(opts.APIKey))}
	var err error
	if s.origins, err = parseOrigins(opts.Origins); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.baseDomain, s.basePort = splitBase(opts.Ingress.BaseDomain)
	if opts.Ingress.Mode == IngressWildcard && s.baseDomain == "" {
		return nil, errors.New("server: endpoints as host names need a base domain")
	}
	s.gateway, err = gateway.New(gateway.Options{
		Dialer: opts.Manager, Gone: s.gone, Logger: opts.Logger,
		MaxHeld: opts.Limits.Held, HoldTimeout: opts.Limits.HoldTimeout, StreamIdle: opts.Limits.StreamIdle,
		PerSandbox: opts.Limits.PerSandbox, RatePerSandbox: opts.Limits.RatePerSandbox,
	})
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.routes = s.table()
	s.metrics = newMetrics(opts.Manager, s.gateway, opts.Collectors)
	return s, nil
}

// gone tells the gateway which connections lead nowhere any more.
func (s *Server) gone(id string) bool {
	sb, err := s.manager.Get(id)
	return err != nil || sb.Status.State.Ended()
}

// Handler answers every request.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// Bounds of the HTTP server, against clients that connect and say nothing.
const (
	readHeaderTimeout = 10 * time.Second
	keepAliveTimeout  = 2 * time.Minute
)

// HTTPServer returns a net/http server for Handler with bounds on what clients
// may do before their request is known. The caller gives it a listener.
func (s *Server) HTTPServer() *http.Server {
	hs := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       keepAliveTimeout,
		MaxHeaderBytes:    s.opts.Limits.Header,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if s.opts.H2C {
		hs.Protocols = new(http.Protocols)
		hs.Protocols.SetHTTP1(true)
		hs.Protocols.SetHTTP2(true)
		hs.Protocols.SetUnencryptedHTTP2(true)
	}
	return hs
}

// Drain makes /health answer 503, closes the listeners of the servers and lets
// requests in flight finish until the context ends; what is left then is broken
// off. Tunnels are broken off when everything else is done.
func (s *Server) Drain(ctx context.Context, servers ...*http.Server) error {
	s.draining.Store(true)
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, hs := range servers {
		wg.Go(func() {
			if err := hs.Shutdown(ctx); err != nil {
				errs[i] = fmt.Errorf("waiting for requests in flight: %w", err)
				hs.Close()
			}
		})
	}
	wg.Wait()
	s.gateway.Close()
	return errors.Join(errs...)
}

// Close breaks every connection into a sandbox off and ends the server's own
// work. The manager and the image store stay open, they are the caller's.
func (s *Server) Close() { s.gateway.Close() }
