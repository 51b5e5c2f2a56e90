package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// maxResponseHeader bounds the header of a sandbox's answer. Go's own
	// server accepts 1 MiB of request header; no program needs as much.
	maxResponseHeader = 256 << 10
	// expectTimeout is how long a request body waits for "100 Continue" from a
	// program that may not know it; as long as curl waits.
	expectTimeout = time.Second
	// execdIdle and userIdle are how long a connection without a request is
	// kept. execd keeps its side open for longer than that. Other programs may
	// not: uvicorn closes after 5 s, and a request that is sent just then is
	// lost, so the gateway is faster.
	execdIdle = 60 * time.Second
	userIdle  = 4 * time.Second
	// A request with a body of bulkBody bytes or of unknown length goes over a
	// connection with a large buffer, so that one chunk is one write. All
	// others have small ones, because thousands of them may be idle.
	bulkBody        = 1 << 20
	bulkWriteBuffer = 64 << 10
	// bulkSendBuffer is how much the kernel may hold of a body that the sandbox
	// has not read, in bytes; it counts about twice that. The default of Unix
	// sockets, 208 KiB, makes both sides stop and go.
	bulkSendBuffer = 512 << 10
	// sweepInterval is how soon the connections of a sandbox that went without
	// notice are closed.
	sweepInterval = 10 * time.Second
)

// Dialer connects to TCP ports inside sandboxes; *sandbox.Manager is one. Dial
// waits while the sandbox is being made, and answers a *sandbox.Error when
// there is nothing to connect to. It may be called from any goroutine.
type Dialer interface {
	Dial(ctx context.Context, id string, port int) (net.Conn, error)
}

