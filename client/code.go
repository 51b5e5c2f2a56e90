package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Code is one piece of code for the interpreter of a sandbox.
type Code struct {
	// Source is the code, at most 10 MiB.
	Source string
	// Language is "python", "javascript", "typescript", "bash" or another that
	// Languages lists. It may be empty when Context is set.
	Language string
	// Context is the id of a context. Empty means the sandbox's default
	// context of the language, which is made by its first run.
	Context string
}

// CodeOutput receives what code prints and shows, in order, from the goroutine
// that runs it. A nil field drops its part.
type CodeOutput struct {
	Stdout, Stderr io.Writer
	// OnStart is told the context's id before any output. InterruptCode takes
	// it.
	OnStart func(contextID string)
	// OnResult is given each value that the code shows, the value of its last
	// expression among them. Its error ends the run.
	OnResult func(CodeResult) error
}

// CodeResult is one value in all its representations: the keys are MIME types,
// and the values are JSON, a string for most types, with binary data in base64.
// The sandbox wrote them.
type CodeResult map[string]json.RawMessage

// Text returns the representation of a MIME type as a string: the string itself,
// or the JSON of what is none.
func (r CodeResult) Text(mime string) (string, bool) {
	raw, ok := r[mime]
	if !ok {
		return "", false
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s, true
	}
	return string(raw), true
}

// CodeError is an error of the code itself, such as an exception.
type CodeError struct {
	Name      string
	Value     string
	Traceback []string
}

// Error returns name and value with control characters escaped.
func (e *CodeError) Error() string { return Printable(e.Name) + ": " + Printable(e.Value) }

// CodeOutcome is how a run of code ended.
type CodeOutcome struct {
	// Context is the id of the context in which it ran.
	Context string
	// Count numbers the runs of a context; zero when the sandbox did not say.
	Count int64
	// Duration is how long the code ran, as the sandbox measured it; zero when
	// it did not end with success.
	Duration time.Duration
	// Err is the code's own error; nil for success.
	Err *CodeError
}

type codeContextRef struct {
	ID       string `json:"id,omitempty"`
	Language string `json:"language,omitempty"`
}

// RunCode runs code and returns when it has ended. What earlier runs in the same
// context have made is there. The error is nil when the code ran, whatever came
// of it: its own failure is in the outcome. When ctx ends, RunCode returns and
// the sandbox interrupts the code, whose context lives on.
func (c *Client) RunCode(ctx context.Context, id string, code Code, out CodeOutput) (*CodeOutcome, error) {
	if code.Language == "" && code.Context == "" {
		return nil, errors.New("code needs a Language or a Context")
	}
	in := struct {
		Code    string         `json:"code"`
		Context codeContextRef `json:"context"`
	}{code.Source, codeContextRef{code.Context, code.Language}}
	var res *CodeOutcome
	err := c.follow(ctx, id, "/code", in, func(events *eventReader) (err error) {
		res, err = consumeCode(events, out)
		return err
	})
	return res, err
}

// codeEvent is an event of the interpreter (OpenSandbox execd API).
type codeEvent struct {
	event
	Results CodeResult `json:"results"`
	Count   int64      `json:"execution_count"`
	Millis  int64      `json:"execution_time"`
	// Code and Message are those of an error that is no event.
	Code    string `json:"code"`
	Message string `json:"message"`
}

// consumeCode passes events on until the terminal one.
func consumeCode(r *eventReader, out CodeOutput) (*CodeOutcome, error) {
	res := new(CodeOutcome)
	w := newPrinter(Output{Stdout: out.Stdout, Stderr: out.Stderr})
	for {
		if !r.more() {
			if err := w.flush(); err != nil {
				return res, err
			}
		}
		raw, err := r.next()
		if err != nil {
			return res, errors.Join(streamBroke(err), w.flush())
		}
		var ev codeEvent
		if err := json.Unmarshal(raw, &ev); err != nil {
			return res, errors.Join(errors.New("an event of the stream is not valid JSON"), w.flush())
		}
		switch ev.Type {
		case "init":
			res.Context = ev.Text
			if out.OnStart != nil {
				out.OnStart(ev.Text)
			}
		case "stdout":
			err = w.event(stdout, &ev.event)
		case "stderr":
			err = w.event(stderr, &ev.event)
		case "execution_count":
			res.Count = ev.Count
		case "result":
			if err = w.flush(); err == nil && out.OnResult != nil {
				err = out.OnResult(ev.Results.named())
			}
		case "execution_complete":
			res.Duration = time.Duration(max(ev.Millis, 0)) * time.Millisecond
			return res, w.flush()
		case "error":
			res.Err = ev.failure()
			return res, w.flush()
		case "":
			if ev.Message != "" { // OpenSandbox code interpreter
				return res, errors.Join(&Error{StatusCode: http.StatusInternalServerError, Code: ev.Code, Message: ev.Message}, w.flush())
			}
		}
		if err != nil {
			return res, err
		}
	}
}

