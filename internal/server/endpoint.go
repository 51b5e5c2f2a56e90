package server

import (
	"crypto/subtle"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// endpointWait is how long the answer to a question for an endpoint waits for a
// sandbox that is still being made. Most are made in milliseconds; the few that
// can't be are told apart here, where clients look at the reason, and not by the
// health checks that follow, of which they look at success alone.
const endpointWait = time.Second

// getEndpoint tells where a port can be reached: always through the gateway. It
// answers for a sandbox that is still being made, because clients ask right
// after the create and take any error for the end (behaviour.md 23.2). For one
// that has ended it says why, so that they need not find out by polling.
func (s *Server) getEndpoint(r *request) error {
	q, err := r.query()
	if err != nil {
		return err
	}
	port, err := parsePort(r.args[1])
	if err != nil {
		return err
	}
	throughProxy, err := queryBool(q, "use_server_proxy")
	if err != nil {
		return err
	}
	expires, err := s.queryExpires(q, throughProxy, time.Now())
	if err != nil {
		return err
	}
	sb, err := s.get(r)
	if err != nil {
		return err
	}
	if sb.Status.State == sandbox.Pending {
		if sb, err = s.await(r.Context(), sb, endpointWait); err != nil {
			return err
		}
	}
	if sb.Status.State.Ended() {
		return sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotRunning, "Sandbox %q is %s (%s) and has no endpoints: %s",
			sb.ID, sb.Status.State, sb.Status.Reason, sb.Status.Message)
	}
	e, err := s.endpoint(r, sb, port, throughProxy, expires)
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, e)
	return nil
}

// ignoresHeaders matches the first releases of the SDKs for Python and for the
// JVM, which do not send the headers of an endpoint. They get the sandbox's
// token in its address.
var ignoresHeaders = regexp.MustCompile(`^OpenSandbox-(Python-SDK/0\.1\.[0-4]|Kotlin-SDK/1\.0\.0)$`)

// tokenMark separates a sandbox's id from its token in the path of an endpoint.
// Neither has it.
const tokenMark = "."

// publicHost is the address under which the client can reach this server.
func (s *Server) publicHost(r *http.Request) string {
	if s.opts.PublicHost != "" {
		return strings.TrimRight(s.opts.PublicHost, "/")
	}
	if r.Host != "" {
		return r.Host
	}
	// HTTP/1.0 without Host.
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return addr.String()
	}
	return "localhost"
}

func parsePort(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || !digits(text) || n < 1 || n > 65535 {
		return 0, invalid(sandbox.CodeInvalidPort, "The port in the path is %s; it must be a number from 1 to 65535.", quote(text))
	}
	return n, nil
}

// proxyPattern is what metrics and logs call the way into sandboxes.
const proxyPattern = "/sandboxes/{id}/proxy/{port}"

// tunnelPattern is what they call the way of any protocol over TCP.
const tunnelPattern = "/sandboxes/{id}/tunnel/{port}"

// proxyPath is the path of a request to a port, in its escaped form.
type proxyPath struct {
	id, port string
	tunnel   bool   // to the port itself; there is no rest
	token    string // from the path, if it has one
	prefix   string // up to and with the port
	rest     string // what follows, with its slash; "/" for nothing
}

// pattern is the one of the route.
func (p *proxyPath) pattern() string {
	if p.tunnel {
		return tunnelPattern
	}
	return proxyPattern
}

