package vault

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// minMasked is the length, in bytes, from which a value is masked where a
// destination sends it back. Shorter ones stand in any text by accident, and
// masking them would damage it.
const minMasked = 6

// Active is the bindings of one sandbox at one revision, ready to be matched.
// It never changes and may be used by all connections at once.
type Active struct {
	content *content
	exact   map[string][]*active
	// below is keyed by what follows "*." of a wildcard.
	below map[string][]*active
}

// active is a binding with its credentials.
type active struct {
	binding   *binding
	injection *Injection
	masked    []string
}

// Injection is what a matching request gets.
type Injection struct {
	// Binding is the name of the binding, for logs.
	Binding string
	// Headers are set, in place of any that the sandbox sent.
	Headers []InjectedHeader
	// Substitutions replace placeholders.
	Substitutions []Replacement
}

// InjectedHeader is a header with its whole value.
type InjectedHeader struct {
	Name  string
	Value Secret
}

// Replacement is a Substitution with its value.
type Replacement struct {
	Placeholder               string
	Value                     Secret
	Header, Query, Path, Body bool
}

func activate(c *content) *Active {
	a := &Active{content: c, exact: map[string][]*active{}, below: map[string][]*active{}}
	for i := range c.bindings {
		b := &c.bindings[i]
		x := &active{binding: b, injection: c.injection(b), masked: c.masked(b)}
		for _, h := range b.Match.Hosts {
			if name, wild := strings.CutPrefix(h, "*."); wild {
				a.below[name] = append(a.below[name], x)
			} else {
				a.exact[h] = append(a.exact[h], x)
			}
		}
	}
	return a
}

func (c *content) value(name string) Secret {
	return c.credentials[c.credential(name)].Source.Value
}

func (c *content) injection(b *binding) *Injection {
	in := &Injection{Binding: b.Name}
	set := func(name, prefix, credential string) {
		in.Headers = append(in.Headers, InjectedHeader{name, NewSecret(prefix + c.value(credential).value)})
	}
	switch b.Auth.Type {
	case AuthBearer:
		set("Authorization", "Bearer ", b.Auth.Credential)
	case AuthBasic:
		set("Authorization", "Basic ", b.Auth.Credential)
	case AuthAPIKey:
		set(b.Auth.Name, "", b.Auth.Credential)
	case AuthCustomHeaders:
		for _, h := range b.Auth.Headers {
			set(h.Name, "", h.Credential)
		}
	}
	for _, s := range b.Auth.Substitutions {
		in.Substitutions = append(in.Substitutions, Replacement{
			Placeholder: s.Placeholder, Value: c.value(s.Credential),
			Header: slices.Contains(s.In, InHeader), Query: slices.Contains(s.In, InQuery),
			Path: slices.Contains(s.In, InPath), Body: slices.Contains(s.In, InBody),
		})
	}
	return in
}

// masked lists the forms in which the binding's credentials may come back: as
// they are, as JSON and URLs write them, in base64, and the parts of a basic
// credential.
func (c *content) masked(b *binding) []string {
	var forms []string
	add := func(v string) {
		escaped, err := json.Marshal(v)
		for _, f := range []string{v, strings.Trim(string(escaped), `"`), url.QueryEscape(v), url.PathEscape(v),
			strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(v)), "="), base64.RawURLEncoding.EncodeToString([]byte(v))} {
			if err == nil && len(f) >= minMasked && len(v) >= minMasked && !slices.Contains(forms, f) {
				forms = append(forms, f)
			}
		}
	}
	for _, u := range b.Auth.uses() {
		v := c.value(u.credential).value
		add(v)
		if b.Auth.Type != AuthBasic || u.credential != b.Auth.Credential {
			continue
		}
		plain, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			continue
		}
		add(string(plain))
		if _, password, ok := strings.Cut(string(plain), ":"); ok {
			add(password)
		}
	}
	return forms
}

// Revision is the vault's.
func (a *Active) Revision() int64 { return a.content.revision }

// Host is the bindings for one host name, those of the most precise pattern
// first.
type Host struct {
	tiers [][]*active
}

// Host returns the bindings for a name, or nil when there are none. The name
// is in lower case and A-labels, without a final dot.
func (a *Active) Host(name string) *Host {
	if a == nil {
		return nil
	}
	var h Host
	if x := a.exact[name]; x != nil {
		h.tiers = append(h.tiers, x)
	}
	for rest := name; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if x := a.below[parent]; x != nil {
			h.tiers = append(h.tiers, x)
		}
		rest = parent
	}
	if len(h.tiers) == 0 {
		return nil
	}
	return &h
}

// Uses reports whether a binding is for this port.
func (h *Host) Uses(port uint16) bool {
	for x := range h.all {
		if slices.Contains(x.binding.Match.Ports, int(port)) {
			return true
		}
	}
	return false
}

// all yields the bindings.
func (h *Host) all(yield func(*active) bool) {
	if h == nil {
		return
	}
	for _, tier := range h.tiers {
		for _, x := range tier {
			if !yield(x) {
				return
			}
		}
	}
}

// PathSensitive reports whether any binding here depends on the path, so that
// it must be certain what the path of a request is.
func (h *Host) PathSensitive() bool {
	for x := range h.all {
		if !slices.Equal(x.binding.Match.Paths, []string{"/*"}) {
			return true
		}
	}
	return false
}

// Match returns what a request gets, or nil. The path is decoded, and clean.
func (h *Host) Match(scheme string, port uint16, method, path string) *Injection {
	for x := range h.all {
		m := &x.binding.Match
		if slices.Contains(m.Schemes, scheme) && slices.Contains(m.Ports, int(port)) &&
			slices.Contains(m.Methods, method) && slices.ContainsFunc(m.Paths, func(p string) bool { return pathMatches(p, path) }) {
			return x.injection
		}
	}
	return nil
}

func pathMatches(pattern, path string) bool {
	if prefix, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(path, prefix)
	}
	return path == pattern
}

// Masked lists what must not come back from this host: every form of every
// credential that is bound to it. The result is secret.
func (h *Host) Masked() []string {
	var all []string
	for x := range h.all {
		for _, m := range x.masked {
			if !slices.Contains(all, m) {
				all = append(all, m)
			}
		}
	}
	return all
}
