package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) shellCommand() *cobra.Command {
	var f execFlags
	var attach string
	cmd := &cobra.Command{
		Use:   "shell [flags] ID",
		Short: "Open a shell in a sandbox",
		Long: `Open an interactive shell (bash, else sh) in a sandbox, in this terminal. Its exit
code is that of paddock.

A connection that is lost is replaced, and what was printed meanwhile is shown. When
it does not come back within a minute the shell runs on, and --attach returns to it.
Closing the terminal ends the shell.`,
		Example: `  paddock shell $id
  paddock shell -u nobody -w /srv $id`,
		Args: args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.needTerminal(cmd); err != nil {
				return err
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return paddockFailed(err)
			}
			defer conn.close()
			if attach != "" {
				return a.showTerminal(cmd.Context(), conn, args[0], attach, screenOptions{input: true, takeover: true})
			}
			return f.openTerminal(cmd, a, conn, args[0], nil, screenOptions{input: true})
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE, or NAME to pass on its value here")
	fs.StringVarP(&f.user, "user", "u", "", "user to run as: NAME, UID or UID:GID")
	fs.StringVar(&attach, "attach", "", "return to a terminal session, whose id stands in the message about its loss")
	return cmd
}

// needTerminal is a usage error unless standard input is a terminal.
func (a *app) needTerminal(cmd *cobra.Command) error {
	if a.streams.In != nil && term.IsTerminal(int(a.streams.In.Fd())) {
		return nil
	}
	return &UsageError{
		Message: fmt.Sprintf("%s needs a terminal, and standard input is none", cmd.CommandPath()),
		Try:     "paddock exec ID -- COMMAND",
	}
}

// openTerminal makes a terminal session for a command, or for a shell when there
// is none, and shows it until its end.
func (f *execFlags) openTerminal(cmd *cobra.Command, a *app, c *connection, id string, argv []string, o screenOptions) error {
	command, err := f.command(cmd, a, c, id, argv)
	if err != nil {
		return err
	}
	r := client.PTYRequest{Argv: argv, Cwd: command.Cwd, Env: command.Env, UID: command.UID, GID: command.GID, Term: terminalType(a.env("TERM"))}
	if cols, rows, ok := a.terminalSize(); ok {
		r.Cols, r.Rows = cols, rows
	}
	session, err := c.CreatePTY(cmd.Context(), id, r)
	if err != nil {
		return commandFailed(interruptedOr(cmd.Context(), err))
	}
	return a.showTerminal(cmd.Context(), c, id, session, o)
}

// terminalName is what the name of a terminal type looks like (term(7)).
var terminalName = regexp.MustCompile(`^[A-Za-z0-9._+-]{1,64}$`)

// terminalType is TERM, unless it is one that the sandbox would refuse.
func terminalType(name string) string {
	if terminalName.MatchString(name) {
		return name
	}
	return ""
}

func (a *app) terminalSize() (cols, rows int, ok bool) {
	for _, f := range []any{a.streams.Out, a.streams.In} {
		if f, is := f.(*os.File); is && f != nil {
			if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
				return cols, rows, true
			}
		}
	}
	return 0, 0, false
}

// showTerminal shows a session until its program has ended, and returns its exit
// code as an *ExitError unless that is 0. Unless the connection was lost for
// good, or somebody else has the session, it ends with this command.
func (a *app) showTerminal(ctx context.Context, c *connection, id, session string, o screenOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &terminalScreen{app: a, cancel: cancel, screenOptions: o}
	res, err := s.show(ctx, c, id, session)
	kept := errors.Is(err, client.ErrConnectionLost) || errors.Is(err, client.ErrTakenOver) || client.IsConflict(err)
	if !kept {
		// The session would keep its memory, and a program without a reader.
		end, done := context.WithTimeout(context.WithoutCancel(ctx), interruptTimeout)
		defer done()
		_ = c.DeletePTY(end, id, session)
	}
	switch {
	case errors.Is(err, errHungUp), err != nil && ctx.Err() != nil && !errors.Is(err, client.ErrConnectionLost):
		return &ExitError{Code: exitSignalBase + int(unix.SIGHUP)}
	case errors.Is(err, client.ErrConnectionLost):
		return paddockFailed(fmt.Errorf("%w\nThe session may be running on. Try: paddock shell --attach %s %s", err, session, id))
	case client.IsConflict(err):
		return paddockFailed(fmt.Errorf("another client shows this terminal: %w", err))
	case err != nil:
		return commandFailed(err)
	case res.ExitCode == 0:
		return nil
	}
	return ended(res)
}

