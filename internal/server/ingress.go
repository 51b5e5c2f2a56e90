package server

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Ways in which endpoints are given out.
const (
	IngressProxy    = "proxy"    // beneath the API's own path
	IngressPath     = "path"     // /<id>/<port>/…
	IngressHeader   = "header"   // OpenSandbox-Ingress-To: <id>-<port>
	IngressWildcard = "wildcard" // <id>-<port>.<base domain>
)

// Ingress configures the addresses of ports besides the API's own proxy. All the
// forms are understood whatever Mode is; the zero value is a good default.
type Ingress struct {
	// Mode is the form of the endpoints that are given out; IngressProxy when
	// empty. Signed ones have the form of a path or of a host name then.
	Mode string
	// Keys sign addresses. Without any there are no signed addresses.
	Keys *address.Keys
	// BaseDomain is the domain, or domain and port, below which each port of
	// each sandbox has a host name. Empty means that there are no host names.
	BaseDomain string
	// Port is that of a listener for Server.IngressHandler. When it is 0 the
	// forms are understood on the API's port, paths beneath /ingress.
	Port int
	// PublicHost is the host, or host and port, in addresses of the form of a
	// path or header; that of the API when empty, with Port.
	PublicHost string
	// Secure is set when clients come by TLS that ends before this server.
	Secure bool
}

const (
	// ingressPrefix is where paths of the form /<id>/<port>/… are on the API's
	// port. No route of the API begins with it.
	ingressPrefix = "/ingress"
	// ingressHealth is where load balancers ask (OpenSandbox ingress).
	ingressHealth = "/status.ok"
	// ingressPattern is what metrics and logs call the way through any form.
	ingressPattern = "/ingress/{id}/{port}"

	headerIngressTo = "Opensandbox-Ingress-To"
	// headerIngressOld is deprecated in the contract.
	headerIngressOld = "Open-Sandbox-Ingress"
	headerPoweredBy  = "Reverse-Proxy-Server-Powerby"
)

// ingress is a request in one of the forms.
type ingress struct {
	address.Ref
	origin gateway.Origin
	// prefix and path are the two parts of the request's path.
	prefix, path string
	// unsigned is how a path is read when what looks like a signature is none.
	unsigned func(in *ingress)
	// bySignature is set when the signature in the path or label is verified,
	// and byPath when it was the path's.
	bySignature, byPath bool
	// byCookie is set when nothing but the cookie admitted the request.
	byCookie bool
	// refused is set when too many wrong ones came before it.
	refused bool
	// keyless is set when there is a signature and no key of its kind, and
	// expired to when one was valid that isn't any more.
	keyless bool
	expired time.Time
}

// ingressForm reads the form of a request. It returns nil for one that has none.
// beneath is the prefix of paths.
//
// A host name below the base domain decides alone: pages there may set headers,
// and what they may reach must not be theirs to say.
func (s *Server) ingressForm(r *http.Request, path, beneath string) (*ingress, error) {
	label, named := s.hostLabel(r.Host)
	chosen, both := r.Header[headerIngressTo], r.Header[headerIngressOld]
	if len(chosen) == 0 {
		chosen = both
	}
	switch {
	case named && len(chosen) > 0 && (len(chosen) > 1 || !strings.EqualFold(chosen[0], label)):
		return nil, errIngress("the header OpenSandbox-Ingress-To names another port than the host name does; leave it out")
	case named:
		return labelForm(label, path, gateway.OriginOwn, "host name")
	case len(chosen) > 1:
		return nil, errIngress("the header OpenSandbox-Ingress-To is there more than once")
	case len(chosen) == 1:
		// Only the first label counts, as in a host name.
		label, _, _ := strings.Cut(chosen[0], ".")
		return labelForm(label, path, gateway.OriginHeader, "header OpenSandbox-Ingress-To")
	}
	rest, ok := strings.CutPrefix(path, beneath)
	if !ok || rest == "" && beneath != "" || rest != "" && rest[0] != '/' {
		return nil, nil
	}
	p, err := address.ParsePath(rest)
	if err != nil {
		return nil, errIngress("the path " + quote(rest) + " names no port: " + err.Error())
	}
	in := &ingress{Ref: p.Ref, origin: gateway.OriginShared, prefix: beneath + p.Prefix, path: p.Rest}
	in.unsigned = func(in *ingress) {
		u := p.Unsigned()
		in.Ref, in.prefix, in.path = u.Ref, beneath+u.Prefix, u.Rest
	}
	return in, nil
}

func labelForm(label, path string, origin gateway.Origin, where string) (*ingress, error) {
	ref, err := address.ParseLabel(label)
	if err != nil {
		return nil, errIngress("the " + where + " names no port: " + err.Error())
	}
	if path == "" || path[0] != '/' {
		return nil, errIngress("the path must begin with a slash")
	}
	return &ingress{Ref: ref, origin: origin, path: path}, nil
}

