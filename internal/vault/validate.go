package vault

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/idna"
)

// Bounds of a vault. A request's body is at most 1 MiB (OpenSandbox credential vault), which
// bounds their sum.
const (
	maxCredentials   = 256
	maxBindings      = 256
	maxListed        = 64 // hosts, ports, methods, paths, headers, substitutions
	maxNameBytes     = 253
	maxValueBytes    = 256 << 10
	maxHeaderBytes   = 16 << 10 // of a value that goes into a header
	maxPathBytes     = 2048
	minPlaceholder   = 4 // shorter ones would be found by accident
	maxPlaceholder   = 256
	maxMethodLetters = 32
)

// MaxSubstituted is the longest value, in bytes, that may stand in the place of a
// placeholder: the sandbox decides how often it writes that.
const MaxSubstituted = 8 << 10

// Reserved headers carry the framing and the route of a request; a credential
// in them would change what the request is.
var reservedHeaders = []string{
	"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "keep-alive",
	"upgrade", "te", "trailer", "expect", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
}

func reservedHeader(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "proxy-") || slices.Contains(reservedHeaders, name)
}

// checkName validates the name of a credential or binding.
func checkName(where, name string) error {
	switch {
	case name == "":
		return invalid("%s: the name is missing", where)
	case len(name) > maxNameBytes:
		return invalid("%s: the name has %d bytes; at most %d are allowed", where, len(name), maxNameBytes)
	case strings.TrimSpace(name) != name:
		return invalid("%s: the name %q begins or ends with a space", where, name)
	case strings.Contains(name, "/"):
		return invalid("%s: the name %q has a slash, which a URL can't carry in a name", where, name)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' {
			return invalid("%s: the name %q has a control character or is not UTF-8", where, name)
		}
	}
	return nil
}

// normalize checks a credential and fills in its defaults.
func (c *Credential) normalize(where string) error {
	if err := checkName(where, c.Name); err != nil {
		return err
	}
	if c.Source.Type == "" {
		c.Source.Type = SourceInline
	}
	switch {
	case c.Source.Type != SourceInline:
		return invalid("%s (%q): source.type %q is not supported; use %q", where, c.Name, c.Source.Type, SourceInline)
	case c.Source.Value.Empty():
		return invalid("%s (%q): source.value is missing or empty", where, c.Name)
	case len(c.Source.Value.value) > maxValueBytes:
		return invalid("%s (%q): source.value has %d bytes; at most %d are allowed", where, c.Name, len(c.Source.Value.value), maxValueBytes)
	}
	return nil
}

// normalize checks a binding but for the credentials that it names, and fills
// in its defaults.
func (b *Binding) normalize(where string) error {
	if err := checkName(where, b.Name); err != nil {
		return err
	}
	where = fmt.Sprintf("%s (%q)", where, b.Name)
	if err := b.Match.normalize(where + ".match"); err != nil {
		return err
	}
	return b.Auth.check(where + ".auth")
}

func (m *Match) normalize(where string) error {
	for _, l := range []struct {
		field string
		n     int
	}{{"schemes", len(m.Schemes)}, {"ports", len(m.Ports)}, {"hosts", len(m.Hosts)}, {"methods", len(m.Methods)}, {"paths", len(m.Paths)}} {
		if l.n > maxListed {
			return invalid("%s.%s has %d entries; at most %d are allowed", where, l.field, l.n, maxListed)
		}
	}
	if len(m.Hosts) == 0 {
		return invalid("%s.hosts is missing; name at least one host, such as \"api.example.com\" or \"*.example.com\"", where)
	}
	m.Hosts = slices.Clone(m.Hosts)
	for i, h := range m.Hosts {
		host, err := normalizeHost(h)
		if err != nil {
			return invalid("%s.hosts[%d]: %s", where, i, err)
		}
		m.Hosts[i] = host
	}
	if err := m.normalizeSchemes(where); err != nil {
		return err
	}
	m.Methods = slices.Clone(m.Methods)
	for i, method := range m.Methods {
		method = strings.ToUpper(strings.TrimSpace(method))
		if len(method) > maxMethodLetters || !httpguts.ValidHeaderFieldName(method) || method == "CONNECT" || method == "TRACE" {
			return invalid("%s.methods[%d]: %q is not a method that can be matched; write one such as GET", where, i, m.Methods[i])
		}
		m.Methods[i] = method
	}
	if len(m.Methods) == 0 {
		m.Methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	}
	for i, p := range m.Paths {
		if err := checkPath(p); err != nil {
			return invalid("%s.paths[%d]: %s", where, i, err)
		}
	}
	if len(m.Paths) == 0 {
		m.Paths = []string{"/*"}
	}
	return nil
}