// Options configure a Gateway. Dialer is required; the zero value of everything
// else is a good default.
type Options struct {
	Dialer Dialer
	// Gone reports whether a sandbox has ended. It is asked every few seconds
	// about sandboxes with open connections.
	Gone func(id string) bool
	// MaxHeld bounds the requests that wait for a sandbox to start; 1024 when 0.
	MaxHeld int
	// HoldTimeout bounds that wait; 5 minutes when 0.
	HoldTimeout time.Duration
	// DialTimeout bounds connecting to a running sandbox; 10 s when 0.
	DialTimeout time.Duration
	// ResponseTimeout bounds the time between a request's last byte and the
	// header of its answer; 10 minutes when 0. What follows has no time limit.
	ResponseTimeout time.Duration
	// StreamIdle is after what time without a byte in either direction a
	// connection is closed; 1 hour when 0.
	StreamIdle time.Duration
	// PerSandbox bounds the requests and tunnels that are open to one sandbox;
	// 4096 when 0.
	PerSandbox int
	// RatePerSandbox bounds the requests to one sandbox, per second. As many may
	// come at once. 0 is no bound.
	RatePerSandbox float64
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// Target is a port inside a sandbox and how a request gets there.
type Target struct {
	ID   string
	Port int
	// Path is the rest of the request's path, as the client wrote it, with a
	// leading slash.
	Path string
	// Prefix is what was in front of it, without a slash at the end.
	Prefix string
	// Token is the sandbox's, for execd.
	Token string
	// Hold is set when the sandbox is not running yet.
	Hold bool
	// Origin says whose the credentials in the request are.
	Origin Origin
	// Host is the Host header for the sandbox; localhost and the port when empty.
	Host string
	// Secure is set when the client came by TLS that ended before this server.
	Secure bool
	// OwnPagesOnly has browsers keep the answer from pages of other origins.
	OwnPagesOnly bool
}

func (t *Target) execd() bool { return t.Port == sandbox.ExecdPort }

// isolatedPrefix is before the routes of isolated runs in execd's API
// (OpenSandbox isolated runs). The host answers them.
const isolatedPrefix = "/v1/isolated/"

// dialPort is the port to connect to.
func (t *Target) dialPort() int {
	if t.execd() && strings.HasPrefix(t.Path, isolatedPrefix) {
		return sandbox.IsolatedPort
	}
	return t.Port
}

// engineOnly is whether a request is for the routes of execd that are between it
// and the engine. The connection to it is the engine's own, so execd serves them
// there. Spellings that execd reads otherwise are refused, too.
func (t *Target) engineOnly() bool {
	if !t.execd() {
		return false
	}
	p, err := url.PathUnescape(t.Path)
	if err != nil {
		p = t.Path
	}
	p = path.Clean(p)
	return p == sandbox.PrivatePath || strings.HasPrefix(p, sandbox.PrivatePath+"/")
}

// Gateway carries requests into sandboxes. Its methods may be called from any
// goroutine.
type Gateway struct {
	opts   Options
	dialer Dialer
	log    *slog.Logger
	start  time.Time
	conns  connSet
	limits limits
	held   atomic.Int64
	execd  *http.Transport
	user   *http.Transport
	bulk   *http.Transport // for large bodies
	stop   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once
}

// New makes a Gateway. Close it when done.
func New(opts Options) (*Gateway, error) {
	if opts.Dialer == nil {
		return nil, errors.New("gateway: a dialer is required")
	}
	opts = withDefaults(opts)
	g := &Gateway{opts: opts, dialer: opts.Dialer, log: opts.Logger, start: time.Now(), stop: make(chan struct{})}
	g.conns.by = make(map[string]map[*conn]struct{})
	g.limits.init(opts.PerSandbox, opts.RatePerSandbox)
	g.execd = g.transport(execdIdle, 64)
	g.user = g.transport(userIdle, 32)
	g.bulk = g.transport(userIdle, 4)
	g.bulk.WriteBufferSize = bulkWriteBuffer
	g.bulk.DialContext = g.dialBulk
	g.wg.Go(g.sweepLoop)
	return g, nil
}

func withDefaults(o Options) Options {
	if o.MaxHeld <= 0 {
		o.MaxHeld = 1024
	}
	if o.HoldTimeout <= 0 {
		o.HoldTimeout = 5 * time.Minute
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.ResponseTimeout <= 0 {
		o.ResponseTimeout = 10 * time.Minute
	}
	if o.StreamIdle <= 0 {
		o.StreamIdle = time.Hour
	}
	if o.PerSandbox <= 0 {
		o.PerSandbox = 4096
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// transport makes a connection pool. It is keyed by the URL's host, which is
// the sandbox's id and the port, and ids are never used again: a connection
// can't serve another sandbox.
func (g *Gateway) transport(idle time.Duration, perTarget int) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            g.dialContext,
		DisableCompression:     true, // bytes pass as they are
		MaxIdleConns:           8192,
		MaxIdleConnsPerHost:    perTarget,
		IdleConnTimeout:        idle,
		ResponseHeaderTimeout:  g.opts.ResponseTimeout,
		ExpectContinueTimeout:  expectTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		Protocols:              &protocols,
	}
}

func (g *Gateway) dialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	if h, ok := ctx.Value(handoffKey{}).(*handoff); ok {
		if c := h.take(); c != nil {
			return c, nil
		}
	}
	id, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &dialError{err}
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, &dialError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, g.opts.DialTimeout)
	defer cancel()
	c, err := g.dial(ctx, id, port)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dialBulk is dialContext for large bodies.
func (g *Gateway) dialBulk(ctx context.Context, network, addr string) (net.Conn, error) {
	nc, err := g.dialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if c, ok := nc.(*conn); ok {
		c.enlarge(bulkSendBuffer)
	}
	return nc, nil
}

// Proxy sends a request to its target and streams the answer to w. An error
// means that nothing was written, and is a *sandbox.Error, an *Error or
// ErrClientGone. When the answer breaks off after its beginning, Proxy panics
// with http.ErrAbortHandler, which makes net/http break the client's connection
// off as well. It returns the status that was answered, 0 with an error.
func (g *Gateway) Proxy(w http.ResponseWriter, r *http.Request, t *Target) (status int, err error) {
	ctx := r.Context()
	if t.Origin == OriginShared && preflight(w, r) {
		return http.StatusNoContent, nil
	}
	if t.engineOnly() {
		return 0, errNoRoute(t)
	}
	leave, err := g.limits.enter(t.ID)
	if err != nil {
		return 0, err
	}
	defer leave()
	if t.Hold {
		h, err := g.hold(ctx, t)
		if err != nil {
			return 0, err
		}
		defer h.drop()
		ctx = context.WithValue(ctx, handoffKey{}, h)
	}
	if protocol := upgradeOf(r.Header); protocol != "" {
		return g.upgrade(ctx, w, r, t, protocol)
	}
	return g.exchange(ctx, w, r, t)
}

// hold waits until the sandbox runs and returns a connection to it. The wait is
// here and not in the transport, because the transport's dials outlive the
// requests that wanted them.
func (g *Gateway) hold(ctx context.Context, t *Target) (*handoff, error) {
	if g.held.Add(1) > int64(g.opts.MaxHeld) {
		g.held.Add(-1)
		return nil, errTooManyHeld()
	}
	defer g.held.Add(-1)
	limited, cancel := context.WithTimeout(ctx, g.opts.HoldTimeout)
	defer cancel()
	c, err := g.dial(limited, t.ID, t.dialPort())
	if err != nil {
		var dial *dialError
		errors.As(err, &dial)
		switch {
		case ctx.Err() != nil:
			return nil, ErrClientGone
		case limited.Err() != nil:
			return nil, errHeldTooLong(t, g.opts.HoldTimeout)
		}
		return nil, dialFailure(t, dial.err)
	}
	h := new(handoff)
	h.conn.Store(c)
	return h, nil
}

// outgoing makes the request for the sandbox.
func (g *Gateway) outgoing(ctx context.Context, w http.ResponseWriter, r *http.Request, t *Target, body *requestBody) *http.Request {
	// RawPath is sent as it is as long as it is an encoding of Path.
	path, err := url.PathUnescape(t.Path)
	if err != nil {
		path = t.Path
	}
	requestID := ""
	if ids := w.Header()[headerRequestID]; len(ids) > 0 {
		requestID = ids[0]
	}
	out := &http.Request{
		Method: r.Method,
		URL: &url.URL{Scheme: "http", Host: t.ID + ":" + strconv.Itoa(t.dialPort()), Path: path, RawPath: t.Path,
			// HTTP/2 lets a space through, which would end the request's target.
			RawQuery: strings.ReplaceAll(r.URL.RawQuery, " ", "%20"), ForceQuery: r.URL.ForceQuery},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        outgoingHeader(r, t, requestID),
		Host:          t.host(),
		ContentLength: r.ContentLength,
	}
	if body != nil {
		out.Body = body
	}
	return out.WithContext(ctx)
}

func (g *Gateway) roundTrip(out *http.Request, t *Target) (*http.Response, error) {
	switch {
	case out.Body != nil && (out.ContentLength < 0 || out.ContentLength >= bulkBody):
		return g.bulk.RoundTrip(out)
	case t.execd():
		return g.execd.RoundTrip(out)
	}
	return g.user.RoundTrip(out)
}

// Stats is a snapshot for metrics.
type Stats struct {
	// Connections are open towards sandboxes, pooled ones included.
	Connections int
	// Held requests wait for their sandbox to start.
	Held int64
}

// Stats counts what is open now.
func (g *Gateway) Stats() Stats {
	return Stats{Connections: g.conns.count(), Held: g.held.Load()}
}

func (g *Gateway) sweepLoop() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
			g.sweep()
			g.limits.sweep(time.Now())
		}
	}
}

// Close breaks every connection off and ends the gateway's own work. Requests
// that come later fail.
func (g *Gateway) Close() {
	g.once.Do(func() {
		close(g.stop)
		g.conns.mu.Lock()
		g.conns.closed = true
		g.conns.mu.Unlock()
		for _, id := range g.conns.ids() {
			g.Evict(id)
		}
		g.execd.CloseIdleConnections()
		g.user.CloseIdleConnections()
		g.bulk.CloseIdleConnections()
		g.wg.Wait()
	})
}