// hostLabel returns what a Host header has in front of the base domain. named is
// whether the host name is below it at all. Host names have no case, and may end
// in a dot.
func (s *Server) hostLabel(host string) (label string, named bool) {
	if s.baseDomain == "" {
		return "", false
	}
	host = strings.ToLower(strings.TrimSuffix(withoutPort(host), "."))
	label, ok := strings.CutSuffix(host, "."+s.baseDomain)
	return label, ok
}

// serveIngress answers a request that has one of the forms, and returns false
// for one that has none.
func (s *Server) serveIngress(r *request, path, beneath string) bool {
	in, err := s.ingressForm(r.Request, path, beneath)
	if in == nil && err == nil {
		return false
	}
	if in != nil && in.origin != gateway.OriginOwn && s.origins.apply(r.w, r.Request) {
		return true // it was a preflight
	}
	r.ingress = true
	s.carry(r, ingressPattern, func() (int, error) {
		if err != nil {
			return 0, err
		}
		return s.enterIngress(r, in)
	})
	return true
}

// IngressHandler answers requests in any of the forms on a port of its own. The
// API is not there.
func (s *Server) IngressHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, w: w, id: requestID(hr), ingress: true}
		w.Header()[headerRequestID] = []string{r.id}
		path := hr.URL.EscapedPath()
		if path == ingressHealth && len(hr.Header[headerIngressTo]) == 0 && len(hr.Header[headerIngressOld]) == 0 {
			if _, named := s.hostLabel(hr.Host); !named {
				s.ingressAlive(w)
				return
			}
		}
		if !s.serveIngress(r, path, "") {
			s.fail(r, &recorder{ResponseWriter: w}, errIngress(address.ErrPath.Error()))
		}
	})
}

// IngressServer is HTTPServer for IngressHandler.
func (s *Server) IngressServer() *http.Server {
	hs := s.HTTPServer()
	hs.Handler = s.IngressHandler()
	return hs
}

func (s *Server) ingressAlive(w http.ResponseWriter) {
	w.Header().Set("Content-Type", textPlain)
	if s.draining.Load() {
		writeBytes(w, http.StatusServiceUnavailable, []byte("shutting down"))
		return
	}
	writeBytes(w, http.StatusOK, []byte("OK"))
}

// enterIngress checks whether a request may go into a sandbox and sends it there.
func (s *Server) enterIngress(r *request, in *ingress) (int, error) {
	leave, err := enter(&s.streams, s.opts.Limits.Streams)
	if err != nil {
		return 0, err
	}
	defer leave()
	streaming(r.w)
	now := time.Now()
	s.readSignature(in, now)
	r.args = []string{in.ID}
	sb, err := s.manager.Get(in.ID)
	token := ""
	if err == nil {
		token = sb.Token
	}
	// Before anything else, so that strangers do not learn which ids exist.
	if !s.mayEnter(r.Request, in, token, now) {
		return 0, errIngressAccess(r.Header, in)
	}
	if err != nil {
		return 0, err
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return 0, errProxyMethod()
	}
	if in.byPath && in.origin == gateway.OriginOwn && s.admitBrowser(r, in, now) {
		return http.StatusSeeOther, nil
	}
	if in.path == "" && addSlash(r) {
		return http.StatusTemporaryRedirect, nil
	}
	s.renewOnAccess(r, sb)
	path := in.path
	if path == "" {
		path = "/"
	}
	if in.Port == EgressPort {
		return s.egressAPI(r, sb, path), nil
	}
	t := &gateway.Target{
		ID: in.ID, Port: in.Port, Path: path, Prefix: in.prefix, Token: token,
		Hold: sb.Status.State != sandbox.Running, Origin: in.origin, Secure: s.opts.Ingress.Secure,
		OwnPagesOnly: in.byCookie && tellsNoSite(r.Header),
	}
	if in.origin == gateway.OriginOwn {
		t.Host = r.Host
	}
	r.w.Header()[headerPoweredBy] = poweredBy
	return s.gateway.Proxy(r.w, r.Request, t)
}

// poweredBy is how clients of the contract tell an answer that came through the
// gateway (OpenSandbox ingress).
var poweredBy = []string{"OpenSandbox-ingress"}

// readSignature verifies the signature, and takes it out of the path. One that
// does not verify is the application's path.
func (s *Server) readSignature(in *ingress, now time.Time) {
	keys := s.opts.Ingress.Keys
	in.keyless = in.Signed() && !keys.Has(in.Ref)
	in.bySignature = s.isRight(in, in.Ref, now)
	in.byPath = in.bySignature && in.unsigned != nil
	if in.unsigned != nil && !in.bySignature {
		in.unsigned(in)
	}
	if in.origin == gateway.OriginShared || keys == nil {
		return
	}
	// With a label there may be no room for a signature, so it is in the path.
	expires, signature, rest, ok := address.CutSignature(in.path)
	if !ok {
		return
	}
	ref := address.Ref{ID: in.ID, Port: in.Port, Expires: expires, Signature: signature}
	if s.isRight(in, ref, now) {
		in.prefix, in.path = in.path[:len(in.path)-len(rest)], rest
		in.Ref, in.bySignature, in.byPath = ref, true, true
	}
}

