package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// maxBody is the limit of a request's body (OpenSandbox credential vault).
const maxBody = 1 << 20

// Prefix is where the API lies in the egress API.
const Prefix = "/credential-vault"

// API serves the vault of one sandbox at Prefix: the OpenSandbox credential vault, and the
// contract's egress document. The caller has checked the sandbox's egress
// token, and rewritten the path so that it begins with Prefix. Errors are plain
// text. An API is made for each request or kept; it holds no state of its own.
type API struct {
	Vaults  *Vaults
	Sandbox string
	// Hold calls change with what a change of the vault stands on, and sees to
	// it that this stays so until change returns. It answers change's error, or
	// one of its own.
	Hold func(ctx context.Context, change func(context.Context, Ground) error) error
	// Refused, when not empty, says why this sandbox can have no vault: writes
	// answer 412 with it.
	Refused string
	// AllowInsecure takes writes also over plain HTTP from other machines, for
	// a server that has TLS in front of it.
	AllowInsecure bool
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), Prefix)
	if !ok {
		http.NotFound(w, r)
		return
	}
	part, name, named := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	name, err := url.PathUnescape(name)
	switch {
	case err != nil:
		http.Error(w, "the name in the URL is not well-formed", http.StatusBadRequest)
	case rest == "":
		a.root(w, r)
	case part == "_active" && !named:
		// The values are in there; no network client gets them.
		http.Error(w, "forbidden", http.StatusForbidden)
	case part == "credentials" || part == "bindings":
		if allow(w, r, http.MethodGet, http.MethodHead) {
			a.part(w, part, name, named)
		}
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
}

func (a *API) root(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete) {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !a.mayWrite(w, r) {
		return
	}
	switch r.Method {
	case http.MethodPost:
		var req CreateRequest
		if err := decode(w, r, &req, "credentials", "bindings"); err != nil {
			a.fail(w, err)
			return
		}
		a.change(w, r, http.StatusCreated, func(ctx context.Context, on Ground) (*State, error) {
			return a.Vaults.Create(ctx, a.Sandbox, &req, on)
		})
	case http.MethodPatch:
		var req PatchRequest
		if err := decode(w, r, &req); err != nil {
			a.fail(w, err)
			return
		}
		a.change(w, r, http.StatusOK, func(ctx context.Context, on Ground) (*State, error) {
			return a.Vaults.Patch(ctx, a.Sandbox, &req, on)
		})
	case http.MethodDelete:
		if err := a.Vaults.Delete(a.Sandbox); err != nil {
			a.fail(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		s, err := a.Vaults.State(a.Sandbox)
		a.answer(w, http.StatusOK, s, err)
	}
}

// change makes a change of the vault while what it stands on is held.
func (a *API) change(w http.ResponseWriter, r *http.Request, status int, make func(context.Context, Ground) (*State, error)) {
	var s *State
	err := a.Hold(r.Context(), func(ctx context.Context, on Ground) (err error) {
		s, err = make(ctx, on)
		return err
	})
	a.answer(w, status, s, err)
}

// mayWrite checks what must hold before a value travels.
func (a *API) mayWrite(w http.ResponseWriter, r *http.Request) bool {
	if a.Refused != "" {
		http.Error(w, a.Refused, http.StatusPreconditionFailed)
		return false
	}
	if !a.AllowInsecure && r.TLS == nil && !loopback(r.RemoteAddr) {
		http.Error(w, "credentials are taken over TLS or from this machine only: use https", http.StatusUpgradeRequired)
		return false
	}
	return true
}

// loopback reports whether a request came from this machine. A Unix socket has
// no address.
func loopback(remote string) bool {
	if remote == "" || remote == "@" {
		return true
	}
	ap, err := netip.ParseAddrPort(remote)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// part answers a list, or one element of it.
func (a *API) part(w http.ResponseWriter, part, name string, named bool) {
	s, err := a.Vaults.State(a.Sandbox)
	if err != nil {
		a.fail(w, err)
		return
	}
	switch {
	case part == "credentials" && !named:
		a.answer(w, http.StatusOK, struct {
			Revision    int64             `json:"revision"`
			Credentials []CredentialState `json:"credentials"`
		}{s.Revision, s.Credentials}, nil)
	case part == "bindings" && !named:
		a.answer(w, http.StatusOK, struct {
			Revision int64          `json:"revision"`
			Bindings []BindingState `json:"bindings"`
		}{s.Revision, s.Bindings}, nil)
	case part == "credentials":
		for _, c := range s.Credentials {
			if c.Name == name {
				a.answer(w, http.StatusOK, c, nil)
				return
			}
		}
		a.fail(w, notFound("the vault has no credential %q", name))
	default:
		for _, b := range s.Bindings {
			if b.Name == name {
				a.answer(w, http.StatusOK, b, nil)
				return
			}
		}
		a.fail(w, notFound("the vault has no binding %q", name))
	}
}

func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if r.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	return false
}

// decode reads a body of exactly one JSON object, with no member that is not
// known. Its errors don't quote what was read.
func decode(w http.ResponseWriter, r *http.Request, into any, required ...string) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return &Error{http.StatusRequestEntityTooLarge, "the body has more than 1 MiB"}
	}
	if err != nil {
		return invalid("the body could not be read to its end")
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil || members == nil {
		return invalid("the body must be one JSON object")
	}
	for _, m := range required {
		if v, ok := members[m]; !ok || bytes.Equal(v, []byte("null")) {
			return invalid("%s is missing; give a list, which may be empty", m)
		}
	}
	if err := duplicates(body); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return explain(err)
	}
	return nil
}

