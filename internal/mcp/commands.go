package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// defaultTimeout and maxTimeout bound a command or code that is waited for,
	// in seconds.
	defaultTimeout = 120
	maxTimeout     = 3600
	// maxWait bounds the wait of command_status, in seconds: clients give calls
	// up after a minute or so.
	maxWait = 50
	// progressEvery is how often a client that asked hears of a long run.
	progressEvery = 2 * time.Second
)

type runIn struct {
	on
	Command    string            `json:"command" jsonschema:"shell text, run with bash or else sh"`
	Cwd        string            `json:"cwd,omitempty" jsonschema:"working directory, which must exist"`
	Env        map[string]string `json:"env,omitempty" jsonschema:"added to the environment"`
	Timeout    int               `json:"timeout_seconds,omitempty" jsonschema:"kill the command after this many seconds, 1 to 3600; default 120, and none in the background"`
	Background bool              `json:"background,omitempty" jsonschema:"return at once with a command_id, and let the command run on: for servers and long work"`
	MaxOutput  int               `json:"max_output_bytes,omitempty" jsonschema:"how much of stdout and of stderr to show at most, 1024 to 262144; default 65536, half from the beginning and half from the end"`
}

type commandIn struct {
	on
	CommandID string `json:"command_id" jsonschema:"what run_command gave"`
}

type statusIn struct {
	commandIn
	Wait int `json:"wait_seconds,omitempty" jsonschema:"wait up to this many seconds for the command to end, at most 50"`
}

type statusOut struct {
	CommandID  string `json:"command_id"`
	Command    string `json:"command"`
	Running    bool   `json:"running"`
	ExitCode   *int   `json:"exit_code,omitempty" jsonschema:"absent while it runs; -1 when a signal or the time-out ended it"`
	Error      string `json:"error,omitempty"`
	StartedAt  string `json:"started_at"`
	FinishedAt string `json:"finished_at,omitempty"`
}

type logsIn struct {
	commandIn
	Cursor    int64 `json:"cursor,omitempty" jsonschema:"the byte of the output to begin with; the next one is at the end of each answer"`
	MaxOutput int   `json:"max_output_bytes,omitempty" jsonschema:"how much to show at most, 1024 to 262144; default 65536"`
}

func (s *Server) addCommandTools() {
	addText(s, "run_command", "Run a command", changes,
		"Run a shell command in a sandbox, and get its exit code, stdout and stderr. Each command is a new process: a cd or an exported variable does not last, files do. It has no input and no terminal. Output beyond max_output_bytes is cut in the middle. With background=true it runs on after the call: see command_status and command_logs.",
		s.run)
	add(s, "command_status", "Look at a background command", reads,
		"Say whether a command still runs, and its exit code when it has ended. wait_seconds waits for its end.", s.status)
	addText(s, "command_logs", "Read the output of a background command", reads,
		"Read what a background command has printed, stdout and stderr together, from a cursor on. Go on with the next cursor that the answer names.", s.logs)
	add(s, "command_stop", "Stop a background command", changes,
		"End a running command: SIGTERM to its process group, and SIGKILL if it stays.", s.stopCommand)
}

