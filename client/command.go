package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Command says what to run in a sandbox. Exactly one of Shell and Argv is set.
type Command struct {
	// Shell is a line for the sandbox's shell (bash, else sh).
	Shell string
	// Argv is run as it is, without a shell.
	Argv []string
	// Cwd is the working directory; empty means the sandbox's own.
	Cwd string
	// Env is added to the sandbox's environment.
	Env map[string]string
	// UID and GID are the identity to run as; nil means the sandbox's own. GID
	// needs UID.
	UID, GID *uint32
	// Timeout kills the command, in whole milliseconds; zero means never.
	Timeout time.Duration
}

type commandBody struct {
	Command    string            `json:"command,omitempty"`
	Argv       []string          `json:"argv,omitempty"`
	Cwd        string            `json:"cwd,omitempty"`
	Background bool              `json:"background,omitempty"`
	Timeout    int64             `json:"timeout,omitempty"`
	UID        *uint32           `json:"uid,omitempty"`
	GID        *uint32           `json:"gid,omitempty"`
	Envs       map[string]string `json:"envs,omitempty"`
}

func (cmd *Command) body(background bool) (*commandBody, error) {
	if (cmd.Shell == "") == (len(cmd.Argv) == 0) {
		return nil, errors.New("a command needs exactly one of Shell and Argv")
	}
	if cmd.Timeout < 0 || (cmd.Timeout > 0 && cmd.Timeout < time.Millisecond) {
		return nil, fmt.Errorf("command time-out %s is below one millisecond", cmd.Timeout)
	}
	if cmd.GID != nil && cmd.UID == nil {
		return nil, errors.New("a command with a GID needs a UID")
	}
	return &commandBody{Command: cmd.Shell, Argv: cmd.Argv, Cwd: cmd.Cwd, Background: background,
		Timeout: cmd.Timeout.Milliseconds(), UID: cmd.UID, GID: cmd.GID, Envs: cmd.Env}, nil
}

// Output receives what a command prints, exact to the byte when the sandbox is
// paddock's. Other servers leave line ends out, so there each piece ends with
// one. The calls come from the goroutine that runs the command, in the order in
// which the output was printed; while one is busy the command's pipe fills up and
// it waits. An error from a writer ends the run. A nil field drops its part.
type Output struct {
	Stdout, Stderr io.Writer
	// OnStart is told the command's id before any output. Interrupt,
	// CommandStatus and CommandLogs take it.
	OnStart func(commandID string)
}

// Result is how a command ended.
type Result struct {
	// ID is the command's.
	ID string
	// ExitCode is the command's own, -1 when a signal or the time-out ended it.
	ExitCode int
	// Detail is more about an end that was no success; may be empty.
	Detail []string
}

// Run runs a command and returns when it has ended. The error is nil when it
// ran, whatever its exit code; it is a *CommandError when it could not be
// started, and ErrConnectionLost when its end was not seen. When ctx ends, Run
// returns and the sandbox ends the command.
func (c *Client) Run(ctx context.Context, id string, cmd Command, out Output) (*Result, error) {
	body, err := cmd.body(false)
	if err != nil {
		return nil, err
	}
	return c.runStream(ctx, id, "/command", body, out)
}

// Start starts a command in the background and returns its id. Follow it with
// CommandStatus and CommandLogs.
func (c *Client) Start(ctx context.Context, id string, cmd Command) (string, error) {
	body, err := cmd.body(true)
	if err != nil {
		return "", err
	}
	res, err := c.runStream(ctx, id, "/command", body, Output{})
	if err != nil {
		return "", err
	}
	return res.ID, nil
}

// CommandStatus is the state of a command.
type CommandStatus struct {
	ID string `json:"id"`
	// Content is what was run, as text.
	Content string `json:"content"`
	Running bool   `json:"running"`
	// ExitCode is nil while it runs.
	ExitCode   *int       `json:"exit_code,omitempty"`
	Error      string     `json:"error,omitempty"`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}

