package server

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Where a route exists.
const (
	underV1 = 1 << iota
	bare
	open // no key needed
	both = underV1 | bare
)

// table lists every route but those into sandboxes, which proxy.go recognises.
func (s *Server) table() *node {
	root := new(node)
	add := func(where int, pattern string, methods map[string]handler) {
		r := newRoute(pattern, methods)
		r.open = where&open != 0
		n := root.add(pattern)
		if where&underV1 != 0 {
			n.v1 = r
		}
		if where&bare != 0 {
			n.bare = r
		}
	}
	type on = map[string]handler

	add(both, "/sandboxes", on{"GET": s.listSandboxes, "POST": s.createSandbox})
	add(both, "/sandboxes/{id}", on{"GET": s.getSandbox, "DELETE": s.deleteSandbox})
	add(both, "/sandboxes/{id}/metadata", on{"PATCH": s.patchMetadata})
	add(both, "/sandboxes/{id}/renew-expiration", on{"POST": s.renewSandbox})
	add(both, "/sandboxes/{id}/pause", on{"POST": s.pauseSandbox})
	add(both, "/sandboxes/{id}/resume", on{"POST": s.resumeSandbox})
	add(both, "/sandboxes/{id}/endpoints/{port}", on{"GET": s.getEndpoint})
	add(both, "/sandboxes/{id}/networkpolicy", on{"GET": s.networkPolicy, "POST": s.networkPolicy,
		"PUT": s.networkPolicy, "PATCH": s.networkPolicy, "DELETE": s.networkPolicy})
	add(both, "/sandboxes/{id}/logs", on{"GET": s.streamLogs})
	add(both, "/sandboxes/{id}/events", on{"GET": s.listEvents})
	add(both, "/sandboxes/{id}/diagnostics/logs", on{"GET": s.diagnosticLogs})
	add(both, "/sandboxes/{id}/diagnostics/events", on{"GET": s.diagnosticEvents})
	add(both, "/sandboxes/{id}/diagnostics/inspect", on{"GET": s.inspectSandbox})
	add(both, "/sandboxes/{id}/diagnostics/summary", on{"GET": s.summarizeSandbox})

	add(both, "/images", on{"GET": s.listImages, "POST": s.pullImage, "DELETE": s.removeImage})
	add(both, "/images/import", on{"POST": s.importImages})
	add(both, "/images/export", on{"GET": s.exportImage})
	add(both, "/images/prune", on{"POST": s.pruneImages})
	add(both, "/volumes", on{"GET": s.listVolumes})
	add(both, "/volumes/{name}", on{"DELETE": s.removeVolume})

	add(underV1, "/metrics/events", on{"POST": s.reportMetricsEvent})
	add(bare|open, "/health", on{"GET": s.health, "HEAD": s.health})
	add(bare|open, "/version", on{"GET": s.version, "HEAD": s.version})
	add(bare|open, "/openapi.json", on{"GET": s.openAPI, "HEAD": s.openAPI})
	add(bare, "/metrics", on{"GET": s.serveMetrics})

	// Parts of the contract that are not built, with the codes that it has
	// for servers without them.
	no := notImplemented("SNAPSHOT::NOT_IMPLEMENTED", "Snapshots")
	add(both, "/snapshots", on{"GET": no})
	add(both, "/snapshots/{id}", on{"GET": no, "DELETE": no})
	add(both, "/sandboxes/{id}/snapshots", on{"POST": no})
	no = notImplemented("FSB::API_NOT_SUPPORTED", "Templates")
	add(both, "/templates", on{"GET": no, "POST": no})
	add(both, "/templates/{id}", on{"GET": no, "DELETE": no})
	no = notImplemented("KUBERNETES::POOL_NOT_SUPPORTED", "Pools")
	add(both, "/pools", on{"GET": no, "POST": no})
	add(both, "/pools/{name}", on{"GET": no, "PUT": no, "DELETE": no})
	return root
}

func notImplemented(code, what string) handler {
	return func(*request) error {
		return sandbox.Errorf(sandbox.KindNotImplemented, code, "%s are not available on this server.", what)
	}
}

// slowRequest is from when on an API request is worth a line in the log.
// Streams, and creates that were asked to wait, take as long as they take.
const slowRequest = 5 * time.Second

// serve is where every request begins.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	req := &request{Request: r, w: w, id: requestID(r)}
	w.Header()[headerRequestID] = []string{req.id}
	path := r.URL.EscapedPath()
	if s.opts.Ingress.Port == 0 && s.serveIngress(req, path, ingressPrefix) {
		return
	}
	if s.origins.apply(w, r) {
		return // it was a preflight
	}
	if err := s.checkOrigin(r); err != nil {
		s.fail(req, &recorder{ResponseWriter: w}, err)
		return
	}
	if t, ok := parseProxyPath(path); ok {
		s.carry(req, t.pattern(), func() (int, error) { return s.proxy(req, t) })
		return
	}
	rec := &recorder{ResponseWriter: w}
	req.w = rec
	start := time.Now()
	defer s.finish(req, rec, start)
	if err := s.dispatch(req, path); err != nil {
		s.fail(req, rec, err)
	}
}

// dispatch finds the handler of an API request and runs it.
func (s *Server) dispatch(r *request, path string) error {
	r.route, r.mount, r.args = s.routes.find(path)
	if r.route == nil || !r.route.open {
		if err := s.authenticate(r.Request); err != nil {
			return err
		}
	}
	leave, err := enter(&s.requests, s.opts.Limits.Requests)
	if err != nil {
		return err
	}
	defer leave()
	if r.route == nil {
		return s.noRoute(r, path)
	}
	h := r.route.methods[r.Method]
	if h == nil {
		return errMethod(r.route, r.Method)
	}
	return h(r)
}

// enter counts a request among those in flight, of which there may be limit,
// until leave is called.
func enter(inFlight *atomic.Int64, limit int64) (leave func(), err error) {
	if inFlight.Add(1) > limit {
		inFlight.Add(-1)
		return nil, errOverloaded()
	}
	return func() { inFlight.Add(-1) }, nil
}

// finish ends every API request: it turns a panic into an answer, counts, and
// writes the log.
func (s *Server) finish(r *request, rec *recorder, start time.Time) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			s.observe(r, rec.status, start)
			panic(p)
		}
		s.panicked(r, rec, p)
	}
	s.observe(r, rec.status, start)
}

func (s *Server) observe(r *request, status int, start time.Time) {
	pattern := "unknown"
	if r.route != nil {
		pattern = r.route.pattern
	}
	took := time.Since(start)
	s.metrics.observe(pattern, r.Method, status, took)
	s.accessLog(r, pattern, status, took)
}

// carry is the way into sandboxes: it runs what sends a request there, counts,
// and writes the log.
func (s *Server) carry(r *request, pattern string, send func() (int, error)) {
	start := time.Now()
	status := 0
	defer func() {
		p := recover()
		if p != nil && p != http.ErrAbortHandler {
			s.log.Error("panic while proxying", "request", r.id, "panic", p, "stack", stack())
			p = http.ErrAbortHandler
		}
		took := time.Since(start)
		s.metrics.observe(pattern, r.Method, status, took)
		s.accessLog(r, pattern, status, took)
		if p != nil {
			panic(p)
		}
	}()
	status, err := send()
	if err == gateway.ErrClientGone {
		status = statusClientGone
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		rec := &recorder{ResponseWriter: r.w}
		s.fail(r, rec, err)
		status = rec.status
	}
}