// parseProxyPath recognises [/v1]/sandboxes/{id}/proxy/{port}[/…] and
// [/v1]/sandboxes/{id}/tunnel/{port}. The path is
// neither cleaned nor unescaped: it belongs to the program in the sandbox.
func parseProxyPath(path string) (p proxyPath, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v1/sandboxes/")
	if !ok {
		if rest, ok = strings.CutPrefix(path, "/sandboxes/"); !ok {
			return p, false
		}
	}
	if p.id, rest, ok = strings.Cut(rest, "/"); !ok {
		return p, false
	}
	p.id, p.token, _ = strings.Cut(p.id, tokenMark)
	if p.port, ok = strings.CutPrefix(rest, "tunnel/"); ok && !strings.Contains(p.port, "/") {
		p.tunnel = true
		return p, true
	}
	if rest, ok = strings.CutPrefix(rest, "proxy/"); !ok {
		return p, false
	}
	p.port = rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		p.port, p.rest = rest[:i], rest[i:]
	}
	p.prefix = path[:len(path)-len(p.rest)]
	if p.rest == "" {
		p.rest = "/"
	}
	return p, true
}

// proxy checks whether a request may go into a sandbox and sends it there.
func (s *Server) proxy(r *request, p proxyPath) (int, error) {
	if s.streams.Add(1) > s.opts.Limits.Streams {
		s.streams.Add(-1)
		return 0, errOverloaded()
	}
	defer s.streams.Add(-1)
	streaming(r.w)
	r.args = []string{p.id}
	id, err := r.sandboxID()
	var sb *sandbox.Sandbox
	if err == nil {
		sb, err = s.manager.Get(id)
	}
	token := ""
	if err == nil {
		token = sb.Token
	}
	// Before anything else, so that strangers do not learn which ids exist.
	if !s.mayReach(r.Request, token) && !sameToken(p.token, token) {
		return 0, errSecureAccess()
	}
	if err != nil {
		return 0, err
	}
	port, err := parsePort(p.port)
	if err != nil {
		return 0, err
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return 0, errProxyMethod()
	}
	if p.tunnel {
		return s.tunnel(r, sb, port)
	}
	s.renewOnAccess(r, sb)
	if port == EgressPort {
		return s.egressAPI(r, sb, p.rest), nil
	}
	origin := gateway.OriginAPI
	if p.token != "" || s.opts.NoAuth {
		// A browser can open this address. Its page must not be one of the
		// API's own, least of all where that asks for no key.
		origin = gateway.OriginShared
		if p.prefix == r.URL.EscapedPath() && addSlash(r) {
			return http.StatusTemporaryRedirect, nil
		}
	}
	return s.gateway.Proxy(r.w, r.Request, &gateway.Target{
		ID: id, Port: port, Path: p.rest, Prefix: p.prefix, Token: token,
		Hold: sb.Status.State != sandbox.Running, Origin: origin, Secure: s.opts.Ingress.Secure,
	})
}

// tunnel connects the client to a port, for any protocol over TCP.
func (s *Server) tunnel(r *request, sb *sandbox.Sandbox, port int) (int, error) {
	if r.Method != http.MethodGet {
		return 0, &httpError{status: http.StatusMethodNotAllowed, code: codeMethod, allow: http.MethodGet,
			message: "A tunnel is asked for with the method GET."}
	}
	if port == EgressPort {
		return 0, invalid(sandbox.CodeInvalidPort, "Port %d is the sandbox's egress API, which is reached through the proxy only.", port)
	}
	s.renewOnAccess(r, sb)
	return s.gateway.Tunnel(r.w, r.Request, &gateway.Target{ID: sb.ID, Port: port, Hold: sb.Status.State != sandbox.Running})
}

// sameToken compares in constant time. No token is never the same as another.
func sameToken(given, token string) bool {
	return token != "" && subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}

const proxyAllow = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"

// renewOnAccess prolongs sandboxes that asked for it (behaviour.md 17).
func (s *Server) renewOnAccess(r *request, sb *sandbox.Sandbox) {
	if _, asked := sb.Spec.Extensions[extensionRenew]; !asked {
		return
	}
	if v := r.Header[headerAccessRenew]; len(v) > 0 && v[0] == "skip" {
		return
	}
	if err := s.manager.RenewOnAccess(r.Context(), sb.ID); err != nil {
		// The request itself is none the worse for it.
		s.log.Warn("a sandbox could not be renewed on access", "sandbox", sb.ID, "error", err)
	}
}