// isRight verifies the signature of an address.
func (s *Server) isRight(in *ingress, ref address.Ref, now time.Time) bool {
	keys := s.opts.Ingress.Keys
	switch {
	case keys == nil || !ref.Signed():
		return false
	case !keys.Guessable(ref):
		in.expired = keys.Expired(ref, now)
		return keys.Verify(ref, now)
	case !s.guesses.may(ref.ID, now):
		in.refused = true
		return false
	case !keys.Verify(ref, now):
		s.guesses.wrong(ref.ID, now)
		return false
	}
	return true
}

// mayEnter is whether a request may go to a port: it carries the API key, the
// sandbox's token, a signature for the port or the cookie that stands for one. A
// token that is not the sandbox's is wrong, whatever else there is (OpenSandbox
// ingress).
func (s *Server) mayEnter(r *http.Request, in *ingress, token string, now time.Time) bool {
	switch {
	case !s.opts.NoAuth && s.authenticate(r) == nil:
		return true
	case len(r.Header[headerSecureAccess]) > 0:
		sent := r.Header[headerSecureAccess]
		return len(sent) == 1 && sameToken(sent[0], token)
	case in.bySignature:
		return true
	case s.opts.NoAuth && s.checkIngressOrigin(r, in):
		return true
	}
	in.byCookie = in.origin == gateway.OriginOwn && s.hasCookie(r, in, now)
	return in.byCookie
}

// checkIngressOrigin is checkOrigin for ports: on a server without
// authentication, no page but the port's own may use what everybody on this
// machine may.
func (s *Server) checkIngressOrigin(r *http.Request, in *ingress) bool {
	if in.origin != gateway.OriginOwn {
		return s.checkOrigin(r) == nil
	}
	for _, origin := range r.Header["Origin"] {
		if !isOrigin(origin, r.Host) && !hidesOrigin(r.Header, origin) && !s.origins.allows(origin) {
			return false
		}
	}
	return true
}

func isOrigin(origin, host string) bool {
	return strings.EqualFold(origin, "http://"+host) || strings.EqualFold(origin, "https://"+host)
}

func errIngress(what string) error {
	return &httpError{status: http.StatusBadRequest, code: sandbox.CodeInvalidParameter, message: "bad route: " + what + "."}
}

// errIngressAccess is the answer to a request that may not go in. It does not
// depend on whether there is such a sandbox.
func errIngressAccess(h http.Header, in *ingress) error {
	switch {
	case in.refused:
		return errTooManyGuesses()
	case in.keyless && len(h[headerSecureAccess]) == 0:
		// OpenSandbox ingress
		return &httpError{status: http.StatusServiceUnavailable, code: sandbox.CodeNotSupported,
			message: "this gateway has no key to verify the signature with. Signatures of the OpenSandbox protocol need gateway.signing_keys; ask for an address at GET /v1/sandboxes/{id}/endpoints/{port}?expires=…"}
	}
	message := "a port of a sandbox needs a signed address, the sandbox's token in the header OpenSandbox-Secure-Access, or the API key in OPEN-SANDBOX-API-KEY. " +
		"A signed address comes from GET /v1/sandboxes/{id}/endpoints/{port}?expires=… and may have expired; a sandbox that was deleted has no ports."
	if !in.expired.IsZero() {
		message = "this address expired at " + in.expired.UTC().Format(time.RFC3339) + ". Another comes from GET /v1/sandboxes/{id}/endpoints/{port}?expires=…"
	} else if in.origin == gateway.OriginOwn {
		message += " If you came with a browser, open the signed address again."
	}
	return &httpError{status: http.StatusUnauthorized, code: codeSecureAccess, message: message}
}

// writeIngressError is how errors look in these forms: plain text, and fewer
// statuses (OpenSandbox ingress).
func writeIngressError(w http.ResponseWriter, a answer) {
	switch a.status {
	case http.StatusConflict:
		a.status = http.StatusServiceUnavailable // not ready
	case http.StatusGatewayTimeout:
		a.status = http.StatusBadGateway
	}
	writeText(w, a.status, "OpenSandbox Ingress: "+a.message+" ["+a.code+"]\n")
}

// splitBase takes a base domain apart.
func splitBase(base string) (domain, port string) {
	if h, p, err := net.SplitHostPort(base); err == nil {
		return strings.ToLower(h), p
	}
	return strings.ToLower(base), ""
}

// withPort puts a port in the place of the one that an address has.
func withPort(host string, port int) string {
	return net.JoinHostPort(strings.Trim(withoutPort(host), "[]"), strconv.Itoa(port))
}

// withoutPort is a host as a Host header has it, less the port. An IPv6 address
// that has no port keeps its brackets.
func withoutPort(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}
