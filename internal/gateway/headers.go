package gateway

import (
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Headers of the API, in the form in which net/http keeps them.
const (
	headerAPIKey       = "Open-Sandbox-Api-Key"
	headerSecureAccess = "Opensandbox-Secure-Access"
	headerAccessRenew  = "Opensandbox-Access-Renew"
	headerExecdToken   = "X-Execd-Access-Token"
	headerRequestID    = "X-Request-Id"
	headerEgressAuth   = "Opensandbox-Egress-Auth"
	headerIngressTo    = "Opensandbox-Ingress-To"
	headerIngressOld   = "Open-Sandbox-Ingress"
)

// dropsRequestHeader is whether a header of the client ends at the gateway
// (OpenSandbox server proxy). The execd token is dropped for every port: some clients
// put the API key there, and a sandbox must never see that.
func dropsRequestHeader(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Host",
		"Authorization", "Cookie", "Forwarded", "X-Real-Ip",
		headerAPIKey, headerSecureAccess, headerAccessRenew, headerExecdToken, headerRequestID,
		headerEgressAuth, headerIngressTo, headerIngressOld:
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-")
}

// dropsResponseHeader is whether a header of the sandbox's answer ends here.
func dropsResponseHeader(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Server", headerRequestID:
		return true
	}
	return false
}

// outgoingHeader makes the header that the sandbox sees. Values are shared with
// the client's header and must not be changed.
func outgoingHeader(r *http.Request, t *Target, requestID string) http.Header {
	h := make(http.Header, len(r.Header)+5)
	named := connectionOptions(r.Header)
	for k, v := range r.Header {
		if !dropsRequestHeader(k) && !contains(named, k) {
			h[k] = v
		}
	}
	if _, ok := h["User-Agent"]; !ok {
		// Present but empty keeps the transport from adding its own.
		h["User-Agent"] = []string{""}
	}
	t.Origin.requestCredentials(h, r.Header)
	proto := "http"
	if t.secure(r) {
		proto = "https"
	}
	// One array for all the values that are set here.
	set := [5]string{proto, r.Host, requestID, t.Token}
	h["X-Forwarded-Proto"] = set[0:1:1]
	h["X-Forwarded-Host"] = set[1:2:2]
	if requestID != "" {
		h[headerRequestID] = set[2:3:3]
	}
	if t.execd() {
		h[headerExecdToken] = set[3:4:4]
	}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		set[4] = ip
		h["X-Forwarded-For"] = set[4:5:5]
	}
	return h
}

// connectionOptions are the headers that Connection names, and which therefore
// concern one hop only, in canonical form.
func connectionOptions(h http.Header) []string {
	var names []string
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, http.CanonicalHeaderKey(name))
			}
		}
	}
	return names
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// upgradeOf returns the protocol that a header asks to change to, or "".
func upgradeOf(h http.Header) string {
	up := h["Upgrade"]
	if len(up) == 0 || !contains(connectionOptions(h), "Upgrade") {
		return ""
	}
	return strings.Join(up, ", ")
}

// copyResponseHeader puts the sandbox's header into the client's. What the
// server has set before gives way, but for the request id.
func copyResponseHeader(dst, src http.Header, t *Target, r *http.Request) {
	named := connectionOptions(src)
	for k, v := range src {
		switch {
		case dropsResponseHeader(k) || reachesBeyond(k) || t.Origin.alsoDropped(k) || contains(named, k):
		case k == "Set-Cookie":
			dst[k] = append(dst[k], t.responseCookies(v)...)
		case k == "Location":
			dst[k] = t.locations(v, r.Host, t.secure(r))
		case k == "Vary":
			dst[k] = append(dst[k], v...)
		default:
			dst[k] = v
		}
	}
	if _, typed := dst["Content-Type"]; !typed {
		// Present but empty keeps net/http from guessing one.
		dst["Content-Type"] = nil
	}
	if t.Origin == OriginShared {
		protectPage(dst, r)
	}
	if t.OwnPagesOnly {
		keepToOwnPages(dst)
	}
}

// locations makes redirects to the program's own root lead through the gateway,
// also where the program made an address of them: of the Host that the gateway
// gave it, or of the client's, which it is told as X-Forwarded-Host. Where the
// program sends a client that came without TLS on to https, that stays: made
// relative, it would lead back to the same answer.
func (t *Target) locations(values []string, clientHost string, secure bool) []string {
	out := make([]string, len(values))
	for i, v := range values {
		for _, host := range [...]string{t.host(), clientHost} {
			for _, scheme := range [...]string{"http://", "https://"} {
				if scheme == "https://" && host == clientHost && !secure {
					continue
				}
				if rest, ok := strings.CutPrefix(v, scheme+host); ok && host != "" && (rest == "" || rest[0] == '/' || rest[0] == '?') {
					v = "/" + strings.TrimLeft(rest, "/")
				}
			}
		}
		if strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "//") {
			v = t.Prefix + v
		}
		out[i] = v
	}
	return out
}

// secure is whether the client came by TLS.
func (t *Target) secure(r *http.Request) bool { return r.TLS != nil || t.Secure }

// host is the Host header for the sandbox. Programs that check it, such as
// development servers, expect to be reached as localhost. With a host name of its
// own a program is told that one: it makes addresses of it, and compares the
// Origin of requests with it.
func (t *Target) host() string {
	if t.Host != "" {
		return t.Host
	}
	return "localhost:" + strconv.Itoa(t.Port)
}
