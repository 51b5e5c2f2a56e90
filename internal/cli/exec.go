package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// interruptTimeout bounds what is done after the user has asked to stop.
const interruptTimeout = 10 * time.Second

// execFlags are the flags of commands that run something in a sandbox.
type execFlags struct {
	workdir, user string
	env           []string
	timeout       time.Duration
	noStdin       bool
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	var detach, tty, interactive bool
	cmd := &cobra.Command{
		Use:   "exec [flags] ID [--] [COMMAND [ARG...]]",
		Short: "Run a command in a sandbox",
		Long: `Run a command in a sandbox. Its output is streamed and its exit code is that of
paddock; 125 means that paddock failed, 126 and 127 that the command could not be
run. A command that a signal ended gives 128 and the signal's number.

When standard input is not a terminal the command can read it, if the sandbox has sh.
It is passed on as it comes where there are mkfifo, cat and rm too, and otherwise in
one piece before the command starts. Ctrl-C ends the command.

With -t the command runs in a terminal of its own that follows this one: programs with
a screen work, and every key goes to the command, Ctrl-C too. Without a command that
is a shell. -i, which -t needs to read the keyboard, is otherwise the default.

` + outcomeHelp + `
With -d the object has the command's "id" alone.`,
		Example: `  paddock exec $id -- python3 -c 'print(6*7)'
  paddock exec -w /src -e CI=1 $id -- make test
  paddock exec $id -- tar -xf - -C /data < data.tar
  paddock exec -o json $id -- ls /
  paddock exec -it $id -- top
  paddock exec -d $id -- ./server`,
		Args: args(1, -1, "ID COMMAND [ARG...]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && strings.HasPrefix(args[1], "-") && args[1] != "--" {
				return usagef(cmd, "flags of exec stand before the id: %q comes after it", args[1])
			}
			if tty {
				return f.execTerminal(cmd, a, args, interactive, detach)
			}
			if len(withoutDashes(args[1:])) == 0 || len(args) == 2 && args[1] == "--" {
				return &UsageError{Message: "paddock exec needs a COMMAND, or -it for a shell", Try: "paddock exec ID COMMAND [ARG...]"}
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return paddockFailed(err)
			}
			defer conn.close()
			command, err := f.command(cmd, a, conn, args[0], withoutDashes(args[1:]))
			if err != nil {
				return err
			}
			if detach {
				id, err := conn.Start(cmd.Context(), args[0], command)
				if err != nil {
					return commandFailed(err)
				}
				if a.output == "json" {
					return a.json(map[string]string{"id": id})
				}
				fmt.Fprintln(a.streams.Out, id)
				return nil
			}
			return a.told(args[0], func(stdout, stderr io.Writer) error {
				return a.exec(cmd.Context(), conn, args[0], command, !f.noStdin, stdout, stderr)
			})
		},
	}
	interspersedOff(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE, or NAME to pass on its value here")
	fs.StringVarP(&f.user, "user", "u", "", "user to run as: NAME, UID or UID:GID")
	fs.DurationVar(&f.timeout, "timeout", 0, "kill the command after this time")
	fs.BoolVar(&f.noStdin, "no-stdin", false, "do not pass standard input on")
	fs.BoolVarP(&tty, "tty", "t", false, "run it in a terminal")
	fs.BoolVarP(&interactive, "interactive", "i", false, "pass the keyboard on to the terminal")
	fs.BoolVarP(&detach, "detach", "d", false, "leave the command running and print its id, for `paddock logs --exec`")
	return cmd
}

// execTerminal is exec -t.
func (f *execFlags) execTerminal(cmd *cobra.Command, a *app, args []string, input, detach bool) error {
	switch {
	case detach:
		return usagef(cmd, "-d and -t exclude each other: what runs in the background has no terminal")
	case f.timeout != 0:
		return usagef(cmd, "--timeout and -t exclude each other: use timeout(1) in the sandbox")
	case a.output != "table":
		return usagef(cmd, "-o and -t exclude each other")
	}
	if input = input && !f.noStdin; input {
		if err := a.needTerminal(cmd); err != nil {
			return err
		}
	}
	conn, err := a.connect(cmd.Context())
	if err != nil {
		return paddockFailed(err)
	}
	defer conn.close()
	argv := args[1:]
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	return f.openTerminal(cmd, a, conn, args[0], argv, screenOptions{input: input})
}

