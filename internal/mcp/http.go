package mcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	// idleSession is after how long without a request a session ends, and its
	// sandbox with it.
	idleSession = 30 * time.Minute
	// headerTimeout bounds a request's header, idleConnection a connection
	// without requests.
	headerTimeout  = 10 * time.Second
	idleConnection = 2 * time.Minute
	// drainTimeout bounds the wait for answers when the server stops.
	drainTimeout = 5 * time.Second
	maxHeader    = 64 << 10

	// headerAPIKey is what the API's clients send (OpenSandbox API).
	headerAPIKey = "OPEN-SANDBOX-API-KEY"
)

// ServeHTTP serves sessions over streamable HTTP at every path until ctx ends,
// which stops the whole server and is no error. A request must carry the API key
// of the server's client, as a bearer token or in the API's own header, unless
// noAuth is set; then whoever reaches the listener may use the sandboxes, web
// pages excepted.
func (s *Server) ServeHTTP(ctx context.Context, l net.Listener, noAuth bool) error {
	handler := mcp.NewStreamableHTTPHandler(
		func(*http.Request) *mcp.Server { return s.mcp },
		&mcp.StreamableHTTPOptions{SessionTimeout: idleSession, MaxRequestBodyBytes: maxMessage, Logger: slog.New(slog.DiscardHandler)})
	srv := &http.Server{
		// A page in a browser could reach a listener on loopback.
		Handler:           http.NewCrossOriginProtection().Handler(s.authenticated(handler, noAuth)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleConnection,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Calls end first: streams have no end of their own.
	s.Close()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed
	return err
}

// authenticated lets requests with the API key through.
func (s *Server) authenticated(next http.Handler, noAuth bool) http.Handler {
	if noAuth {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, ok := keyOf(r)
		if !ok || !s.o.Client.HasAPIKey(key) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="paddock"`)
			http.Error(w, "The API key is missing or wrong. Send it as \"Authorization: Bearer KEY\" or in the header "+headerAPIKey+".", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// keyOf returns the API key that a request carries; false when it carries none,
// or more than one.
func keyOf(r *http.Request) (string, bool) {
	own, bearer := r.Header.Values(headerAPIKey), r.Header.Values("Authorization")
	if len(own)+len(bearer) != 1 {
		return "", false
	}
	if len(own) == 1 {
		return own[0], own[0] != ""
	}
	scheme, key, _ := strings.Cut(bearer[0], " ")
	key = strings.TrimSpace(key)
	return key, strings.EqualFold(scheme, "Bearer") && key != ""
}
