package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"strings"
)

// authenticate is nil when the request carries the API key.
func (s *Server) authenticate(r *http.Request) error {
	if s.opts.NoAuth {
		return nil
	}
	keys := r.Header[headerAPIKey]
	if len(keys) == 0 || len(keys) == 1 && keys[0] == "" {
		return &httpError{status: http.StatusUnauthorized, code: codeMissingKey,
			message: "The API key is missing. Send it in the header OPEN-SANDBOX-API-KEY."}
	}
	if len(keys) != 1 || !s.isKey(keys[0]) {
		return &httpError{status: http.StatusUnauthorized, code: codeInvalidKey,
			message: "The API key in the header OPEN-SANDBOX-API-KEY is not the server's."}
	}
	return nil
}

// isKey compares hashes, so that neither the time nor the length of the key can
// be learned.
func (s *Server) isKey(key string) bool {
	sum := sha256.Sum256([]byte(key))
	return subtle.ConstantTimeCompare(sum[:], s.keyHash[:]) == 1
}

// mayReach is whether a request may go to the ports of a sandbox with this
// token: it carries the API key or the token.
func (s *Server) mayReach(r *http.Request, token string) bool {
	if s.opts.NoAuth || s.authenticate(r) == nil {
		return true
	}
	sent := r.Header[headerSecureAccess]
	return len(sent) == 1 && sameToken(sent[0], token)
}

// sameToken compares in constant time. No token is never the same as another.
func sameToken(given, token string) bool {
	return token != "" && subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}

// checkOrigin protects a server without authentication from web pages. Whoever
// can connect may do everything, and a browser on this machine can connect on
// behalf of any page: directly, which its Origin header shows, or through a name
// of the page's own that resolves to this machine, which the Host header shows.
func (s *Server) checkOrigin(r *http.Request) error {
	if !s.opts.NoAuth {
		return nil
	}
	if !s.ownHost(r.Host) {
		return &httpError{status: http.StatusForbidden, code: codeOrigin,
			message: "Without authentication this server only answers to an IP address, to localhost and to its configured public host. Use one of those, or an API key."}
	}
	for _, origin := range r.Header["Origin"] {
		if !s.origins.allows(origin) && origin != "http://"+r.Host && origin != "https://"+r.Host {
			return &httpError{status: http.StatusForbidden, code: codeOrigin,
				message: "Without authentication this server only takes requests from web pages of its own or of a configured origin. Use an API key, or add the origin."}
		}
	}
	return nil
}

// ownHost is whether a Host header can't be a name that somebody else owns.
func (s *Server) ownHost(host string) bool {
	if host == "" || host == s.opts.PublicHost {
		return true
	}
	name := withoutPort(host)
	if name == withoutPort(s.opts.PublicHost) || name == s.opts.PublicHost {
		return true
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	return net.ParseIP(name) != nil || strings.EqualFold(name, "localhost") || strings.HasSuffix(strings.ToLower(name), ".localhost")
}

func errSecureAccess() error {
	return &httpError{status: http.StatusUnauthorized, code: codeSecureAccess,
		message: "Ports of a sandbox need its token in the header OpenSandbox-Secure-Access, or the API key in OPEN-SANDBOX-API-KEY. " +
			"GET /v1/sandboxes/{id}/endpoints/{port} with the API key answers with the token. " +
			"A sandbox that was deleted or has expired has no ports any more."}
}
