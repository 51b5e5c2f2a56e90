package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// EgressPort is the port at which clients look for the egress API of a sandbox
// (OpenSandbox egress API). The server answers there; nothing in the sandbox does.
const EgressPort = 18080

const headerEgressAuth = "OPENSANDBOX-EGRESS-AUTH"

// egressAPI answers what is sent to the egress API of a sandbox that exists and
// that the caller may reach. path is what follows the port. Its errors are plain
// text.
func (s *Server) egressAPI(r *request, sb *sandbox.Sandbox, path string) int {
	rec := &recorder{ResponseWriter: r.w}
	r.w = rec
	h := rec.Header()
	h.Set("Cache-Control", "no-store")
	text := func(status int, message string) int {
		writeText(rec, status, message+"\n")
		return status
	}
	if path == "/healthz" {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			return text(http.StatusMethodNotAllowed, "method not allowed; allowed: GET, HEAD")
		}
		return text(http.StatusOK, "ok")
	}
	if sent := r.Header.Values(headerEgressAuth); len(sent) != 1 || !sameToken(sent[0], sb.EgressToken) {
		return text(http.StatusUnauthorized, "unauthorized")
	}
	switch {
	case path == "/policy":
		methods := []string{"DELETE", "GET", "PATCH", "POST", "PUT"}
		if !slices.Contains(methods, r.Method) {
			h.Set("Allow", strings.Join(methods, ", "))
			return text(http.StatusMethodNotAllowed, "method not allowed; allowed: "+strings.Join(methods, ", "))
		}
		st, err := s.policyAPI(r, sb.ID)
		if err != nil {
			a := toAnswer(err, r.id)
			if a.cause != nil {
				s.log.Error("the egress API failed", "sandbox", sb.ID, "request", r.id, "error", a.cause)
			}
			return text(a.status, a.message)
		}
		writeJSON(rec, http.StatusOK, st)
		return http.StatusOK
	case path == vault.Prefix || strings.HasPrefix(path, vault.Prefix+"/"):
		if s.opts.Vaults == nil {
			return text(http.StatusNotImplemented, "this server keeps no credentials")
		}
		return s.credentialVault(rec, r.Request, sb, path)
	}
	return text(http.StatusNotFound, "not found; there are /policy, /credential-vault and /healthz")
}

// credentialVault answers for the credentials of a sandbox. path is still
// encoded.
func (s *Server) credentialVault(w *recorder, r *http.Request, sb *sandbox.Sandbox, path string) int {
	to, err := url.ParseRequestURI(path)
	if err != nil {
		http.Error(w, "the path is not well-formed", http.StatusBadRequest)
		return w.status
	}
	v := &vault.API{Vaults: s.opts.Vaults, Sandbox: sb.ID, AllowInsecure: s.opts.PlainCredentials, Hold: s.holdPolicy(sb.ID)}
	if sb.Spec.NetworkPolicy == nil {
		v.Refused = "this sandbox has no network policy, so no host is allowed for which it could have credentials; give it a policy with a rule for the host"
	}
	inner := *r
	inner.URL = to
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readTimeout))
	_ = rc.SetWriteDeadline(time.Now().Add(readTimeout + writeTimeout))
	v.ServeHTTP(w, &inner)
	return w.status
}

// holdPolicy keeps the policy of a sandbox as it is during a change of its
// vault, and the sandbox from being deleted: no binding can outlive the rule that
// it stands on, and no vault its sandbox.
func (s *Server) holdPolicy(id string) func(context.Context, func(context.Context, vault.Ground) error) error {
	return func(ctx context.Context, change func(context.Context, vault.Ground) error) error {
		err := s.manager.HoldPolicy(ctx, id, func(ctx context.Context, h *sandbox.HeldPolicy) error {
			return change(ctx, vault.Ground{Rules: orOpen(h.Sandbox.Spec.NetworkPolicy).Egress, Ready: h.Trust})
		})
		var known *sandbox.Error
		if errors.As(err, &known) && known.Kind != sandbox.KindInternal {
			return &vault.Error{Status: kindStatus[known.Kind], Message: known.Message}
		}
		return err
	}
}
