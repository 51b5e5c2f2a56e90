package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// States of a sandbox. Others may be added; treat an unknown one as "wait".
const (
	StatePending    = "Pending"
	StateRunning    = "Running"
	StatePausing    = "Pausing"
	StatePaused     = "Paused"
	StateResuming   = "Resuming"
	StateStopping   = "Stopping"
	StateTerminated = "Terminated"
	StateFailed     = "Failed"
)

// maxServerWait is the longest that a server holds a create (seconds of
// "Prefer: wait=N"); longer waits are continued by Wait.
const maxServerWait = 300 * time.Second

// Sandbox is one sandbox as the server shows it.
type Sandbox struct {
	ID       string            `json:"id"`
	Image    *ImageRef         `json:"image,omitempty"`
	Platform *Platform         `json:"platform,omitempty"`
	Status   Status            `json:"status"`
	Metadata map[string]string `json:"metadata,omitempty"`
	// Entrypoint is the effective argv; empty until the image is known.
	Entrypoint []string `json:"entrypoint"`
	// ExpiresAt is nil for a sandbox that never expires.
	ExpiresAt  *time.Time        `json:"expiresAt,omitempty"`
	CreatedAt  time.Time         `json:"createdAt"`
	Extensions map[string]string `json:"extensions,omitempty"`
}

// Status is a state and why.
type Status struct {
	State            string    `json:"state"`
	Reason           string    `json:"reason,omitempty"`
	Message          string    `json:"message,omitempty"`
	LastTransitionAt time.Time `json:"lastTransitionAt,omitzero"`
}

// Ended reports whether nothing of the sandbox runs any more.
func (s Status) Ended() bool { return s.State == StateTerminated || s.State == StateFailed }

// ImageRef names an image, with the login of its registry when one is needed.
type ImageRef struct {
	URI  string        `json:"uri"`
	Auth *RegistryAuth `json:"auth,omitempty"`
}

// RegistryAuth logs in to a registry for one pull. The server does not keep it.
type RegistryAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Platform names what an image was built for: "linux" and "amd64" or "arm64".
type Platform struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
}

// Volume is one volume in a sandbox. Exactly one of Host and PVC is set.
type Volume struct {
	// Name is a DNS label, unique in the request.
	Name      string      `json:"name"`
	Host      *HostVolume `json:"host,omitempty"`
	PVC       *PVC        `json:"pvc,omitempty"`
	MountPath string      `json:"mountPath"`
	ReadOnly  bool        `json:"readOnly,omitempty"`
	// SubPath is relative to the volume's root.
	SubPath string `json:"subPath,omitempty"`
}

// HostVolume is a directory of the server's host that its configuration allows.
type HostVolume struct {
	Path string `json:"path"`
}

// PVC is a named volume that the server keeps.
type PVC struct {
	ClaimName string `json:"claimName"`
	// CreateIfNotExists is true when nil.
	CreateIfNotExists          *bool `json:"createIfNotExists,omitempty"`
	DeleteOnSandboxTermination bool  `json:"deleteOnSandboxTermination,omitempty"`
}

// CreateRequest says what sandbox to make. Only Image is required.
type CreateRequest struct {
	Image    string
	Auth     *RegistryAuth
	Platform *Platform
	// Entrypoint replaces the image's ENTRYPOINT and CMD.
	Entrypoint []string
	Env        map[string]string
	// ResourceLimits has the keys "cpu" ("500m", "2"), "memory" ("512Mi"),
	// "pids", "ephemeral-storage" and "gpu".
	ResourceLimits map[string]string
	// Timeout is the sandbox's lifetime, in whole seconds, at least 60 s. Zero
	// means that it never expires.
	Timeout    time.Duration
	Metadata   map[string]string
	Volumes    []Volume
	Extensions map[string]string
	// Lifecycle is nil without hooks.
	Lifecycle *Lifecycle
	// NetworkPolicy is what the sandbox may reach; nil for every public address.
	NetworkPolicy *NetworkPolicy
	// CredentialProxy lets the host put credentials of the sandbox's vault into
	// its requests. It needs NetworkPolicy.
	CredentialProxy bool

	// Wait is how long Create waits for the sandbox to leave Pending. Zero
	// returns as soon as it is recorded. A sandbox that is still Pending when
	// the time is over is returned as it is, without an error.
	Wait time.Duration
	// IdempotencyKey makes a repeated Create return the first one's sandbox.
	// Empty means a random key, which makes the retries of this call safe.
	IdempotencyKey string
}

