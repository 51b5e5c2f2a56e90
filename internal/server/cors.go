package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// corsMaxAge is how long a browser may remember a preflight, in seconds; the
// reference server's value (OpenSandbox API).
const corsMaxAge = "600"

// origins are those whose pages may call the API. Unlike the reference server
// this one allows none by default and never allows credentials: with a server on
// the reader's own machine, any web page could use it otherwise.
type origins struct {
	any    bool
	listed map[string]bool
}

func parseOrigins(list []string) (origins, error) {
	var o origins
	for _, text := range list {
		if text == "*" {
			o.any = true
			continue
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != text {
			return o, fmt.Errorf("origin %q is neither \"*\" nor of the form scheme://host[:port]", text)
		}
		if o.listed == nil {
			o.listed = make(map[string]bool)
		}
		o.listed[strings.ToLower(text)] = true
	}
	return o, nil
}

func (o *origins) allows(origin string) bool { return o.any || o.listed[strings.ToLower(origin)] }

// apply sets the headers of cross-origin answers and answers preflights, in
// which case it returns true.
func (o *origins) apply(w http.ResponseWriter, r *http.Request) (answered bool) {
	if !o.any && o.listed == nil {
		return false
	}
	h := w.Header()
	origin := r.Header.Get("Origin")
	switch {
	case o.any:
		h.Set("Access-Control-Allow-Origin", "*")
	case origin != "" && o.allows(origin):
		h.Set("Vary", "Origin")
		h.Set("Access-Control-Allow-Origin", origin)
	default:
		h.Set("Vary", "Origin")
		return false
	}
	if origin == "" {
		return false
	}
	h.Set("Access-Control-Expose-Headers", "*")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "*")
	h.Set("Access-Control-Max-Age", corsMaxAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}
