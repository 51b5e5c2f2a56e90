package code

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxCode bounds the code of one run, in bytes.
	maxCode = 10 << 20
	// maxBody bounds a request with code: JSON needs up to 6 bytes for one.
	maxBody = 6*maxCode + 64<<10
	// largeBody is the size in bytes from which on only maxLargeBodies
	// requests are read at a time.
	largeBody      = 1 << 20
	maxLargeBodies = 2
	// bodyTimeout bounds how long a large body may take.
	bodyTimeout = 2 * time.Minute
)

// runRequest is the body of POST /code.
type runRequest struct {
	Code    *string `json:"code"`
	Context struct {
		ID       string `json:"id"`
		Language string `json:"language"`
		Cwd      string `json:"cwd"`
	} `json:"context"`
}

// run is POST /code.
func (a *API) run(w http.ResponseWriter, r *http.Request) error {
	var req runRequest
	if err := a.readRun(w, r, &req); err != nil {
		return err
	}
	if req.Context.ID == "" {
		if shell, background := isShell(req.Context.Language); shell {
			return a.runCommand(w, r, &req, background)
		}
	}
	c, err := a.contextOf(r.Context(), &req)
	if err != nil {
		return err
	}
	return c.run(w, r, *req.Code)
}

// readRun reads and checks a request with code.
func (a *API) readRun(w http.ResponseWriter, r *http.Request, req *runRequest) error {
	if r.ContentLength < 0 || r.ContentLength > largeBody {
		select {
		case a.large <- struct{}{}:
			defer func() { <-a.large }()
		case <-r.Context().Done():
			return r.Context().Err()
		}
		// Nobody may keep others waiting for ever. Where no deadline can be
		// set, as in some tests, there is nobody to wait.
		ctl := http.NewResponseController(w)
		if ctl.SetReadDeadline(time.Now().Add(bodyTimeout)) == nil {
			defer func() { _ = ctl.SetReadDeadline(time.Time{}) }()
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return badBody(err)
	}
	// What follows the value is ignored (OpenSandbox execd API).
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(req); err != nil {
		return badBody(err)
	}
	switch {
	case req.Code == nil:
		return web.BadBody("code is missing; send the code to run as a string")
	case strings.TrimSpace(*req.Code) == "":
		return web.BadBody("code is empty")
	case len(*req.Code) > maxCode:
		return web.Errorf(http.StatusRequestEntityTooLarge, web.CodeInvalidBody, "code is %d bytes long; at most %d are taken: upload it as a file and import that", len(*req.Code), maxCode)
	}
	return nil
}

func badBody(err error) error {
	switch e := err.(type) {
	case *http.MaxBytesError:
		return web.Errorf(http.StatusRequestEntityTooLarge, web.CodeInvalidBody, "the request body is larger than %d bytes", e.Limit)
	case *json.UnmarshalTypeError:
		want := "a string"
		if e.Field == "" || e.Field == "context" {
			want = "an object"
		}
		return web.BadBody("field %q is a JSON %s; %s is needed", e.Field, e.Value, want)
	case *json.SyntaxError:
		return web.BadBody("the request body is not JSON: %s at byte %d", e.Error(), e.Offset)
	}
	switch {
	case errors.Is(err, io.EOF):
		return web.BadBody("the request body is empty; a JSON value is needed")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return web.BadBody("the request body ends in the middle of a JSON value")
	}
	return web.BadBody("reading the request body: %v", err)
}

// contextOf returns the context that a request means, which is made when it is
// the default one of its language.
func (a *API) contextOf(ctx context.Context, req *runRequest) (*codeContext, error) {
	if req.Context.ID != "" {
		c := a.contexts.find(req.Context.ID)
		if c == nil {
			return nil, notFound(req.Context.ID)
		}
		if name := req.Context.Language; name != "" && !c.lang.called(name) {
			return nil, web.BadBody("context.language is %q, but context %q is one of %s; leave the language out", name, c.id, c.lang.name)
		}
		return c, nil
	}
	lang, err := a.language(ctx, req.Context.Language)
	if err != nil {
		return nil, err
	}
	return a.contexts.defaultOf(lang, func() (*codeContext, error) { return a.newContext(lang, "") })
}

// runCommand runs code without a language as a shell command.
func (a *API) runCommand(w http.ResponseWriter, r *http.Request, req *runRequest, background bool) error {
	if a.opts.Commands == nil {
		return web.Errorf(http.StatusInternalServerError, web.CodeNotSupported, "this execd runs no shell commands; name a language: %s", known())
	}
	// Only strings and a boolean: it always encodes.
	body, _ := json.Marshal(map[string]any{"command": *req.Code, "cwd": req.Context.Cwd, "background": background})
	inner := r.WithContext(r.Context())
	inner.Body, inner.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return a.opts.Commands.Run(w, inner)
}

// openStream begins the answer to a run.
func openStream(w http.ResponseWriter, id string) *event.Stream {
	stream := event.Open(w, id)
	return stream
}