func (m *Match) normalizeSchemes(where string) error {
	m.Schemes = slices.Clone(m.Schemes)
	for i, s := range m.Schemes {
		s = strings.ToLower(strings.TrimSpace(s))
		if s != "https" && s != "http" {
			return invalid("%s.schemes[%d]: %q is not supported; use \"https\" or \"http\"", where, i, m.Schemes[i])
		}
		m.Schemes[i] = s
	}
	if len(m.Schemes) == 0 {
		m.Schemes = []string{"https"}
	}
	for i, p := range m.Ports {
		if p < 1 || p > 65535 {
			return invalid("%s.ports[%d]: %d is not a TCP port; use 1 to 65535", where, i, p)
		}
	}
	if len(m.Ports) > 0 {
		return nil
	}
	if slices.Contains(m.Schemes, "https") {
		m.Ports = append(m.Ports, 443)
	}
	if slices.Contains(m.Schemes, "http") {
		m.Ports = append(m.Ports, 80)
	}
	return nil
}

// normalizeHost returns a host as requests are compared with it: lower case,
// A-labels, no final dot. Its errors are for the caller.
func normalizeHost(h string) (string, error) {
	host := strings.ToLower(strings.TrimSpace(h))
	name, wild := strings.CutPrefix(host, "*.")
	switch {
	case host == "":
		return "", invalid("a host is empty")
	case strings.Contains(host, "://") || strings.ContainsAny(host, "/?#@"):
		return "", invalid("%q is a URL; write only the host, such as \"api.example.com\"", h)
	case strings.Contains(name, "*"):
		return "", invalid("%q: a star may only be the whole first label, as in \"*.example.com\"", h)
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "", invalid("%q is an address; a credential is bound to a host name", h)
	}
	if strings.Contains(name, ":") {
		return "", invalid("%q has a port; write it in match.ports", h)
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	if err != nil || len(ascii) > 253 {
		return "", invalid("%q is not a valid host name", h)
	}
	if !strings.Contains(ascii, ".") {
		return "", invalid("%q is not a full host name; write one with a dot, such as \"api.example.com\"", h)
	}
	last := ascii[strings.LastIndexByte(ascii, '.')+1:]
	if strings.Trim(last, "0123456789") == "" {
		return "", invalid("%q looks like an address; a credential is bound to a host name", h)
	}
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return "", invalid("%q is not a valid host name", h)
		}
	}
	if wild {
		return "*." + ascii, nil
	}
	return ascii, nil
}

// checkPath validates a path pattern. It is compared with the decoded path of a
// request, so that it holds neither escapes nor anything that could be two
// things.
func checkPath(p string) error {
	body := strings.TrimSuffix(p, "*")
	switch {
	case !strings.HasPrefix(p, "/"):
		return invalid("%q must begin with a slash", p)
	case len(p) > maxPathBytes:
		return invalid("a path has %d bytes; at most %d are allowed", len(p), maxPathBytes)
	case strings.Contains(body, "*"):
		return invalid("%q: a star may only be at the end", p)
	case strings.ContainsAny(p, "?#%\\"):
		return invalid("%q: write the path without query, fragment, escapes and backslashes", p)
	case strings.Contains(p, "//"):
		return invalid("%q has an empty segment", p)
	}
	for _, r := range p {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' {
			return invalid("%q has a control character or is not UTF-8", p)
		}
	}
	for seg := range strings.SplitSeq(body, "/") {
		if seg == "." || seg == ".." {
			return invalid("%q has a segment %q", p, seg)
		}
	}
	return nil
}

