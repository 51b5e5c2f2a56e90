package server

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// tokenMark separates a sandbox's id from its token in the path of an endpoint.
// Neither has it.
const tokenMark = "."

func parsePort(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || !digits(text) || n < 1 || n > 65535 {
		return 0, invalid(sandbox.CodeInvalidPort, "The port in the path is %s; it must be a number from 1 to 65535.", quote(text))
	}
	return n, nil
}

// What metrics and logs call the ways into sandboxes: that of HTTP, and that of
// any protocol over TCP.
const (
	proxyPattern  = "/sandboxes/{id}/proxy/{port}"
	tunnelPattern = "/sandboxes/{id}/tunnel/{port}"
)

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
// [/v1]/sandboxes/{id}/tunnel/{port}. The path is neither cleaned nor unescaped:
// it belongs to the program in the sandbox.
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
	leave, err := enter(&s.streams, s.opts.Limits.Streams)
	if err != nil {
		return 0, err
	}
	defer leave()
	streaming(r.w)
	r.args = []string{p.id}
	sb, err := s.get(r)
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
		ID: sb.ID, Port: port, Path: p.rest, Prefix: p.prefix, Token: token,
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

// renewOnAccess prolongs sandboxes that asked for it (OpenSandbox renew on access).
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

const proxyAllow = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"

func errProxyMethod() error {
	return &httpError{status: http.StatusMethodNotAllowed, code: codeMethod, allow: proxyAllow,
		message: "Methods CONNECT and TRACE are not passed on. Allowed: " + proxyAllow + "."}
}