// explain says what is wrong with a body. The decoder's own text names members
// and types, but may hold pieces of the input where it fails to read a value.
func explain(err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return invalid("%s must be a %s", wrongType.Field, jsonType(wrongType.Type.Kind().String()))
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return invalid("the member %s is not known here; leave it out", name)
	}
	return invalid("the body has a member of the wrong type; see the description of the API")
}

func jsonType(kind string) string {
	switch kind {
	case "slice":
		return "list"
	case "struct", "map":
		return "object"
	case "int", "int64", "uint16":
		return "whole number"
	}
	return kind
}

// duplicates refuses an object with a member twice: which of the two counts
// would depend on who reads it.
func duplicates(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	type level struct {
		object bool
		key    bool // the next token is a member's name
		seen   map[string]bool
	}
	var stack []*level
	for {
		t, err := d.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return invalid("the body must be one JSON object")
		}
		var top *level
		if len(stack) > 0 {
			top = stack[len(stack)-1]
		}
		switch t := t.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				stack = stack[:len(stack)-1]
				if len(stack) > 0 {
					stack[len(stack)-1].key = true
				}
				continue
			}
			stack = append(stack, &level{object: t == '{', key: true, seen: map[string]bool{}})
			continue
		case string:
			if top != nil && top.object && top.key {
				// The decoder takes members in any case.
				name := strings.ToLower(t)
				if top.seen[name] {
					return invalid("the member %q is there twice", t)
				}
				top.seen[name], top.key = true, false
				continue
			}
		}
		if top != nil {
			top.key = true
		}
	}
}

func (a *API) answer(w http.ResponseWriter, status int, v any, err error) {
	if err != nil {
		a.fail(w, err)
		return
	}
	body, err := json.Marshal(v)
	if err != nil {
		a.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// fail answers with an error's own status and text.
func (a *API) fail(w http.ResponseWriter, err error) {
	var known *Error
	switch {
	case errors.As(err, &known):
		http.Error(w, known.Message, known.Status)
	case errors.Is(err, ErrSealed):
		// The operator reads this too, and can do what it says.
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		a.Vaults.log.Error("serving a credential vault", "sandbox", a.Sandbox, "error", err)
		http.Error(w, "the credential vault could not be written; the server's log says why", http.StatusInternalServerError)
	}
}