type createBody struct {
	Image          *ImageRef         `json:"image"`
	Platform       *Platform         `json:"platform,omitempty"`
	Timeout        int64             `json:"timeout,omitempty"`
	ResourceLimits map[string]string `json:"resourceLimits"`
	Env            map[string]string `json:"env,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
	Entrypoint     []string          `json:"entrypoint,omitempty"`
	Volumes        []Volume          `json:"volumes,omitempty"`
	Extensions     map[string]string `json:"extensions,omitempty"`
	Lifecycle      *lifecycleBody    `json:"lifecycle,omitempty"`
	NetworkPolicy  *NetworkPolicy    `json:"networkPolicy,omitempty"`
	Credentials    *enabledBody      `json:"credentialProxy,omitempty"`
}

type enabledBody struct {
	Enabled bool `json:"enabled"`
}

// Create makes a sandbox. When Wait is set and the sandbox failed, it returns
// the sandbox together with a *FailedError.
func (c *Client) Create(ctx context.Context, r CreateRequest) (*Sandbox, error) {
	if r.Timeout%time.Second != 0 || r.Timeout < 0 {
		return nil, fmt.Errorf("timeout %s is not a whole number of seconds", r.Timeout)
	}
	hooks, err := r.Lifecycle.body()
	if err != nil {
		return nil, err
	}
	body := createBody{
		Image: &ImageRef{URI: r.Image, Auth: r.Auth}, Platform: r.Platform,
		Timeout: int64(r.Timeout / time.Second), ResourceLimits: r.ResourceLimits, Env: r.Env,
		Metadata: r.Metadata, Entrypoint: r.Entrypoint, Volumes: r.Volumes, Extensions: r.Extensions,
		Lifecycle: hooks, NetworkPolicy: r.NetworkPolicy,
	}
	if r.CredentialProxy {
		body.Credentials = &enabledBody{true}
	}
	if body.ResourceLimits == nil {
		body.ResourceLimits = map[string]string{} // required by the contract, may be empty
	}
	key := r.IdempotencyKey
	if key == "" {
		key = rand.Text()
	}
	req := &request{method: http.MethodPost, path: "/sandboxes", repeatable: true,
		header: http.Header{headerIdempotency: {key}}}
	end := time.Now().Add(r.Wait)
	held := min(r.Wait, maxServerWait)
	if held > 0 {
		req.header.Set("Prefer", "wait="+strconv.Itoa(int((held+time.Second-1)/time.Second)))
	}
	sb := new(Sandbox)
	if _, err := c.callExtra(ctx, req, &body, sb, held); err != nil {
		return nil, err
	}
	if r.Wait <= 0 {
		return sb, nil
	}
	if left := time.Until(end); sb.Status.State == StatePending && left > 0 {
		return c.Wait(ctx, sb.ID, left)
	}
	return sb, failure(sb)
}

// Wait returns the sandbox as soon as it has left Pending, or as it is after
// limit. A failed sandbox comes together with a *FailedError.
func (c *Client) Wait(ctx context.Context, id string, limit time.Duration) (*Sandbox, error) {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for delay := retryBase; ; delay = min(2*delay, retryMax) {
		sb, err := c.Get(ctx, id)
		if err != nil || sb.Status.State != StatePending || waiting.Err() != nil {
			return sb, errors.Join(err, failure(sb))
		}
		// The gateway holds a request to a Pending sandbox until it runs, so
		// this returns at the moment of the change. An error means that it
		// failed, or that the server would not hold any longer: look again.
		if c.pingHeld(waiting, id) == nil {
			continue
		}
		timer := time.NewTimer(delay)
		select {
		case <-waiting.Done():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return sb, context.Cause(ctx)
		}
	}
}

func failure(sb *Sandbox) error {
	if sb == nil || sb.Status.State != StateFailed {
		return nil
	}
	return &FailedError{Sandbox: sb}
}

func (c *Client) pingHeld(ctx context.Context, id string) error {
	p, err := execdPath(id, "/ping")
	if err != nil {
		return err
	}
	resp, err := c.attempt(ctx, &request{method: http.MethodGet, path: p})
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	return resp.Body.Close()
}

// Get returns one sandbox.
func (c *Client) Get(ctx context.Context, id string) (*Sandbox, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	sb := new(Sandbox)
	if err := c.call(ctx, &request{method: http.MethodGet, path: p}, nil, sb); err != nil {
		return nil, err
	}
	return sb, nil
}

// ListOptions choose sandboxes. The zero value is the first page of all.
type ListOptions struct {
	// States keeps sandboxes in any of them; case does not matter.
	States []string
	// Metadata keeps sandboxes that have all of these.
	Metadata map[string]string
	// Page counts from 1; PageSize is 1 to 200. Zero means 1 and 20.
	Page, PageSize int
}

// Page is one page of a list, newest sandboxes first.
type Page struct {
	Items      []Sandbox  `json:"items"`
	Pagination Pagination `json:"pagination"`
}

// Pagination says where a page is.
type Pagination struct {
	Page        int  `json:"page"`
	PageSize    int  `json:"pageSize"`
	TotalItems  int  `json:"totalItems"`
	TotalPages  int  `json:"totalPages"`
	HasNextPage bool `json:"hasNextPage"`
}

// List returns one page.
func (c *Client) List(ctx context.Context, o ListOptions) (*Page, error) {
	q := url.Values{}
	for _, s := range o.States {
		q.Add("state", s)
	}
	if len(o.Metadata) > 0 {
		// One value that is itself an encoded query (OpenSandbox lifecycle API).
		inner := url.Values{}
		for k, v := range o.Metadata {
			inner.Set(k, v)
		}
		q.Set("metadata", inner.Encode())
	}
	if o.Page != 0 {
		q.Set("page", strconv.Itoa(o.Page))
	}
	if o.PageSize != 0 {
		q.Set("pageSize", strconv.Itoa(o.PageSize))
	}
	page := new(Page)
	if err := c.call(ctx, &request{method: http.MethodGet, path: "/sandboxes", query: q}, nil, page); err != nil {
		return nil, err
	}
	return page, nil
}

// All goes through every page. A sandbox that is made or deleted meanwhile may
// move between pages; each id is given at most once.
func (c *Client) All(ctx context.Context, o ListOptions) iter.Seq2[*Sandbox, error] {
	return func(yield func(*Sandbox, error) bool) {
		if o.PageSize == 0 {
			o.PageSize = 200
		}
		seen := map[string]bool{}
		for o.Page = max(o.Page, 1); ; o.Page++ {
			page, err := c.List(ctx, o)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Items {
				sb := &page.Items[i]
				if seen[sb.ID] {
					continue
				}
				seen[sb.ID] = true
				if !yield(sb, nil) {
					return
				}
			}
			if !page.Pagination.HasNextPage || len(page.Items) == 0 {
				return
			}
		}
	}
}

// Delete ends a sandbox in any state and removes all of it.
func (c *Client) Delete(ctx context.Context, id string) error {
	p, err := sandboxPath(id)
	if err != nil {
		return err
	}
	return c.remove(ctx, p, nil)
}

// PatchMetadata sets the given keys and removes those whose value is nil;
// others stay.
func (c *Client) PatchMetadata(ctx context.Context, id string, patch map[string]*string) (*Sandbox, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	if patch == nil {
		patch = map[string]*string{}
	}
	sb := new(Sandbox)
	// A merge patch says what shall be, so doing it twice is doing it once.
	r := &request{method: http.MethodPatch, path: p + "/metadata", repeatable: true}
	if err := c.call(ctx, r, patch, sb); err != nil {
		return nil, err
	}
	return sb, nil
}

// Renew sets the moment of expiry, which may be sooner or later than the
// present one, and returns it as the server will keep it.
func (c *Client) Renew(ctx context.Context, id string, expiresAt time.Time) (time.Time, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return time.Time{}, err
	}
	var body struct {
		ExpiresAt time.Time `json:"expiresAt"`
	}
	body.ExpiresAt = expiresAt.UTC()
	r := &request{method: http.MethodPost, path: p + "/renew-expiration", repeatable: true}
	err = c.call(ctx, r, &body, &body)
	return body.ExpiresAt, err
}

// Pause freezes every process of the sandbox. It goes on expiring.
func (c *Client) Pause(ctx context.Context, id string) error { return c.post(ctx, id, "/pause") }

// Resume lets a paused sandbox go on.
func (c *Client) Resume(ctx context.Context, id string) error { return c.post(ctx, id, "/resume") }

func (c *Client) post(ctx context.Context, id, action string) error {
	p, err := sandboxPath(id)
	if err != nil {
		return err
	}
	return c.call(ctx, &request{method: http.MethodPost, path: p + action}, nil, nil)
}

// Health reports whether the server answers.
func (c *Client) Health(ctx context.Context) error {
	return c.call(ctx, &request{method: http.MethodGet, path: "/health", fromRoot: true}, nil, nil)
}

// ServerVersion returns the server's version.
func (c *Client) ServerVersion(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"version"`
	}
	err := c.call(ctx, &request{method: http.MethodGet, path: "/version", fromRoot: true}, nil, &v)
	return v.Version, err
}