// withoutDashes drops a "--" that stands before the command when flags end at
// the first argument.
func withoutDashes(args []string) []string {
	if len(args) > 1 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func (f *execFlags) command(cmd *cobra.Command, a *app, c *connection, id string, argv []string) (client.Command, error) {
	env, err := a.envFlags(cmd, f.env)
	if err != nil {
		return client.Command{}, err
	}
	if f.timeout < 0 || f.timeout > 0 && f.timeout < time.Millisecond {
		return client.Command{}, usagef(cmd, "--timeout %s: want at least 1ms", f.timeout)
	}
	out := client.Command{Argv: argv, Cwd: f.workdir, Env: env, Timeout: f.timeout}
	if f.user != "" {
		if out.UID, out.GID, err = resolveUser(cmd.Context(), c, id, f.user); err != nil {
			return out, paddockFailed(err)
		}
	}
	return out, nil
}

// exec runs a command, passes its output on in order, and returns its exit code
// as an *ExitError unless that is 0.
func (a *app) exec(ctx context.Context, c *connection, id string, command client.Command, stdin bool, stdout, stderr io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	feed := func() error { return nil }
	if stdin && hasInput(a.streams.In) {
		in, err := openStdin(ctx, c, id, a.streams.In)
		if err != nil {
			return paddockFailed(interruptedOr(ctx, err))
		}
		command = in.wrap(command)
		feed = in.feed(ctx)
		defer in.remove()
	}
	started := ""
	res, err := c.Run(ctx, id, command, client.Output{
		Stdout: stdout, Stderr: stderr,
		OnStart: func(commandID string) { started = commandID },
	})
	interrupted := ctx.Err() != nil
	cancel() // the end of the command is the end of its input
	feedErr := feed()
	switch {
	case interrupted && started != "":
		// The sandbox ends a command whose client goes away; saying so makes it
		// certain, whatever server this is.
		end, done := context.WithTimeout(context.WithoutCancel(ctx), interruptTimeout)
		_ = c.Interrupt(end, id, started)
		done()
		return &ExitError{Code: exitSignalBase + 2}
	case interrupted:
		return &ExitError{Code: exitSignalBase + 2}
	case err != nil:
		return commandFailed(err)
	case res.ExitCode == 0:
		if feedErr != nil {
			return paddockFailed(feedErr)
		}
		return nil
	}
	return ended(res)
}

// ended is the error for a command that ended without success.
func ended(res *client.Result) error {
	if res.ExitCode > 0 {
		return &ExitError{Code: res.ExitCode}
	}
	code := exitSignalBase + 9
	if n, ok := signalNumber(strings.Join(res.Detail, " ")); ok {
		code = exitSignalBase + n
	}
	var err error
	if len(res.Detail) > 0 {
		err = errors.New(client.Printable(strings.Join(res.Detail, ": ")))
	}
	return &ExitError{Code: code, Err: err}
}

// commandFailed sorts out why a command did not run.
func commandFailed(err error) error {
	var ce *client.CommandError
	if !errors.As(err, &ce) {
		return paddockFailed(err)
	}
	code := exitNotExecutable
	text := strings.ToLower(ce.Value + strings.Join(ce.Traceback, " "))
	if strings.Contains(text, "not found") || strings.Contains(text, "no such file") {
		code = exitNotFound
	}
	return &ExitError{Code: code, Err: err}
}

// paddockFailed marks a failure that is not the command's own.
func paddockFailed(err error) error {
	var exit *ExitError
	var usage *UsageError
	if err == nil || errors.As(err, &exit) || errors.As(err, &usage) {
		return err
	}
	return &ExitError{Code: exitPaddock, Err: err}
}

// maxAccountFile bounds /etc/passwd and /etc/group, which the sandbox wrote.
const maxAccountFile = 1 << 20

// resolveUser turns NAME, UID, NAME:GROUP or UID:GID into numbers, with the
// sandbox's own account files.
func resolveUser(ctx context.Context, c *connection, id, user string) (uid, gid *uint32, err error) {
	name, group, hasGroup := strings.Cut(user, ":")
	lookup := func(file, want string) (uint32, error) {
		if n, ok := parseID(want); ok {
			return n, nil
		}
		fields, err := accountLine(ctx, c, id, file, func(fields []string) bool { return fields[0] == want })
		if err != nil {
			return 0, err
		}
		if fields != nil {
			if n, ok := parseID(fields[2]); ok {
				return n, nil
			}
		}
		return 0, fmt.Errorf("the sandbox's %s has no %q", file, want)
	}
	u, err := lookup("/etc/passwd", name)
	if err != nil {
		return nil, nil, err
	}
	if !hasGroup {
		return &u, nil, nil
	}
	g, err := lookup("/etc/group", group)
	if err != nil {
		return nil, nil, err
	}
	return &u, &g, nil
}

// primaryGroup is the group of a user in the sandbox, root's for one that its
// files do not name.
func primaryGroup(ctx context.Context, c *connection, id string, uid uint32) (uint32, error) {
	fields, err := accountLine(ctx, c, id, "/etc/passwd", func(fields []string) bool {
		n, ok := parseID(fields[2])
		return ok && n == uid && len(fields) > 3
	})
	if client.IsNotFound(err) || err == nil && fields == nil {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	gid, ok := parseID(fields[3])
	if !ok {
		return 0, fmt.Errorf("the sandbox's /etc/passwd has the group %q for the user %d; name one as UID:GID", fields[3], uid)
	}
	return gid, nil
}

// accountLine finds a line of an account file, split into its three or more
// fields; nil when there is none.
func accountLine(ctx context.Context, c *connection, id, file string, match func(fields []string) bool) ([]string, error) {
	d, err := c.DownloadFile(ctx, id, file, client.DownloadOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's %s: %w", file, err)
	}
	defer d.Close()
	data, err := io.ReadAll(io.LimitReader(d, maxAccountFile))
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's %s: %w", file, err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) >= 3 && match(fields) {
			return fields, nil
		}
	}
	return nil, nil
}