func (s *Server) run(ctx context.Context, req *mcp.CallToolRequest, in runIn) (*mcp.CallToolResult, error) {
	if strings.TrimSpace(in.Command) == "" {
		return nil, errors.New("command is empty; give shell text such as \"ls -l\"")
	}
	limit, err := within("max_output_bytes", in.MaxOutput, minOutput, maxOutput, defaultOutput)
	if err != nil {
		return nil, err
	}
	absent := defaultTimeout
	if in.Background {
		absent = 0
	}
	seconds, err := within("timeout_seconds", in.Timeout, 1, maxTimeout, absent)
	if err != nil {
		return nil, err
	}
	cmd := client.Command{Shell: in.Command, Cwd: in.Cwd, Env: in.Env, Timeout: time.Duration(seconds) * time.Second}
	if in.Background {
		return s.start(ctx, req, in.on, cmd)
	}
	stdout, stderr := newExcerpt(limit), newExcerpt(limit)
	var res *client.Result
	began := time.Now()
	t, err := s.actFor(ctx, req, in.on, cmd.Timeout, func(id string) (err error) {
		began = time.Now()
		defer s.progress(ctx, req)()
		res, err = s.o.Client.Run(ctx, id, cmd, client.Output{Stdout: stdout, Stderr: stderr})
		return err
	})
	if err != nil {
		return nil, withOutput(err, stdout, stderr)
	}
	var b strings.Builder
	b.WriteString(t.note(s))
	timedOut := res.ExitCode < 0 && time.Since(began) >= cmd.Timeout
	switch {
	case timedOut:
		fmt.Fprintf(&b, "killed: it ran into the time-out of %d seconds. Use a larger timeout_seconds (up to %d), or background=true\n", seconds, maxTimeout)
	case res.ExitCode < 0:
		fmt.Fprintf(&b, "killed by a signal: %s\n", client.Printable(strings.Join(res.Detail, ": ")))
	default:
		fmt.Fprintf(&b, "exit code %d\n", res.ExitCode)
	}
	writeOutput(&b, stdout, stderr)
	out := text(b.String())
	// A command that failed is what the caller asked about, and no error of the
	// tool; a command that did not get to its end is one.
	out.IsError = timedOut
	return out, nil
}

// writeOutput adds both streams, and how to see what was cut of them.
func writeOutput(b *strings.Builder, stdout, stderr *excerpt) {
	if stdout.total+stderr.total == 0 {
		b.WriteString("(no output)\n")
		return
	}
	section(b, "stdout", stdout)
	section(b, "stderr", stderr)
	if cut := stdout.cut() + stderr.cut(); cut > 0 {
		fmt.Fprintf(b, "--- note ---\n%d bytes of output are not shown and not kept. To see them, run it again with its output in a file (… >/tmp/out 2>&1) and read parts with file_read or grep\n", cut)
	}
}

// withOutput adds what was printed before a failure.
func withOutput(err error, stdout, stderr *excerpt) error {
	if stdout.total+stderr.total == 0 {
		return err
	}
	var b strings.Builder
	writeOutput(&b, stdout, stderr)
	return fmt.Errorf("%w\nUntil then it printed:\n%s", err, b.String())
}

func (s *Server) start(ctx context.Context, req *mcp.CallToolRequest, o on, cmd client.Command) (*mcp.CallToolResult, error) {
	var command string
	t, err := s.act(ctx, req, o, func(id string) (err error) {
		command, err = s.o.Client.Start(ctx, id, cmd)
		return err
	})
	if err != nil {
		return nil, err
	}
	return text(fmt.Sprintf("%srunning in the background\nsandbox_id %s\ncommand_id %s\ncommand_status says whether it runs, command_logs shows its output, command_stop ends it\n", t.note(s), t.id, command)), nil
}

// progress tells a client that asked for it how long a run has taken, so that it
// does not give up. The returned function ends it.
func (s *Server) progress(ctx context.Context, req *mcp.CallToolRequest) func() {
	token := req.Params.GetProgressToken()
	if token == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		began := time.Now()
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			ran := time.Since(began).Round(time.Second)
			_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
				ProgressToken: token, Progress: ran.Seconds(), Message: fmt.Sprintf("running for %s", ran),
			})
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

func (s *Server) status(ctx context.Context, req *mcp.CallToolRequest, in statusIn) (statusOut, error) {
	wait, err := within("wait_seconds", in.Wait, 1, maxWait, 0)
	if err != nil {
		return statusOut{}, err
	}
	var st *client.CommandStatus
	_, err = s.act(ctx, req, in.on, func(id string) (err error) {
		st, err = s.awaitCommand(ctx, id, in.CommandID, time.Duration(wait)*time.Second)
		return err
	})
	if err != nil {
		return statusOut{}, commandError(in.CommandID, err)
	}
	out := statusOut{CommandID: st.ID, Command: st.Content, Running: st.Running, ExitCode: st.ExitCode, Error: client.Printable(st.Error), StartedAt: stamp(st.StartedAt)}
	if st.FinishedAt != nil {
		out.FinishedAt = stamp(*st.FinishedAt)
	}
	return out, nil
}

