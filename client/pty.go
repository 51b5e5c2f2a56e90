package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
)

// PTYRequest says what to run in a terminal. At most one of Shell and Argv is
// set; without either it is an interactive shell (bash, else sh).
//
// Argv, Env, UID, GID, Term and the size are paddock's: other servers ignore
// them.
type PTYRequest struct {
	// Shell is a line for the sandbox's shell.
	Shell string
	// Argv is run as it is, without a shell.
	Argv []string
	// Cwd is the working directory, which is made when it is missing; empty
	// means the sandbox's own.
	Cwd string
	// Env is added to the sandbox's environment.
	Env map[string]string
	// UID and GID are the identity to run as; nil means the sandbox's own. GID
	// needs UID.
	UID, GID *uint32
	// Term is the terminal's type, such as "xterm-256color"; empty means that.
	Term string
	// Cols and Rows are the terminal's first size; zero means 80 and 24.
	Cols, Rows int
}

// CreatePTY makes a terminal session and returns its id. Its program starts when
// the first client attaches. The session lives until DeletePTY.
func (c *Client) CreatePTY(ctx context.Context, id string, r PTYRequest) (sessionID string, err error) {
	if r.Shell != "" && len(r.Argv) > 0 {
		return "", errors.New("a terminal takes at most one of Shell and Argv")
	}
	if r.GID != nil && r.UID == nil {
		return "", errors.New("a terminal with a GID needs a UID")
	}
	if (r.Cols == 0) != (r.Rows == 0) {
		return "", fmt.Errorf("a terminal of %d columns and %d rows: give both or none", r.Cols, r.Rows)
	}
	in := struct {
		Cwd     string            `json:"cwd,omitempty"`
		Command string            `json:"command,omitempty"`
		Argv    []string          `json:"argv,omitempty"`
		Cols    int               `json:"cols,omitempty"`
		Rows    int               `json:"rows,omitempty"`
		Term    string            `json:"term,omitempty"`
		Envs    map[string]string `json:"envs,omitempty"`
		UID     *uint32           `json:"uid,omitempty"`
		GID     *uint32           `json:"gid,omitempty"`
	}{r.Cwd, r.Shell, r.Argv, r.Cols, r.Rows, r.Term, r.Env, r.UID, r.GID}
	p, err := execdPath(id, "/pty")
	if err != nil {
		return "", err
	}
	var out struct {
		SessionID string `json:"session_id"`
	}
	if err := c.call(ctx, &request{method: http.MethodPost, path: p}, in, &out); err != nil {
		return "", err
	}
	if out.SessionID == "" {
		return "", errors.New("the sandbox made a terminal and gave it no id")
	}
	return out.SessionID, nil
}

// PTYStatus is the state of a terminal session.
type PTYStatus struct {
	ID string `json:"session_id"`
	// Running reports whether its program was started and has not ended.
	Running bool `json:"running"`
	// Offset is how many bytes of output there have been.
	Offset int64 `json:"output_offset"`
}

// PTYStatus returns the state of a terminal session.
func (c *Client) PTYStatus(ctx context.Context, id, sessionID string) (*PTYStatus, error) {
	p, err := ptyPath(id, sessionID)
	if err != nil {
		return nil, err
	}
	st := new(PTYStatus)
	if err := c.call(ctx, &request{method: http.MethodGet, path: p}, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

// DeletePTY ends a terminal session. Its program is told that the terminal is
// gone (SIGHUP) and is killed when it stays.
func (c *Client) DeletePTY(ctx context.Context, id, sessionID string) error {
	p, err := ptyPath(id, sessionID)
	if err != nil {
		return err
	}
	return c.remove(ctx, p, nil)
}

func ptyPath(id, sessionID string) (string, error) {
	if sessionID == "" || sessionID == "." || sessionID == ".." {
		return "", fmt.Errorf("%q is not the id of a terminal session", sessionID)
	}
	return execdPath(id, "/pty/"+url.PathEscape(sessionID))
}

// First bytes of binary messages (OpenSandbox execd API).
const (
	ptyStdin  = 0x00
	ptyStdout = 0x01
	ptyStderr = 0x02
	// ptyReplay is followed by the offset, a big-endian int64.
	ptyReplay = 0x03

	// closeTakenOver is the close code for who has lost the session to another
	// client.
	closeTakenOver = 4001
	// maxPTYMessage bounds a message of the sandbox, in bytes. The largest is a
	// replay of all that is kept, 1 MiB.
	maxPTYMessage = 2 << 20
)

// ptyFrame is a text message, of both directions.
type ptyFrame struct {
	Type     string `json:"type"`
	Cols     int    `json:"cols,omitempty"`
	Rows     int    `json:"rows,omitempty"`
	Signal   any    `json:"signal,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
	Code     string `json:"code,omitempty"`
	Error    string `json:"error,omitempty"`
}

// dialPTY opens the connection of a session. An answer with an error status is
// a *Error.
func (c *Client) dialPTY(ctx context.Context, id, sessionID string, since int64, takeover bool) (*websocket.Conn, error) {
	p, err := ptyPath(id, sessionID)
	if err != nil {
		return nil, err
	}
	q := url.Values{"pty": {"1"}, "since": {fmt.Sprint(since)}}
	if takeover {
		q.Set("takeover", "1")
	}
	req, err := c.newRequest(ctx, &request{method: http.MethodGet, path: p + "/ws", query: q})
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.bound(ctx, 0)
	defer cancel()
	// The library sets the headers of the handshake itself.
	conn, resp, err := websocket.Dial(ctx, req.URL.String(), &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: req.Header})
	if err != nil {
		if resp != nil && resp.Body != nil && resp.StatusCode >= 300 {
			return nil, errorFrom(resp)
		}
		return nil, c.explain(ctx, err)
	}
	conn.SetReadLimit(maxPTYMessage)
	return conn, nil
}

func encodeFrame(f ptyFrame) []byte {
	// Strings and numbers only: it always encodes.
	b, _ := json.Marshal(f)
	return b
}