// errHungUp is the end of the user's terminal.
var errHungUp = errors.New("the terminal was closed")

// interruptKey is what Ctrl-C sends in a raw terminal.
const interruptKey = 0x03

// screenOptions say how a session is shown.
type screenOptions struct {
	// input passes on what is typed.
	input bool
	// takeover takes the session from who shows it now.
	takeover bool
}

// terminalScreen is the user's terminal while it belongs to a session.
type terminalScreen struct {
	screenOptions
	app    *app
	cancel context.CancelCauseFunc
	// lost is set while there is no connection. Then Ctrl-C, which otherwise is
	// the program's, gives up.
	lost atomic.Bool
}

// show runs the session with the terminal in raw mode.
func (s *terminalScreen) show(ctx context.Context, c *connection, id, session string) (*client.Result, error) {
	a := s.app
	t, err := c.AttachPTY(ctx, id, session, client.TerminalOptions{Takeover: s.takeover, OnLost: s.onLost, OnBack: s.onBack})
	if err != nil {
		return nil, err
	}
	restore, err := a.rawTerminal(s.input)
	if err != nil {
		return nil, err
	}
	defer restore()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if s.input {
		in, err := newInput(ctx, a.streams.In)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("reading the terminal: %w", err)
		}
		defer in.close()
		wg.Go(func() { s.keys(ctx, in, t) })
	}
	// The input is closed when nobody reads it any more.
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.resizes(ctx, t) })
	return t.Run(ctx, a.streams.Out)
}

// rawTerminal hands every key to the program: none is this machine's.
func (a *app) rawTerminal(input bool) (restore func(), err error) {
	fd := int(a.streams.In.Fd())
	if !input || !term.IsTerminal(fd) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("setting the terminal up: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

// resizes passes on the size of the terminal, now and whenever it changes.
func (s *terminalScreen) resizes(ctx context.Context, t *client.Terminal) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if cols, rows, ok := s.app.terminalSize(); ok && t.Resize(ctx, cols, rows) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// keys passes on what is typed. Its reader does not wait for the connection, so
// that Ctrl-C is seen while there is none.
func (s *terminalScreen) keys(ctx context.Context, in *input, t *client.Terminal) {
	typed := newGatherer(maxTyped)
	var wg sync.WaitGroup
	wg.Go(func() { typed.fill(&keyReader{in: in, screen: s}) })
	defer wg.Wait()
	defer typed.stop()
	var piece []byte
	for {
		var err error
		if piece, err = typed.take(piece); err != nil {
			if ctx.Err() == nil {
				s.cancel(errHungUp)
			}
			return
		}
		if t.Write(ctx, piece) != nil {
			return
		}
	}
}

// maxTyped bounds what is typed ahead, in bytes.
const maxTyped = 64 << 10

// keyReader reads keys and gives up at Ctrl-C while there is no connection.
type keyReader struct {
	in     io.Reader
	screen *terminalScreen
}

func (k *keyReader) Read(p []byte) (int, error) {
	n, err := k.in.Read(p)
	for _, b := range p[:max(n, 0)] {
		if b == interruptKey && k.screen.lost.Load() {
			k.screen.cancel(fmt.Errorf("%w, and attaching again was given up", client.ErrConnectionLost))
		}
	}
	return n, err
}

func (s *terminalScreen) onLost(error) {
	s.lost.Store(true)
	s.note("connection lost, attaching again (Ctrl-C gives up)")
}

func (s *terminalScreen) onBack(missing int64) {
	if missing > 0 {
		s.note(fmt.Sprintf("%d bytes of output are no longer kept", missing))
		return
	}
	s.lost.Store(false)
}

// note prints a line of paddock's own, in a terminal whose line ends do not
// return the carriage.
func (s *terminalScreen) note(text string) {
	fmt.Fprintf(s.app.streams.Err, "\r\npaddock: %s\r\n", text)
}