// awaitCommand asks until the command has ended or the time is over: the API has
// no event for it.
func (s *Server) awaitCommand(ctx context.Context, id, command string, wait time.Duration) (*client.CommandStatus, error) {
	end := time.Now().Add(wait)
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		st, err := s.o.Client.CommandStatus(ctx, id, command)
		left := time.Until(end)
		if err != nil || !st.Running || left <= 0 {
			return st, err
		}
		timer := time.NewTimer(min(delay, left))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// errEnough ends a copy that has brought what was asked for.
var errEnough = errors.New("enough")

// boundedBuffer takes so many bytes and then fails with errEnough.
type boundedBuffer struct {
	bytes.Buffer
	left int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if len(p) > b.left {
		n, _ := b.Buffer.Write(p[:b.left])
		b.left = 0
		return n, errEnough
	}
	b.left -= len(p)
	return b.Buffer.Write(p)
}

func (s *Server) logs(ctx context.Context, req *mcp.CallToolRequest, in logsIn) (*mcp.CallToolResult, error) {
	limit, err := within("max_output_bytes", in.MaxOutput, minOutput, maxOutput, defaultOutput)
	if err != nil {
		return nil, err
	}
	if in.Cursor < 0 {
		return nil, fmt.Errorf("cursor is %d; it must not be negative", in.Cursor)
	}
	out := &boundedBuffer{left: limit}
	var st *client.CommandStatus
	_, err = s.act(ctx, req, in.on, func(id string) (err error) {
		// Before the output: what is said to have ended has no more of it.
		if st, err = s.o.Client.CommandStatus(ctx, id, in.CommandID); err != nil {
			return err
		}
		_, err = s.o.Client.CommandLogs(ctx, id, in.CommandID, in.Cursor, out)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, commandError(in.CommandID, err)
	}
	shown := out.Bytes()
	if out.left == 0 {
		shown = wholeEnd(shown)
	}
	next := in.Cursor + int64(len(shown))
	var b strings.Builder
	b.WriteString(valid(shown))
	if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "--- next cursor %d; ", next)
	switch {
	case out.left == 0:
		b.WriteString("there may be more output")
	case st.Running:
		b.WriteString("the command is still running")
	case st.ExitCode != nil:
		fmt.Fprintf(&b, "the command has ended with exit code %d", *st.ExitCode)
	default:
		b.WriteString("the command has ended")
	}
	b.WriteString(" ---\n")
	return text(b.String()), nil
}

func (s *Server) stopCommand(ctx context.Context, req *mcp.CallToolRequest, in commandIn) (done, error) {
	t, err := s.act(ctx, req, in.on, func(id string) error {
		st, err := s.o.Client.CommandStatus(ctx, id, in.CommandID)
		if err != nil || !st.Running {
			return err
		}
		if err := s.o.Client.Interrupt(ctx, id, in.CommandID); err != nil {
			// It may have ended by itself meanwhile.
			if st, serr := s.o.Client.CommandStatus(ctx, id, in.CommandID); serr != nil || st.Running {
				return err
			}
		}
		return nil
	})
	return done{t.id, "the command does not run any more"}, commandError(in.CommandID, err)
}

// commandError explains that there is no such command.
func commandError(id string, err error) error {
	var e *client.Error
	if client.IsNotFound(err) && errors.As(err, &e) && !strings.HasSuffix(e.Code, "::SANDBOX_NOT_FOUND") {
		return fmt.Errorf("there is no command %q in this sandbox: use the command_id that run_command gave with background=true, and the sandbox_id of that call", client.Printable(id))
	}
	return err
}
