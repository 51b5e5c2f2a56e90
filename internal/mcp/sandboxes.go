package mcp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// minLifetime is the contract's; maxLifetime keeps a model from making
	// sandboxes that nobody ends.
	minLifetime = time.Minute
	maxLifetime = 24 * time.Hour
	// maxListed bounds the sandboxes of one answer; the API's own limit.
	maxListed = 200
)

// sandboxInfo is a sandbox as tools show it.
type sandboxInfo struct {
	ID      string `json:"sandbox_id"`
	Image   string `json:"image,omitempty"`
	State   string `json:"state" jsonschema:"Pending, Running, Paused, Stopping, Terminated, Failed or a state in between"`
	Message string `json:"message,omitempty" jsonschema:"why it is in this state"`
	// Times are text in RFC 3339, because clients show them as they are.
	CreatedAt string            `json:"created_at,omitempty"`
	ExpiresAt string            `json:"expires_at,omitempty" jsonschema:"when it is deleted; absent for never"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

func infoOf(sb *client.Sandbox) sandboxInfo {
	out := sandboxInfo{ID: sb.ID, State: sb.Status.State, Message: client.Printable(sb.Status.Message), Metadata: sb.Metadata}
	if sb.Image != nil {
		out.Image = sb.Image.URI
	}
	if !sb.CreatedAt.IsZero() {
		out.CreatedAt = stamp(sb.CreatedAt)
	}
	if sb.ExpiresAt != nil {
		out.ExpiresAt = stamp(*sb.ExpiresAt)
	}
	return out
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

type createIn struct {
	Image      string            `json:"image,omitempty" jsonschema:"container image, such as python:3.11 or node:22; leave out for the default image"`
	Timeout    int               `json:"timeout_seconds,omitempty" jsonschema:"lifetime in seconds, 60 to 86400; sandbox_renew prolongs it"`
	CPU        string            `json:"cpu,omitempty" jsonschema:"CPU limit, such as 500m (half a core) or 2"`
	Memory     string            `json:"memory,omitempty" jsonschema:"memory limit, such as 512Mi or 2Gi"`
	Env        map[string]string `json:"env,omitempty" jsonschema:"environment of every process in the sandbox"`
	Metadata   map[string]string `json:"metadata,omitempty" jsonschema:"labels to find the sandbox by: keys and values of at most 63 letters, digits and -_. each"`
	Entrypoint []string          `json:"entrypoint,omitempty" jsonschema:"program and arguments that the sandbox lives as long as; leave out for a sandbox that waits for commands"`
}

type listIn struct {
	State string `json:"state,omitempty" jsonschema:"only sandboxes in this state, such as Running"`
	Limit int    `json:"limit,omitempty" jsonschema:"how many at most, 1 to 200, default 50"`
}

type listOut struct {
	Sandboxes []sandboxInfo `json:"sandboxes" jsonschema:"the newest first"`
	Total     int           `json:"total" jsonschema:"how many there are, these included"`
}

type named struct {
	SandboxID string `json:"sandbox_id" jsonschema:"the sandbox"`
}

type renewIn struct {
	on
	Timeout int `json:"timeout_seconds" jsonschema:"let it live this many seconds from now, 60 to 86400"`
}

type renewOut struct {
	SandboxID string `json:"sandbox_id"`
	ExpiresAt string `json:"expires_at"`
}

type portIn struct {
	on
	Port int `json:"port" jsonschema:"a TCP port that a program in the sandbox listens on, 1 to 65535"`
}

type portOut struct {
	SandboxID string            `json:"sandbox_id"`
	URL       string            `json:"url"`
	Headers   map[string]string `json:"headers,omitempty" jsonschema:"send these with every request; they hold a secret that opens this sandbox only"`
}

type done struct {
	SandboxID string `json:"sandbox_id"`
	Done      string `json:"done"`
}

func (s *Server) addSandboxTools() {
	add(s, "sandbox_create", "Create a sandbox", adds,
		"Make a sandbox and wait until it runs. It is not this session's own sandbox: pass its sandbox_id to the other tools. It lives until it expires or sandbox_delete. Not needed for plain work: without sandbox_id the other tools use the session's own sandbox.",
		s.create)
	add(s, "sandbox_list", "List sandboxes", reads, "List the sandboxes of this server, the newest first.", s.list)
	add(s, "sandbox_delete", "Delete a sandbox", changes, "Delete a sandbox in any state, with its files and processes. This cannot be undone.", s.remove1)
	add(s, "sandbox_pause", "Pause a sandbox", adds, "Freeze every process of a sandbox. It uses no CPU, keeps its memory and files, and goes on expiring.",
		s.simply("paused", func(ctx context.Context, id string) error { return s.o.Client.Pause(ctx, id) }))
	add(s, "sandbox_resume", "Resume a sandbox", adds, "Let a paused sandbox go on.",
		s.simply("resumed", func(ctx context.Context, id string) error { return s.o.Client.Resume(ctx, id) }))
	add(s, "sandbox_renew", "Prolong a sandbox", adds, "Set how long a sandbox lives, counted from now. The session's own sandbox is prolonged by itself while it is used.", s.renew)
	add(s, "port_url", "Get the address of a port", reads,
		"Get the URL at which a port of a sandbox is reached from outside, over HTTP or WebSocket, and the headers that each request needs. Start the program that listens first, with run_command and background=true, on any address.",
		s.port)
}

// lifetime checks a lifetime in seconds.
func (s *Server) lifetime(seconds int) (time.Duration, error) {
	n, err := within("timeout_seconds", seconds, int(minLifetime/time.Second), int(maxLifetime/time.Second), int(s.o.Lifetime/time.Second))
	return time.Duration(n) * time.Second, err
}

func (s *Server) create(ctx context.Context, _ *mcp.CallToolRequest, in createIn) (sandboxInfo, error) {
	life, err := s.lifetime(in.Timeout)
	if err != nil {
		return sandboxInfo{}, err
	}
	r := client.CreateRequest{Image: in.Image, Timeout: life, Env: in.Env, Entrypoint: in.Entrypoint, Wait: startTimeout,
		ResourceLimits: map[string]string{}, Metadata: map[string]string{madeByKey: madeByValue}}
	if r.Image == "" {
		r.Image = s.o.Image
	}
	for k, v := range s.o.Limits {
		r.ResourceLimits[k] = v
	}
	for k, v := range map[string]string{"cpu": in.CPU, "memory": in.Memory} {
		if v != "" {
			r.ResourceLimits[k] = v
		}
	}
	for k, v := range in.Metadata {
		r.Metadata[k] = v
	}
	if len(r.Entrypoint) == 0 {
		r.Entrypoint = keepAlive
	}
	sb, err := s.o.Client.Create(ctx, r)
	var failed *client.FailedError
	switch {
	case errors.As(err, &failed):
		return sandboxInfo{}, fmt.Errorf("%w. Check image, entrypoint and limits", err)
	case err != nil:
		return sandboxInfo{}, err
	}
	return infoOf(sb), nil
}

func (s *Server) list(ctx context.Context, _ *mcp.CallToolRequest, in listIn) (listOut, error) {
	limit, err := within("limit", in.Limit, 1, maxListed, 50)
	if err != nil {
		return listOut{}, err
	}
	o := client.ListOptions{PageSize: limit}
	if in.State != "" {
		o.States = []string{in.State}
	}
	page, err := s.o.Client.List(ctx, o)
	if err != nil {
		return listOut{}, err
	}
	out := listOut{Sandboxes: []sandboxInfo{}, Total: page.Pagination.TotalItems}
	for i := range page.Items {
		out.Sandboxes = append(out.Sandboxes, infoOf(&page.Items[i]))
	}
	return out, nil
}

func (s *Server) remove1(ctx context.Context, req *mcp.CallToolRequest, in named) (done, error) {
	if in.SandboxID == "" {
		return done{}, errors.New("sandbox_id is empty: name the sandbox to delete; the session's own one is deleted when the session ends")
	}
	if err := s.o.Client.Delete(ctx, in.SandboxID); err != nil {
		return done{}, err
	}
	return done{in.SandboxID, "deleted"}, nil
}

// simply is a tool that does one thing to a sandbox.
func (s *Server) simply(what string, f func(context.Context, string) error) func(context.Context, *mcp.CallToolRequest, on) (done, error) {
	return func(ctx context.Context, req *mcp.CallToolRequest, in on) (done, error) {
		t, err := s.act(ctx, req, in, func(id string) error { return f(ctx, id) })
		return done{t.id, what}, err
	}
}

func (s *Server) renew(ctx context.Context, req *mcp.CallToolRequest, in renewIn) (renewOut, error) {
	if in.Timeout == 0 {
		return renewOut{}, errors.New("timeout_seconds is 0; it must be from 60 to 86400")
	}
	life, err := s.lifetime(in.Timeout)
	if err != nil {
		return renewOut{}, err
	}
	var at time.Time
	t, err := s.act(ctx, req, in.on, func(id string) (err error) {
		at, err = s.o.Client.Renew(ctx, id, time.Now().Add(life))
		return err
	})
	return renewOut{t.id, stamp(at)}, err
}

func (s *Server) port(ctx context.Context, req *mcp.CallToolRequest, in portIn) (portOut, error) {
	if in.Port < 1 || in.Port > 1<<16-1 {
		return portOut{}, fmt.Errorf("port is %d; it must be from 1 to 65535", in.Port)
	}
	var ep *client.Endpoint
	t, err := s.act(ctx, req, in.on, func(id string) (err error) {
		ep, err = s.o.Client.Endpoint(ctx, id, in.Port)
		return err
	})
	if err != nil {
		return portOut{}, err
	}
	return portOut{t.id, s.o.Client.EndpointURL(ep), ep.Headers}, nil
}
