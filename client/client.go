package client

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// DefaultServer is where `paddock serve` listens unless told otherwise.
	DefaultServer = "http://127.0.0.1:8080"

	defaultUserAgent      = "paddock-go-client"
	defaultRequestTimeout = 60 * time.Second
	defaultMaxRetries     = 3
	defaultStreamIdle     = 30 * time.Second

	headerAPIKey      = "OPEN-SANDBOX-API-KEY" // OpenSandbox API
	headerRequestID   = "X-Request-ID"
	headerIdempotency = "Idempotency-Key"
	execdPort         = 44772 // OpenSandbox execd API
)

// Options configure a Client. Only Server is often needed.
type Options struct {
	// Server is the base URL, "http://host:port" or "https://host/prefix",
	// with or without the trailing "/v1". "host:port" means http. Empty means
	// DefaultServer.
	Server string
	// APIKey is sent with every request when it is not empty.
	APIKey string
	// HTTPClient replaces the built-in one, whose transport keeps connections
	// alive and has large buffers. Its Timeout should be zero, because it
	// would cut streams. Redirects are never followed: they would carry the
	// API key to another host.
	HTTPClient *http.Client
	// UserAgent is sent with every request; empty means "paddock-go-client".
	UserAgent string
	// RequestTimeout bounds each call that does not stream, retries included.
	// Zero means 60 s, negative means no bound but the context's.
	RequestTimeout time.Duration
	// MaxRetries is how often a repeatable request is tried again. Zero means
	// 3, negative means never.
	MaxRetries int
	// StreamIdleTimeout is how long a command's stream may be silent, its
	// heartbeats included, before the client asks whether the sandbox still
	// runs. Zero means 30 s.
	StreamIdleTimeout time.Duration
}

// Client talks to one paddock server. It is safe for concurrent use. The zero
// value is not usable; call New.
type Client struct {
	http       *http.Client
	base       string // without a trailing slash, with "/v1"
	root       string // base without "/v1"
	apiKey     string
	userAgent  string
	timeout    time.Duration
	maxRetries int
	streamIdle time.Duration
	// scope is in front of the routes of files; empty for the sandbox's user.
	scope string
}

// As returns a client whose calls about files and directories in a sandbox act
// as this user and group of the sandbox, with the user's supplementary groups,
// and not as the sandbox's own user. It shares everything else, connections
// included, with c.
func (c *Client) As(uid, gid uint32) *Client {
	scoped := *c
	scoped.scope = fmt.Sprintf("/v1/filesystem/%d/%d", uid, gid)
	return &scoped
}

// New returns a Client. It makes no request; a server that cannot be reached
// shows in the first call.
func New(o Options) (*Client, error) {
	root, err := parseServer(o.Server)
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(o.APIKey, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return nil, errors.New("the API key holds a control character, such as a line end: pass the key alone")
	}
	c := &Client{
		root:       root,
		base:       root + "/v1",
		apiKey:     o.APIKey,
		userAgent:  o.UserAgent,
		timeout:    o.RequestTimeout,
		maxRetries: o.MaxRetries,
		streamIdle: o.StreamIdleTimeout,
	}
	if c.userAgent == "" {
		c.userAgent = defaultUserAgent
	}
	if c.timeout == 0 {
		c.timeout = defaultRequestTimeout
	}
	if c.maxRetries == 0 {
		c.maxRetries = defaultMaxRetries
	}
	if c.streamIdle <= 0 {
		c.streamIdle = defaultStreamIdle
	}
	hc := &http.Client{Transport: newTransport()}
	if o.HTTPClient != nil {
		copied := *o.HTTPClient
		hc = &copied
	}
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = hc
	return c, nil
}

// Server returns the base URL in use, without "/v1".
func (c *Client) Server() string { return c.root }

// HasAPIKey reports whether key is the API key that this client sends, and not
// empty. It takes the same time for every key of a length.
func (c *Client) HasAPIKey(key string) bool {
	return key != "" && subtle.ConstantTimeCompare([]byte(key), []byte(c.apiKey)) == 1
}

// SendsAPIKey reports whether this client has an API key.
func (c *Client) SendsAPIKey() bool { return c.apiKey != "" }

// Close drops idle connections. Calls in flight go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func parseServer(s string) (string, error) {
	if s == "" {
		s = DefaultServer
	}
	in := s
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("server address %q is not a URL: use http://host:port or https://host:port", in)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("server address %q has the scheme %q: only http and https are spoken", in, u.Scheme)
	case u.Host == "":
		return "", fmt.Errorf("server address %q names no host: use http://host:port", in)
	case u.User != nil:
		return "", errors.New("the server address holds a user or password: pass the API key separately")
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("server address %q has a query or a fragment: give only scheme, host and path", in)
	}
	return strings.TrimSuffix(strings.TrimRight(u.Scheme+"://"+u.Host+u.EscapedPath(), "/"), "/v1"), nil
}

// newTransport keeps many connections alive, because one client often drives
// hundreds of sandboxes through one server, and reads and writes in large
// pieces so that files move at the speed of the loopback.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           1024,
		MaxIdleConnsPerHost:    256,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        256 << 10,
		MaxResponseHeaderBytes: 256 << 10,
	}
}
