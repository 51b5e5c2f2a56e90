package server

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	maxIdempotencyKey = 255
	// maxWait bounds "Prefer: wait=N", in seconds.
	maxWait = 300

	defaultPageSize = 20
	maxPageSize     = 200
	maxStates       = 32
)

func (s *Server) createSandbox(r *request) error {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	body, err := s.readJSON(r)
	if err != nil {
		return err
	}
	spec, err := decodeCreate(body, s.opts.MaxTimeout)
	if err != nil {
		return err
	}
	if spec.Isolation == "" {
		spec.Isolation = s.opts.Isolation
	}
	if spec.NetworkPolicy != nil && !s.manager.EnforcesPolicies() {
		return invalid(sandbox.CodeNotSupported, "networkPolicy can't be enforced by this server's engine. Leave it out; the sandbox then reaches public addresses only.")
	}
	if spec.CredentialProxy && s.opts.Vaults == nil {
		return invalid(sandbox.CodeNotSupported, "credentialProxy.enabled is not supported by this server. Leave it out.")
	}
	start := time.Now()
	opts := sandbox.CreateOptions{Spec: spec, IdempotencyKey: key}
	if key != "" {
		opts.BodyHash = bodyHash(body)
	}
	sb, replayed, err := s.manager.Create(r.Context(), opts)
	s.metrics.created(time.Since(start), err)
	if err != nil {
		return err
	}
	h := r.w.Header()
	if wait := preferredWait(r.Header); wait > 0 {
		h.Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
		if sb, err = s.await(r.Context(), sb, wait); err != nil {
			return err
		}
	}
	if replayed {
		h.Set("Idempotency-Replayed", "true")
	}
	h.Set("Location", r.mount+"/sandboxes/"+sb.ID)
	writeJSON(r.w, http.StatusAccepted, createAnswer(sb))
	return nil
}

// await waits until a new sandbox has left Pending, at most for the given time.
// The sandbox exists whatever happens here, so the client must learn its id: the
// only error is that it has been deleted meanwhile.
func (s *Server) await(ctx context.Context, sb *sandbox.Sandbox, limit time.Duration) (*sandbox.Sandbox, error) {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	now, err := s.manager.Wait(waiting, sb.ID)
	if err == nil {
		return now, nil
	}
	return s.manager.Get(sb.ID)
}

func idempotencyKey(h http.Header) (string, error) {
	keys := h.Values("Idempotency-Key")
	if len(keys) == 0 {
		return "", nil
	}
	if len(keys) > 1 || keys[0] == "" || len(keys[0]) > maxIdempotencyKey || !visibleASCII(keys[0]) {
		return "", invalid(sandbox.CodeInvalidParameter, "Idempotency-Key must be one value of 1 to %d visible ASCII characters.", maxIdempotencyKey)
	}
	return keys[0], nil
}

// preferredWait reads the wait preference (RFC 7240, section 4.3). What can't be
// honoured is ignored, as the RFC says.
func preferredWait(h http.Header) time.Duration {
	for _, line := range h.Values("Prefer") {
		for pref := range strings.SplitSeq(line, ",") {
			pref, _, _ = strings.Cut(pref, ";")
			name, text, _ := strings.Cut(pref, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			text = strings.Trim(strings.TrimSpace(text), `"`)
			if n, err := strconv.ParseUint(text, 10, 32); err == nil {
				return time.Duration(min(n, maxWait)) * time.Second
			}
		}
	}
	return 0
}

func (s *Server) listSandboxes(r *request) error {
	q, err := r.query()
	if err != nil {
		return err
	}
	f := sandbox.Filter{States: q["state"]}
	if len(f.States) > maxStates {
		return invalid(sandbox.CodeInvalidParameter, "state is given %d times; at most %d are allowed.", len(f.States), maxStates)
	}
	if f.Metadata, err = parseLabelFilter(q.Get("metadata")); err != nil {
		return err
	}
	if f.Page, err = queryInt(q, "page", 1, math.MaxInt32, 1); err != nil {
		return err
	}
	if f.PageSize, err = queryInt(q, "pageSize", 1, maxPageSize, defaultPageSize); err != nil {
		return err
	}
	found, total := s.manager.List(f)
	list := api.SandboxList{Items: make([]api.Sandbox, len(found))}
	for i, sb := range found {
		list.Items[i] = sandboxAnswer(sb)
	}
	pages := (total + f.PageSize - 1) / f.PageSize
	list.Pagination = api.Pagination{Page: f.Page, PageSize: f.PageSize, TotalItems: total, TotalPages: pages, HasNextPage: f.Page < pages}
	writeJSON(r.w, http.StatusOK, list)
	return nil
}

func (s *Server) getSandbox(r *request) error {
	sb, err := s.get(r)
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, sandboxAnswer(sb))
	return nil
}