// streamBroke is the error for a stream without its terminal event.
func streamBroke(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrConnectionLost
	case errors.Is(err, errEventTooLong):
		return err
	}
	return fmt.Errorf("%w: %w", ErrConnectionLost, err)
}

// named gives plain text its MIME type back, which the wire writes as "text".
func (r CodeResult) named() CodeResult {
	if text, ok := r["text"]; ok {
		delete(r, "text")
		r["text/plain"] = text
	}
	return r
}

func (e *codeEvent) failure() *CodeError {
	if e.Error == nil {
		return &CodeError{Name: "Error", Value: "the sandbox gave no reason"}
	}
	return &CodeError{Name: e.Error.Name, Value: e.Error.Value, Traceback: e.Error.Traceback}
}

// CodeContext is a place where code keeps its state between runs.
type CodeContext struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	// Cwd is where it began; empty for the sandbox's own directory.
	Cwd string `json:"cwd,omitempty"`
}

// CreateCodeContext makes a context of a language and starts its interpreter, in
// a directory (empty for the sandbox's own).
func (c *Client) CreateCodeContext(ctx context.Context, id, language, cwd string) (*CodeContext, error) {
	in := struct {
		Language string `json:"language"`
		Cwd      string `json:"cwd,omitempty"`
	}{language, cwd}
	out := new(CodeContext)
	if err := c.code(ctx, id, http.MethodPost, "/code/context", nil, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

// CodeContexts lists the contexts of a language, or all when it is empty, the
// default ones among them.
func (c *Client) CodeContexts(ctx context.Context, id, language string) ([]CodeContext, error) {
	q := url.Values{}
	if language != "" {
		q.Set("language", language)
	}
	var out []CodeContext
	err := c.code(ctx, id, http.MethodGet, "/code/contexts", q, nil, &out)
	return out, err
}

// CodeContext returns one context.
func (c *Client) CodeContext(ctx context.Context, id, contextID string) (*CodeContext, error) {
	out := new(CodeContext)
	if err := c.code(ctx, id, http.MethodGet, "/code/contexts/"+url.PathEscape(contextID), nil, nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteCodeContext ends a context and what runs in it.
func (c *Client) DeleteCodeContext(ctx context.Context, id, contextID string) error {
	return c.code(ctx, id, http.MethodDelete, "/code/contexts/"+url.PathEscape(contextID), nil, nil, nil)
}

// DeleteCodeContexts ends all contexts of a language.
func (c *Client) DeleteCodeContexts(ctx context.Context, id, language string) error {
	return c.code(ctx, id, http.MethodDelete, "/code/contexts", url.Values{"language": {language}}, nil, nil)
}

// InterruptCode stops the code that runs in a context, whose state stays.
func (c *Client) InterruptCode(ctx context.Context, id, contextID string) error {
	return c.interrupt(ctx, id, "/code", contextID)
}

// Language is one that the interpreter of a sandbox may run.
type Language struct {
	Name    string   `json:"language"`
	Aliases []string `json:"aliases,omitempty"`
	// Available says whether the sandbox's image can run it.
	Available bool `json:"available"`
	// Program is the file that runs it.
	Program string `json:"program,omitempty"`
	// Missing names the program that the image lacks.
	Missing string `json:"missing,omitempty"`
}

// Languages lists the languages of the interpreter. Servers other than paddock
// do not have this route.
func (c *Client) Languages(ctx context.Context, id string) ([]Language, error) {
	var out []Language
	err := c.code(ctx, id, http.MethodGet, "/code/languages", nil, nil, &out)
	return out, err
}

func (c *Client) code(ctx context.Context, id, method, route string, q url.Values, in, out any) error {
	if strings.HasSuffix(route, "/.") || strings.HasSuffix(route, "/..") || strings.HasSuffix(route, "/") {
		return errors.New("the context id is empty or a dot segment")
	}
	p, err := execdPath(id, route)
	if err != nil {
		return err
	}
	return c.call(ctx, &request{method: method, path: p, query: q}, in, out)
}
