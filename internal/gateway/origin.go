package gateway

import (
	"net/http"
	"strings"
)

// Origin says what a browser shares with whom under an address, and with it what
// of the client's credentials may be the application's own. Browsers keep cookies
// by host name and everything else by scheme, host name and port; a path parts
// nothing.
type Origin int

const (
	// OriginAPI: beneath a path of the API, for clients that send its headers.
	// Neither cookies nor Authorization are passed on (OpenSandbox server proxy).
	OriginAPI Origin = iota
	// OriginHeader: chosen by a header, which no browser sends by itself.
	// Authorization is passed on. Cookies are not, in either direction: the
	// client's jar has one place for all sandboxes.
	OriginHeader
	// OriginShared: beneath a path that browsers may open, on a host name that
	// all sandboxes share. Pages get an origin of their own by a policy that
	// browsers enforce, cookies are not passed on in either direction, and
	// neither is what browsers send in Authorization by themselves.
	OriginShared
	// OriginOwn: a host name for this port alone. Cookies and Authorization are
	// the application's; a cookie may not reach other host names.
	OriginOwn
)

// CookieName and SecureCookieName are cookies of the gateway's own. They reach
// no application, and none can set them. Browsers take the second kind over TLS
// only, and only from the very host that it is for.
const (
	CookieName       = "paddock-access"
	SecureCookieName = "__Host-" + CookieName
)

// sharedPolicy gives a page an opaque origin: it runs scripts, but reads and
// sets no cookies and no storage, and is a stranger to every other page of the
// host name, the API's among them.
const sharedPolicy = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"

// Headers of an application's answer that would have effects beyond it. The
// first concerns every browser that talks to the host name or its siblings; the
// others are read by web servers that may stand in front of this one.
func reachesBeyond(name string) bool {
	switch name {
	case "Clear-Site-Data", "Alt-Svc", "X-Accel-Redirect", "X-Sendfile":
		return true
	}
	return false
}

// alsoDropped is whether a header of an answer is dropped because of the origin.
func (o Origin) alsoDropped(name string) bool {
	switch name {
	case "Set-Cookie":
		return o == OriginHeader || o == OriginShared
	case "Strict-Transport-Security", "Service-Worker-Allowed", "Nel", "Report-To", "Reporting-Endpoints":
		// Kept by browsers for all of the host name. The last three have them
		// tell somebody which addresses they open there, signed ones too.
		return o != OriginOwn
	}
	return false
}

// requestCredentials puts the application's own credentials into the header for
// the sandbox.
func (o Origin) requestCredentials(h, client http.Header) {
	if o == OriginAPI {
		return
	}
	for _, v := range client["Authorization"] {
		if o != OriginShared || !sentByBrowsers(v) {
			h["Authorization"] = append(h["Authorization"], v)
		}
	}
	if o != OriginOwn {
		return
	}
	for _, line := range client["Cookie"] {
		if line = withoutOwnCookies(line); line != "" {
			h["Cookie"] = append(h["Cookie"], line)
		}
	}
}

// sentByBrowsers is whether a browser that has once logged in somewhere sends
// this to everything on the host name that asks for it.
func sentByBrowsers(authorization string) bool {
	scheme, _, _ := strings.Cut(strings.TrimSpace(authorization), " ")
	switch strings.ToLower(scheme) {
	case "basic", "digest", "negotiate", "ntlm":
		return true
	}
	return false
}

func isOwnCookie(name string) bool {
	// Browsers compare names exactly, but for the prefix, which newer ones
	// (RFC 6265bis) compare without case.
	return strings.EqualFold(name, CookieName) || strings.EqualFold(name, SecureCookieName)
}

// withoutOwnCookies removes the gateway's cookies from a Cookie header and
// leaves everything else as it is.
func withoutOwnCookies(line string) string {
	if !strings.Contains(strings.ToLower(line), CookieName) {
		return line
	}
	var kept []string
	for pair := range strings.SplitSeq(line, ";") {
		pair = strings.TrimSpace(pair)
		name, _, _ := strings.Cut(pair, "=")
		if pair != "" && !isOwnCookie(strings.TrimSpace(name)) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "; ")
}