// get returns the sandbox that the path names. Absurd ids are not even looked
// up, and do not find their way into messages.
func (s *Server) get(r *request) (*sandbox.Sandbox, error) {
	id, err := r.sandboxID()
	if err != nil {
		return nil, err
	}
	return s.manager.Get(id)
}

// maxID is longer than any id.
const maxID = 128

func (r *request) sandboxID() (string, error) {
	id := r.args[0]
	if len(id) > maxID || !visibleASCII(id) {
		return "", sandbox.ErrNotFound(shorten(id))
	}
	return id, nil
}

func (s *Server) deleteSandbox(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	if err := s.manager.Delete(r.Context(), id); err != nil {
		return err
	}
	s.gateway.Evict(id)
	return empty(r, http.StatusNoContent)
}

// empty is an answer without a body.
func empty(r *request, status int) error {
	r.w.WriteHeader(status)
	return nil
}

func (s *Server) pauseSandbox(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	if err := s.manager.Pause(r.Context(), id); err != nil {
		return err
	}
	return empty(r, http.StatusAccepted)
}

func (s *Server) resumeSandbox(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	if err := s.manager.Resume(r.Context(), id); err != nil {
		return err
	}
	return empty(r, http.StatusAccepted)
}

func (s *Server) patchMetadata(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	body, err := s.readJSON(r, "application/merge-patch+json")
	if err != nil {
		return err
	}
	patch, err := decodePatch(body)
	if err != nil {
		return err
	}
	sb, err := s.manager.PatchMetadata(r.Context(), id, patch)
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, sandboxAnswer(sb))
	return nil
}

func (s *Server) renewSandbox(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	body, err := s.readJSON(r)
	if err != nil {
		return err
	}
	at, err := decodeRenew(body)
	if err != nil {
		return err
	}
	sb, err := s.manager.Renew(r.Context(), id, at)
	if err != nil {
		return err
	}
	if sb.ExpiresAt != nil {
		at = *sb.ExpiresAt
	}
	writeJSON(r.w, http.StatusOK, api.RenewResponse{ExpiresAt: instant(at)})
	return nil
}

func decodeRenew(body *value) (time.Time, error) {
	d := new(decoder)
	if !d.is(body, kindObject) {
		return time.Time{}, d.err
	}
	d.only(body, "expiresAt")
	text := d.required(body, "expiresAt", bytesRule{max: maxShown})
	if d.err != nil {
		return time.Time{}, d.err
	}
	at, ok := parseInstant(text)
	if !ok {
		return time.Time{}, invalid(sandbox.CodeInvalidExpiration, `expiresAt is %s; it must be an RFC 3339 time such as "2030-01-31T12:00:00Z".`, quote(text))
	}
	return at, nil
}

// parseInstant reads RFC 3339, and without an offset takes it as UTC.
func parseInstant(text string) (time.Time, bool) {
	text = strings.ToUpper(strings.TrimSpace(text))
	for _, layout := range [...]string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}
