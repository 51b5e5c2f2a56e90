package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
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
	return token != "" && len(sent) == 1 && subtle.ConstantTimeCompare([]byte(sent[0]), []byte(token)) == 1
}

func errSecureAccess() error {
	return &httpError{status: http.StatusUnauthorized, code: codeSecureAccess,
		message: "Ports of a sandbox need its token in the header OpenSandbox-Secure-Access, or the API key in OPEN-SANDBOX-API-KEY. " +
			"GET /v1/sandboxes/{id}/endpoints/{port} with the API key answers with the token."}
}