// responseCookies makes the cookies of an application stay with it: none
// reaches another host name, none beneath a path reaches out of that, and none
// has the name of the gateway's.
func (t *Target) responseCookies(values []string) []string {
	kept := make([]string, 0, len(values))
	for _, v := range values {
		pair, attributes, _ := strings.Cut(v, ";")
		name, _, _ := strings.Cut(pair, "=")
		if isOwnCookie(strings.TrimSpace(name)) {
			continue
		}
		kept = append(kept, pair+t.cookieAttributes(attributes))
	}
	return kept
}

func (t *Target) cookieAttributes(attributes string) string {
	if attributes == "" {
		return ""
	}
	var b strings.Builder
	for a := range strings.SplitSeq(attributes, ";") {
		name, value, _ := strings.Cut(a, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "domain":
			// Without it, a cookie belongs to the host that set it.
			continue
		case "path":
			if path := strings.TrimSpace(value); t.Origin == OriginAPI && strings.HasPrefix(path, "/") {
				a = " Path=" + t.Prefix + path
			}
		}
		b.WriteString(";" + a)
	}
	return b.String()
}

// protectPage makes the answer of an application on a shared host name one that
// browsers keep apart from everything else there.
func protectPage(h http.Header, r *http.Request) {
	// A page's own policies stay: with several, each of them holds.
	h["Content-Security-Policy"] = append(h["Content-Security-Policy"], sharedPolicy)
	// The address may hold a signature, which is nobody else's business.
	h["Referrer-Policy"] = []string{"no-referrer"}
	if origins := r.Header["Origin"]; len(origins) == 1 && origins[0] == "null" {
		allowOpaque(h)
	}
}

// keepToOwnPages keeps an answer from pages of other origins, be it as an image,
// a script or a frame.
func keepToOwnPages(h http.Header) {
	h["Cross-Origin-Resource-Policy"] = []string{"same-origin"} // nothing is stricter
	policies := h["Content-Security-Policy"]
	ancestors := "frame-ancestors 'self'"
	if !mentions(policies, "frame-ancestors") && mentions(h["X-Frame-Options"], "deny") {
		// Browsers don't look at that beside a policy.
		ancestors = "frame-ancestors 'none'"
	}
	// A page's own policies stay: with several, each of them holds. The values
	// may be shared.
	h["Content-Security-Policy"] = append(policies[:len(policies):len(policies)], ancestors)
}

func mentions(values []string, word string) bool {
	for _, v := range values {
		if strings.Contains(strings.ToLower(v), word) {
			return true
		}
	}
	return false
}

// allowOpaque lets a page with an opaque origin read the answer to what it asked
// for itself. Whoever has the address can read it anyway.
func allowOpaque(h http.Header) {
	h["Access-Control-Allow-Origin"] = []string{"null"}
	delete(h, "Access-Control-Allow-Credentials")
	h["Vary"] = append(h["Vary"], "Origin")
}

// preflightAge is how long browsers may remember the answer of preflight, in
// seconds.
const preflightAge = "600"

// preflight answers the question of a page with an opaque origin whether it may
// send a request to its own address.
func preflight(w http.ResponseWriter, r *http.Request) bool {
	h := r.Header
	if r.Method != http.MethodOptions || len(h["Origin"]) != 1 || h["Origin"][0] != "null" || len(h["Access-Control-Request-Method"]) != 1 {
		return false
	}
	allowOpaque(w.Header())
	w.Header()["Access-Control-Allow-Methods"] = h["Access-Control-Request-Method"]
	if asked := h["Access-Control-Request-Headers"]; len(asked) > 0 {
		w.Header()["Access-Control-Allow-Headers"] = []string{strings.Join(asked, ", ")}
	}
	w.Header()["Access-Control-Max-Age"] = []string{preflightAge}
	w.WriteHeader(http.StatusNoContent)
	return true
}