// CommandStatus returns the state of a command.
func (c *Client) CommandStatus(ctx context.Context, id, commandID string) (*CommandStatus, error) {
	p, err := execdPath(id, "/command/status/"+url.PathEscape(commandID))
	if err != nil {
		return nil, err
	}
	st := new(CommandStatus)
	if err := c.call(ctx, &request{method: http.MethodGet, path: p}, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

// CommandLogs copies a command's combined output from the given byte on, exact
// to the byte, and returns where to go on.
func (c *Client) CommandLogs(ctx context.Context, id, commandID string, cursor int64, w io.Writer) (next int64, err error) {
	p, err := execdPath(id, "/command/"+url.PathEscape(commandID)+"/logs")
	if err != nil {
		return cursor, err
	}
	r := &request{method: http.MethodGet, path: p, repeatable: true,
		query:  url.Values{"cursor": {strconv.FormatInt(cursor, 10)}},
		header: http.Header{"Accept": {"text/plain"}}}
	resp, _, err := c.send(ctx, r)
	if err != nil {
		return cursor, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, resp.Body)
	if err != nil {
		return cursor + n, err
	}
	if v, err := strconv.ParseInt(resp.Header.Get("EXECD-COMMANDS-TAIL-CURSOR"), 10, 64); err == nil {
		return v, nil
	}
	return cursor + n, nil
}

// Interrupt ends a running command: SIGTERM to its process group, then, if it
// stays, SIGKILL.
func (c *Client) Interrupt(ctx context.Context, id, commandID string) error {
	return c.interrupt(ctx, id, "/command", commandID)
}

// CreateSession opens a shell that keeps its state between runs, in the given
// directory (empty for the sandbox's own), and returns its id.
func (c *Client) CreateSession(ctx context.Context, id, cwd string) (string, error) {
	p, err := execdPath(id, "/session")
	if err != nil {
		return "", err
	}
	in := struct {
		Cwd string `json:"cwd,omitempty"`
	}{cwd}
	var out struct {
		SessionID string `json:"session_id"`
	}
	if err := c.call(ctx, &request{method: http.MethodPost, path: p}, in, &out); err != nil {
		return "", err
	}
	return out.SessionID, nil
}

// SessionCommand is one run in a session.
type SessionCommand struct {
	Shell string
	// Cwd is where this run starts; empty means where the last one ended.
	Cwd string
	// Timeout ends the run, in whole milliseconds; zero means the server's
	// default.
	Timeout time.Duration
}

// RunInSession runs a line in a session, as Run does.
func (c *Client) RunInSession(ctx context.Context, id, sessionID string, cmd SessionCommand, out Output) (*Result, error) {
	in := struct {
		Command string `json:"command"`
		Cwd     string `json:"cwd,omitempty"`
		Timeout int64  `json:"timeout,omitempty"`
	}{cmd.Shell, cmd.Cwd, cmd.Timeout.Milliseconds()}
	return c.runStream(ctx, id, "/session/"+url.PathEscape(sessionID)+"/run", in, out)
}

// DeleteSession closes a session and ends what runs in it.
func (c *Client) DeleteSession(ctx context.Context, id, sessionID string) error {
	p, err := execdPath(id, "/session/"+url.PathEscape(sessionID))
	if err != nil {
		return err
	}
	return c.call(ctx, &request{method: http.MethodDelete, path: p}, nil, nil)
}

// runStream posts a run and follows its events to the terminal one.
func (c *Client) runStream(ctx context.Context, id, route string, in any, out Output) (res *Result, err error) {
	followErr := c.follow(ctx, id, route, in, func(events *eventReader) error {
		res, err = consume(events, out)
		return err
	})
	return res, followErr
}

// follow posts a run and gives its events to read. When ctx ends, or the stream
// is given up because it has died, the error says why.
func (c *Client) follow(ctx context.Context, id, route string, in any, read func(*eventReader) error) error {
	p, err := execdPath(id, route)
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.attempt(ctx, &request{method: http.MethodPost, path: p, body: body,
		contentType: "application/json", header: http.Header{"Accept": {"text/event-stream"}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	watched := c.watch(ctx, cancel, id, resp.Body)
	defer watched.stop()
	err = read(newEventReader(watched))
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// consume passes events on until the terminal one.
func consume(r *eventReader, to Output) (*Result, error) {
	res := &Result{ExitCode: -1}
	w := newPrinter(to)
	var scratch []byte
	for {
		if !r.more() {
			// The next event may be long in coming.
			if err := w.flush(); err != nil {
				return res, err
			}
		}
		raw, err := r.next()
		if err != nil {
			return res, errors.Join(streamBroke(err), w.flush())
		}
		var out piece
		var ok bool
		if out, scratch, ok = readOutput(raw, scratch); ok {
			if err := w.print(out); err != nil {
				return res, err
			}
			continue
		}
		var ev event
		if err := json.Unmarshal(raw, &ev); err != nil {
			return res, fmt.Errorf("an event of the stream is not valid JSON: %w", err)
		}
		switch ev.Type {
		case "init":
			res.ID = ev.Text
			if to.OnStart != nil {
				to.OnStart(ev.Text)
			}
		case "stdout":
			err = w.event(stdout, &ev)
		case "stderr":
			err = w.event(stderr, &ev)
		case "execution_complete":
			res.ExitCode = 0
			return res, w.flush()
		case "error":
			err := w.flush()
			if _, cerr := ended(res, &ev); cerr != nil {
				err = cerr
			}
			return res, err
		}
		if err != nil {
			return res, err
		}
	}
}

// ended reads the exit code out of an error event: evalue holds it when the
// command ran, and words when it did not.
func ended(res *Result, ev *event) (*Result, error) {
	if ev.Error == nil {
		return res, &CommandError{Value: "the sandbox gave no reason"}
	}
	code, err := strconv.Atoi(ev.Error.Value)
	if err != nil {
		return res, &CommandError{Name: ev.Error.Name, Value: ev.Error.Value, Traceback: ev.Error.Traceback}
	}
	res.ExitCode, res.Detail = code, ev.Error.Traceback
	return res, nil
}
