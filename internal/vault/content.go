package vault

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// content is one vault. It is not changed after it was made: a change makes
// another one.
type content struct {
	revision    int64
	credentials []credential // sorted by name
	bindings    []binding    // sorted by name
}

type credential struct {
	Credential
	revision int64
}

type binding struct {
	Binding
	revision int64
}

// newContent makes revision 1 of a vault.
func newContent(req *CreateRequest) (*content, error) {
	return (&content{}).patch(&PatchRequest{
		Credentials: CredentialSet{Add: req.Credentials},
		Bindings:    BindingSet{Add: req.Bindings},
	})
}

// patch returns the next revision. Deletions come first, then replacements,
// then additions, so that a name can be deleted and added anew.
func (c *content) patch(req *PatchRequest) (*content, error) {
	next := &content{
		revision:    c.revision + 1,
		credentials: slices.Clone(c.credentials),
		bindings:    slices.Clone(c.bindings),
	}
	if err := next.patchCredentials(&req.Credentials); err != nil {
		return nil, err
	}
	if err := next.patchBindings(&req.Bindings); err != nil {
		return nil, err
	}
	slices.SortFunc(next.credentials, func(a, b credential) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(next.bindings, func(a, b binding) int { return cmp.Compare(a.Name, b.Name) })
	return next, next.check()
}

func (c *content) patchCredentials(set *CredentialSet) error {
	for i, name := range set.Delete {
		at := c.credential(name)
		if at < 0 {
			return invalid("credentials.delete[%d]: there is no credential %q", i, name)
		}
		c.credentials = slices.Delete(c.credentials, at, at+1)
	}
	for i, cred := range set.Replace {
		where := fmt.Sprintf("credentials.replace[%d]", i)
		if err := cred.normalize(where); err != nil {
			return err
		}
		at := c.credential(cred.Name)
		if at < 0 {
			return invalid("%s: there is no credential %q; add it", where, cred.Name)
		}
		if c.credentials[at].revision == c.revision {
			return invalid("%s: the credential %q is replaced twice", where, cred.Name)
		}
		c.credentials[at] = credential{cred, c.revision}
	}
	for i, cred := range set.Add {
		where := fmt.Sprintf("credentials[%d]", i)
		if err := cred.normalize(where); err != nil {
			return err
		}
		if c.credential(cred.Name) >= 0 {
			return invalid("%s: there is already a credential %q; names are unique", where, cred.Name)
		}
		c.credentials = append(c.credentials, credential{cred, c.revision})
	}
	return nil
}

func (c *content) patchBindings(set *BindingSet) error {
	for i, name := range set.Delete {
		at := c.binding(name)
		if at < 0 {
			return invalid("bindings.delete[%d]: there is no binding %q", i, name)
		}
		c.bindings = slices.Delete(c.bindings, at, at+1)
	}
	for i, b := range set.Replace {
		where := fmt.Sprintf("bindings.replace[%d]", i)
		if err := b.normalize(where); err != nil {
			return err
		}
		at := c.binding(b.Name)
		if at < 0 {
			return invalid("%s: there is no binding %q; add it", where, b.Name)
		}
		if c.bindings[at].revision == c.revision {
			return invalid("%s: the binding %q is replaced twice", where, b.Name)
		}
		c.bindings[at] = binding{b, c.revision}
	}
	for i, b := range set.Add {
		where := fmt.Sprintf("bindings[%d]", i)
		if err := b.normalize(where); err != nil {
			return err
		}
		if c.binding(b.Name) >= 0 {
			return invalid("%s: there is already a binding %q; names are unique", where, b.Name)
		}
		c.bindings = append(c.bindings, binding{b, c.revision})
	}
	return nil
}

func (c *content) credential(name string) int {
	return slices.IndexFunc(c.credentials, func(x credential) bool { return x.Name == name })
}

func (c *content) binding(name string) int {
	return slices.IndexFunc(c.bindings, func(x binding) bool { return x.Name == name })
}

// check validates what concerns more than one part of the vault.
func (c *content) check() error {
	if len(c.credentials) > maxCredentials || len(c.bindings) > maxBindings {
		return invalid("the vault would have %d credentials and %d bindings; at most %d and %d are allowed",
			len(c.credentials), len(c.bindings), maxCredentials, maxBindings)
	}
	total := 0
	for i := range c.credentials {
		total += len(c.credentials[i].Source.Value.value)
	}
	if total > maxVaultBytes {
		return invalid("the values of the vault have %d bytes together; at most %d are allowed", total, maxVaultBytes)
	}
	for i := range c.bindings {
		if err := c.checkReferences(&c.bindings[i].Binding); err != nil {
			return err
		}
		for j := range i {
			if at, ok := ambiguous(&c.bindings[j].Match, &c.bindings[i].Match); ok {
				return invalid("the bindings %q and %q could both match a request to %q; make their schemes, ports, methods or paths differ",
					c.bindings[j].Name, c.bindings[i].Name, at)
			}
		}
	}
	return nil
}

// checkReferences looks for each credential that a binding names, and whether
// its value can be where the binding puts it.
func (c *content) checkReferences(b *Binding) error {
	for _, use := range b.Auth.uses() {
		at := c.credential(use.credential)
		if at < 0 {
			return invalid("the binding %q names the credential %q, which the vault would not have: add the credential, or delete or replace the binding", b.Name, use.credential)
		}
		value := c.credentials[at].Source.Value.value
		if use.substitution >= 0 && len(value) > MaxSubstituted {
			return invalid("auth.substitutions[%d] of the binding %q: the value of the credential %q has %d bytes; in the place of a placeholder at most %d are allowed",
				use.substitution, b.Name, use.credential, len(value), MaxSubstituted)
		}
		if !use.header {
			continue
		}
		if !httpguts.ValidHeaderFieldValue(value) || strings.TrimSpace(value) != value {
			return invalid("the value of the credential %q can't be in a header, where the binding %q puts it: it has a line break, another control character or a space at an end",
				use.credential, b.Name)
		}
		if len(value) > maxHeaderBytes {
			return invalid("the value of the credential %q has %d bytes; in a header, where the binding %q puts it, at most %d are allowed",
				use.credential, len(value), b.Name, maxHeaderBytes)
		}
	}
	return nil
}

// use is a credential in a binding.
type use struct {
	credential string
	// header is whether the value, or a form of it, goes into the head of a
	// request.
	header bool
	// substitution is the index of the one that it is for, -1 for none.
	substitution int
}

func (a *Auth) uses() []use {
	var all []use
	if a.Credential != "" {
		all = append(all, use{a.Credential, true, -1})
	}
	for _, h := range a.Headers {
		all = append(all, use{h.Credential, true, -1})
	}
	for i, s := range a.Substitutions {
		all = append(all, use{s.Credential, slices.Contains(s.In, InHeader), i})
	}
	return all
}

// ambiguous reports whether one request could match both, with hosts of the
// same precedence: an exact host goes before a wildcard, and a longer wildcard
// before a shorter one, so that only equal hosts are in doubt.
func ambiguous(a, b *Match) (host string, ok bool) {
	for _, h := range a.Hosts {
		if slices.Contains(b.Hosts, h) {
			host = h
		}
	}
	if host == "" || !overlap(a.Schemes, b.Schemes) || !overlap(a.Ports, b.Ports) || !overlap(a.Methods, b.Methods) {
		return "", false
	}
	for _, p := range a.Paths {
		for _, q := range b.Paths {
			if pathsOverlap(p, q) {
				return host, true
			}
		}
	}
	return "", false
}

func overlap[T comparable](a, b []T) bool {
	return slices.ContainsFunc(a, func(x T) bool { return slices.Contains(b, x) })
}

func pathsOverlap(p, q string) bool {
	pp, pwild := strings.CutSuffix(p, "*")
	qq, qwild := strings.CutSuffix(q, "*")
	switch {
	case pwild && qwild:
		return strings.HasPrefix(pp, qq) || strings.HasPrefix(qq, pp)
	case pwild:
		return strings.HasPrefix(qq, pp)
	case qwild:
		return strings.HasPrefix(pp, qq)
	}
	return pp == qq
}

// state is what callers see. Its slices are never nil: the contract wants them.
func (c *content) state() *State {
	s := &State{Revision: c.revision, Credentials: make([]CredentialState, 0, len(c.credentials)), Bindings: make([]BindingState, 0, len(c.bindings))}
	for i := range c.credentials {
		s.Credentials = append(s.Credentials, c.credentials[i].state())
	}
	for i := range c.bindings {
		s.Bindings = append(s.Bindings, c.bindings[i].state())
	}
	return s
}

func (c *credential) state() CredentialState {
	return CredentialState{Name: c.Name, SourceType: c.Source.Type, Revision: c.revision}
}

func (b *binding) state() BindingState {
	return BindingState{Name: b.Name, Revision: b.revision, Match: b.Match, Auth: AuthState{Type: b.Auth.Type, Name: b.Auth.Name}}
}