func (a *Auth) check(where string) error {
	if len(a.Headers) > maxListed || len(a.Substitutions) > maxListed {
		return invalid("%s: at most %d headers and %d substitutions are allowed", where, maxListed, maxListed)
	}
	needs := map[string]struct{ credential, name, headers bool }{
		AuthBearer: {credential: true}, AuthBasic: {credential: true},
		AuthAPIKey:        {credential: true, name: true},
		AuthCustomHeaders: {headers: true}, AuthPassthrough: {},
	}
	n, ok := needs[a.Type]
	if !ok {
		return invalid("%s.type: %q is not supported; use bearer, basic, apiKey, customHeaders or passthrough", where, a.Type)
	}
	for _, f := range []struct {
		field       string
		needed, set bool
	}{{"credential", n.credential, a.Credential != ""}, {"name", n.name, a.Name != ""}, {"headers", n.headers, len(a.Headers) > 0}} {
		if f.needed && !f.set {
			return invalid("%s.%s is missing; type %q needs it", where, f.field, a.Type)
		}
		if !f.needed && f.set {
			return invalid("%s.%s is not part of type %q; leave it out", where, f.field, a.Type)
		}
	}
	if n.name {
		if err := checkHeaderName(where+".name", a.Name); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for i, h := range a.Headers {
		at := fmt.Sprintf("%s.headers[%d]", where, i)
		if err := checkHeaderName(at+".name", h.Name); err != nil {
			return err
		}
		if h.Credential == "" {
			return invalid("%s.credential is missing", at)
		}
		if seen[strings.ToLower(h.Name)] {
			return invalid("%s: the header %q is listed twice", at, h.Name)
		}
		seen[strings.ToLower(h.Name)] = true
	}
	return a.checkSubstitutions(where)
}

func checkHeaderName(where, name string) error {
	if !httpguts.ValidHeaderFieldName(name) || len(name) > maxNameBytes {
		return invalid("%s: %q is not the name of a header", where, name)
	}
	if reservedHeader(name) {
		return invalid("%s: the header %q carries the framing or the route of a request; a credential can't go there", where, name)
	}
	return nil
}

func (a *Auth) checkSubstitutions(where string) error {
	for i, s := range a.Substitutions {
		at := fmt.Sprintf("%s.substitutions[%d]", where, i)
		if s.Credential == "" {
			return invalid("%s.credential is missing", at)
		}
		if len(s.Placeholder) < minPlaceholder || len(s.Placeholder) > maxPlaceholder {
			return invalid("%s.placeholder must have %d to %d characters; it has %d", at, minPlaceholder, maxPlaceholder, len(s.Placeholder))
		}
		for _, c := range []byte(s.Placeholder) {
			if c <= 0x20 || c >= 0x7f {
				return invalid("%s.placeholder: only visible ASCII characters are allowed", at)
			}
		}
		for j, o := range a.Substitutions[:i] {
			if strings.Contains(o.Placeholder, s.Placeholder) || strings.Contains(s.Placeholder, o.Placeholder) {
				return invalid("%s.placeholder: one of %q and %q (substitutions[%d]) contains the other", at, s.Placeholder, o.Placeholder, j)
			}
		}
		if len(s.In) == 0 {
			return invalid("%s.in is missing; list header, query, path or body", at)
		}
		for j, in := range s.In {
			if in != InHeader && in != InQuery && in != InPath && in != InBody {
				return invalid("%s.in[%d]: %q is not supported; use header, query, path or body", at, j, in)
			}
			if slices.Contains(s.In[:j], in) {
				return invalid("%s.in: %q is listed twice", at, in)
			}
		}
	}
	return nil
}
