package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
)

const (
	// maxAccessCookies bounds how many cookies of one name are tried: pages of
	// the same domain can add some of their own.
	maxAccessCookies = 4
	// maxCookieAge is how long browsers keep a cookie at most (RFC 6265bis).
	maxCookieAge = 400 * 24 * time.Hour
)

// admitBrowser gives a browser that opens a signed address on a host name a
// cookie that opens the same port as long, because what the page loads by paths
// of its own has no signature. Somebody who opens the page is sent on to the
// address without the signature, which then is in neither the history nor the
// Referer; it returns true when it has done that. In a frame the address stays
// what it is: whether the browser keeps cookies there can't be known.
func (s *Server) admitBrowser(r *request, in *ingress, now time.Time) (answered bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !opensPage(r.Header) {
		return false
	}
	framed := len(r.Header["Sec-Fetch-Dest"]) > 0 && r.Header["Sec-Fetch-Dest"][0] != "document"
	r.w.Header()["Set-Cookie"] = []string{s.accessCookie(r.Request, in, framed, now)}
	if framed {
		return false
	}
	location := in.path
	// More than one slash, or a backslash, would name another host.
	if trimmed := strings.TrimLeft(location, `/\`); location == "" || len(location)-len(trimmed) != 1 {
		location = "/" + trimmed
	}
	sendOn(r, http.StatusSeeOther, location)
	return true
}

// addSlash sends a browser that opens a port's address as it was given out on to
// the one with a slash at its end; relative names on the page would be read from
// beside the address otherwise. The redirect is relative too: a server in front
// may have taken something off the path.
func addSlash(r *request) (answered bool) {
	path := r.URL.EscapedPath()
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !opensPage(r.Header) || strings.HasSuffix(path, "/") {
		return false
	}
	location := path[strings.LastIndexByte(path, '/')+1:] + "/"
	sendOn(r, http.StatusTemporaryRedirect, location)
	return true
}

// sendOn redirects a browser to a path, with the query that it came with.
func sendOn(r *request, status int, path string) {
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	h := r.w.Header()
	h["Location"] = []string{path}
	h["Cache-Control"] = []string{"no-store"}
	h["Referrer-Policy"] = []string{"no-referrer"}
	writeBytes(r.w, status, nil)
}

// opensPage is whether a browser wants a page, and not a part of one.
func opensPage(h http.Header) bool {
	if mode := h["Sec-Fetch-Mode"]; len(mode) > 0 {
		return mode[0] == "navigate"
	}
	// Browsers before 2023 don't say.
	for _, accept := range h["Accept"] {
		if strings.Contains(accept, "text/html") {
			return true
		}
	}
	return false
}

func (s *Server) isSecure(r *http.Request) bool { return r.TLS != nil || s.opts.Ingress.Secure }

func (s *Server) cookieName(r *http.Request) string {
	if s.isSecure(r) {
		return gateway.SecureCookieName
	}
	return gateway.CookieName
}

// accessCookie makes the cookie. For a frame it is one that browsers send on
// every site, but keep apart for each site that the frame is on: whoever frames a
// page elsewhere has to have a signed address as well. They take such a cookie as
// Secure only; from localhost they do without TLS.
func (s *Server) accessCookie(r *http.Request, in *ingress, framed bool, now time.Time) string {
	age := maxCookieAge
	if at, err := strconv.ParseUint(in.Expires, 36, 64); err == nil {
		if left := at - uint64(now.Unix()); left < uint64(maxCookieAge/time.Second) {
			age = time.Duration(left) * time.Second
		}
	}
	// Max-Age=0 would remove it, and the address is valid to the end of its last
	// second.
	seconds := strconv.FormatInt(max(int64(age/time.Second), 1), 10)
	c := s.cookieName(r) + "=" + s.opts.Ingress.Keys.Cookie(in.ID, in.Port, in.Expires) +
		"; Path=/; Max-Age=" + seconds + "; HttpOnly"
	switch secure := s.isSecure(r); {
	case framed && (secure || isLocalhost(r.Host)):
		return c + "; Secure; SameSite=None; Partitioned"
	case secure:
		return c + "; Secure; SameSite=Lax"
	}
	return c + "; SameSite=Lax"
}

// isLocalhost is whether a Host header is localhost or a name below it, which
// browsers resolve to their own machine (RFC 6761, section 6.3).
func isLocalhost(host string) bool {
	host = "." + strings.ToLower(strings.TrimSuffix(withoutPort(host), "."))
	return strings.HasSuffix(host, ".localhost")
}

// hasCookie is whether a request carries the cookie for its port, and does so by
// the will of the port's own pages. Host names below one domain are one site to
// browsers, so SameSite alone would let a page of one sandbox send requests with
// the cookie of another.
func (s *Server) hasCookie(r *http.Request, in *ingress, now time.Time) bool {
	keys := s.opts.Ingress.Keys
	if keys == nil || !ownPage(r) {
		return false
	}
	tried, name := 0, s.cookieName(r)
	for _, line := range r.Header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if k != name {
				continue
			}
			if keys.VerifyCookie(in.ID, in.Port, v, now) {
				return true
			}
			if tried++; tried == maxAccessCookies {
				return false
			}
		}
	}
	return false
}

// tellsNoSite is whether a browser does not say where a request comes from. That
// of another sandbox's page then looks like one from the address bar, if the page
// sends no Referer. Answers have to tell the browser who may use them.
func tellsNoSite(h http.Header) bool { return len(h["Sec-Fetch-Site"]) == 0 }

// hidesOrigin is whether a browser hides the origin of a page from the page's own
// server, as it does with forms where Referrer-Policy is no-referrer. A page that
// has no origin, such as one in a sandbox, is nobody's same-origin.
func hidesOrigin(h http.Header, origin string) bool {
	site := h["Sec-Fetch-Site"]
	return origin == "null" && len(site) == 1 && site[0] == "same-origin"
}

// ownPage is whether a browser's request comes from a page of the same origin,
// from nowhere, or only opens a page.
func ownPage(r *http.Request) bool {
	for _, origin := range r.Header["Origin"] {
		if !isOrigin(origin, r.Host) && !hidesOrigin(r.Header, origin) {
			return false
		}
	}
	site := r.Header["Sec-Fetch-Site"]
	if len(site) == 0 {
		// Browsers say it over TLS and to localhost only.
		for _, from := range r.Header["Referer"] {
			if u, err := url.Parse(from); err != nil || !isOrigin(u.Scheme+"://"+u.Host, r.Host) {
				return false
			}
		}
		return true
	}
	if site[0] == "same-origin" || site[0] == "none" {
		return true
	}
	// A link. In a frame the page could be made to be clicked on unseen.
	dest := r.Header.Get("Sec-Fetch-Dest")
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && (dest == "" || dest == "document")
}
