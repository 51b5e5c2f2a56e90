package mcp

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

// on is the part of a tool's arguments that says which sandbox it acts on.
type on struct {
	SandboxID string `json:"sandbox_id,omitempty" jsonschema:"the sandbox to act on; leave out for this session's own one, which is made when needed and deleted when the session ends"`
}

// kind says what calling a tool may do.
type kind int

const (
	// reads changes nothing.
	reads kind = iota
	// adds makes something new, or changes what can be changed back.
	adds
	// changes may destroy what was there.
	changes
)

// addTools adds all tools.
func (s *Server) addTools() {
	s.addSandboxTools()
	s.addCommandTools()
	s.addCodeTools()
	s.addFileTools()
}

// add adds a tool that answers with JSON.
func add[In, Out any](s *Server, name, title string, k kind, description string, f func(context.Context, *mcp.CallToolRequest, In) (Out, error)) {
	mcp.AddTool(s.mcp, describe(name, title, k, description),
		func(ctx context.Context, req *mcp.CallToolRequest, in In) (*mcp.CallToolResult, Out, error) {
			ctx, done := s.bind(ctx)
			defer done()
			out, err := f(ctx, req, in)
			return nil, out, s.explain(ctx, err)
		})
}

// addText adds a tool that answers with text, and perhaps pictures.
func addText[In any](s *Server, name, title string, k kind, description string, f func(context.Context, *mcp.CallToolRequest, In) (*mcp.CallToolResult, error)) {
	mcp.AddTool(s.mcp, describe(name, title, k, description),
		func(ctx context.Context, req *mcp.CallToolRequest, in In) (*mcp.CallToolResult, any, error) {
			ctx, done := s.bind(ctx)
			defer done()
			res, err := f(ctx, req, in)
			return res, nil, s.explain(ctx, err)
		})
}

func describe(name, title string, k kind, description string) *mcp.Tool {
	destructive := k == changes
	return &mcp.Tool{Name: name, Description: description,
		Annotations: &mcp.ToolAnnotations{Title: title, ReadOnlyHint: k == reads, DestructiveHint: &destructive}}
}

// bind ends a call when the server stops.
func (s *Server) bind(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.stopping, func() { cancel(errClosing) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// act does something in the sandbox that a call names, or in the session's own
// one. After a failure that one is checked, because it may have gone.
func (s *Server) act(ctx context.Context, req *mcp.CallToolRequest, o on, f func(id string) error) (target, error) {
	return s.actFor(ctx, req, o, maxWait*time.Second, f)
}

// actFor is act for what takes up to need.
func (s *Server) actFor(ctx context.Context, req *mcp.CallToolRequest, o on, need time.Duration, f func(id string) error) (target, error) {
	t, err := s.target(ctx, req, o.SandboxID, need)
	if err != nil {
		return t, err
	}
	if err = f(t.id); err != nil && t.own != nil && ctx.Err() == nil {
		err = t.own.check(ctx, t.id, err)
	}
	return t, err
}

// note is the first line of an answer when a sandbox was made for it.
func (t target) note(s *Server) string {
	if !t.made {
		return ""
	}
	return fmt.Sprintf("(made this session's sandbox %s of image %s)\n", t.id, s.o.Image)
}

// text is an answer of text.
func text(s string) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
}

// explain adds what to do to an error that does not say it.
func (s *Server) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errClosing) {
		return cause
	}
	var e *client.Error
	switch {
	case client.IsUnauthorized(err):
		return fmt.Errorf("%w. The paddock server does not take the API key that this MCP server was started with: set PADDOCK_API_KEY", err)
	case client.IsNotFound(err) && errors.As(err, &e) && strings.HasSuffix(e.Code, "::SANDBOX_NOT_FOUND"):
		return fmt.Errorf("%w. sandbox_list shows the sandboxes that exist; without sandbox_id this session's own one is used", err)
	case errors.As(err, &e) && strings.HasSuffix(e.Code, "::SANDBOX_NOT_RUNNING") && strings.Contains(e.Message, "paused"):
		return fmt.Errorf("%w. Use sandbox_resume", err)
	case client.IsBusy(err):
		return fmt.Errorf("%w. Try again in %s", err, max(retryAfter(err), time.Second))
	case errors.Is(err, client.ErrConnectionLost):
		return fmt.Errorf("%w. Whether it ran to its end is not known", err)
	}
	return err
}

func retryAfter(err error) time.Duration {
	var e *client.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// within checks a number that may be left out (zero).
func within(name string, value, low, high, absent int) (int, error) {
	if value == 0 {
		return absent, nil
	}
	if value < low || value > high {
		return 0, fmt.Errorf("%s is %d; it must be from %d to %d", name, value, low, high)
	}
	return value, nil
}
