package server

import (
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// endpointWait is how long the answer to a question for an endpoint waits for a
// sandbox that is still being made. Most are made in milliseconds; the few that
// can't be are told apart here, where clients look at the reason, and not by the
// health checks that follow, of which they look at success alone.
const endpointWait = time.Second

// getEndpoint tells where a port can be reached: always through the gateway. It
// answers for a sandbox that is still being made, because clients ask right
// after the create and take any error for the end. For one
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

// queryExpires reads until when a signed address is wanted, in Unix seconds; 0
// when none is.
func (s *Server) queryExpires(q url.Values, throughProxy bool, now time.Time) (uint64, error) {
	if !q.Has("expires") {
		return 0, nil
	}
	text := q.Get("expires")
	at, err := strconv.ParseUint(text, 10, 64)
	switch {
	case err != nil || len(text) > 1 && text[0] == '0':
		return 0, invalid(sandbox.CodeInvalidParameter, "expires is %s; it must be a time in Unix seconds, a whole number from 0 to 18446744073709551615 without leading zeros.", quote(text))
	case at <= uint64(now.Unix()):
		return 0, invalid(sandbox.CodeInvalidParameter, "expires is %d, which is not in the future: it is now %d.", at, now.Unix())
	case throughProxy:
		return 0, invalid(sandbox.CodeInvalidParameter, "expires and use_server_proxy=true exclude one another: the server's proxy takes no signed addresses. Leave one of them out.")
	case s.opts.Ingress.Keys == nil:
		return 0, invalid(sandbox.CodeNotSupported, "This server has no key to sign addresses with. Leave expires out; the endpoint is valid while the sandbox lives.")
	}
	return at, nil
}

// endpoint is the address of a port in the form that is configured, signed when
// expires is not 0.
func (s *Server) endpoint(r *request, sb *sandbox.Sandbox, port int, throughProxy bool, expires uint64) (api.Endpoint, error) {
	in := &s.opts.Ingress
	headers := make(map[string]string)
	if port == EgressPort {
		headers[headerEgressAuth] = sb.EgressToken
	}
	signature := ""
	if expires != 0 {
		signature = in.Keys.Sign(sb.ID, port, expires)
	} else {
		headers["OpenSandbox-Secure-Access"] = sb.Token
	}
	old := expires == 0 && ignoresHeaders.MatchString(r.UserAgent())
	mode := in.Mode
	if mode == "" {
		mode = IngressProxy
	}
	switch {
	case throughProxy, old:
		mode = IngressProxy
	case mode == IngressProxy && expires != 0 && s.baseDomain != "":
		mode = IngressWildcard
	case mode == IngressProxy && expires != 0:
		mode = IngressPath
	}
	label, until := address.Label(sb.ID, port), address.FormatExpires(expires)
	e := api.Endpoint{Headers: headers}
	switch mode {
	case IngressPath:
		e.Endpoint = s.ingressHost(r.Request) + s.ingressPath() + "/" + sb.ID + "/" + strconv.Itoa(port)
		if signature != "" {
			e.Endpoint += "/" + until + "/" + signature
		}
	case IngressHeader:
		e.Endpoint = s.ingressHost(r.Request)
		if signature != "" {
			label += "-" + until + "-" + signature
		}
		headers["OpenSandbox-Ingress-To"] = label
	case IngressWildcard:
		rest := ""
		switch {
		case signature != "" && in.Keys.Short():
			label += "-" + until + "-" + signature
		case signature != "":
			// There is no room for it in the label.
			rest = "/" + until + "/" + signature
		}
		if len(label) > address.MaxLabel {
			return e, invalid(sandbox.CodeInvalidParameter, "expires is %d, which is too far away for an address with a host name. Ask for a time before the year 10000.", expires)
		}
		e.Endpoint = label + "." + s.baseHost(r.Request) + rest
	default:
		who := sb.ID
		if old {
			who += tokenMark + sb.Token
		}
		e.Endpoint = s.publicHost(r.Request) + r.mount + "/sandboxes/" + who + "/proxy/" + strconv.Itoa(port)
	}
	return e, nil
}

// ingressPath is what precedes paths of the form /<id>/<port>.
func (s *Server) ingressPath() string {
	if s.opts.Ingress.Port != 0 {
		return ""
	}
	return ingressPrefix
}

// ingressHost is where clients reach the forms of a path and a header.
func (s *Server) ingressHost(r *http.Request) string {
	in := &s.opts.Ingress
	switch {
	case in.PublicHost != "":
		return strings.TrimRight(in.PublicHost, "/")
	case in.Port != 0:
		return withPort(s.publicHost(r), in.Port)
	}
	return s.publicHost(r)
}

// baseHost is the base domain with the port at which clients reach host names
// below it: its own, else that of the other forms.
func (s *Server) baseHost(r *http.Request) string {
	port := s.basePort
	if port == "" {
		if _, p, err := net.SplitHostPort(s.ingressHost(r)); err == nil {
			port = p
		}
	}
	if port == "" {
		return s.baseDomain
	}
	return s.baseDomain + ":" + port
}

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
