package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/config"
)

// Streams are what a command reads and writes.
type Streams struct {
	In       *os.File
	Out, Err io.Writer
}

// ExitError ends the process with a code. When Err is nil nothing is printed,
// because the command in the sandbox has said what there was to say.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// UsageError is a command line that cannot be understood.
type UsageError struct {
	Message string
	// Try is a command line that shows the right way.
	Try string
}

func (e *UsageError) Error() string {
	if e.Try == "" {
		return e.Message
	}
	return e.Message + "\nTry: " + e.Try
}

// also adds a failure of the clean-up to the outcome, which keeps its exit code.
func also(err, cleanup error) error {
	var exit *ExitError
	switch {
	case cleanup == nil:
		return err
	case errors.As(err, &exit):
		return &ExitError{Code: exit.Code, Err: errors.Join(exit.Err, cleanup)}
	}
	return errors.Join(err, cleanup)
}

// Exit codes of run and exec for failures that are not the command's own, as
// shells and other container tools use them.
const (
	exitPaddock       = 125
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignalBase    = 128
)

// app is what all commands share.
type app struct {
	streams Streams
	environ []string

	server     string
	apiKey     string
	dataDir    string
	configPath string
	output     string
}

// New returns the root command.
func New(s Streams) *cobra.Command {
	a := &app{streams: s, environ: os.Environ()}
	root := &cobra.Command{
		Use:   "paddock",
		Short: "Sandboxes for untrusted code",
		Long: `paddock turns any container image into a sandbox for untrusted code in a few
milliseconds, over the OpenSandbox HTTP API.

  paddock run python:3.11 -- python3 -c 'print(6*7)'    one command in a fresh sandbox
  paddock serve                                        the server

Commands talk to the server named by --server or PADDOCK_SERVER, else to the one
that runs on this machine. run and image need none: without a server they do the
work themselves.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			try := "paddock --help"
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				try = "paddock " + near[0]
			}
			return &UsageError{Message: fmt.Sprintf("%q is not a command", args[0]), Try: try}
		},
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			if a.output != "table" && a.output != "json" {
				return &UsageError{Message: fmt.Sprintf("--output %q: want table or json", a.output), Try: "paddock " + cmd.Name() + " -o json"}
			}
			return nil
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &UsageError{Message: err.Error(), Try: cmd.CommandPath() + " --help"}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", "", "server to talk to, as http://host:port (default $PADDOCK_SERVER, else the local one)")
	f.StringVar(&a.apiKey, "api-key", "", "API key; other users of the machine can see it here, $PADDOCK_API_KEY they cannot")
	f.StringVar(&a.dataDir, "data-dir", "", "data directory (default $PADDOCK_DATA_DIR, else storage.data_dir)")
	f.StringVar(&a.configPath, "config", "", "configuration file (default $PADDOCK_CONFIG, else "+config.DefaultPath+")")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	root.AddGroup(
		&cobra.Group{ID: "sandbox", Title: "Sandboxes:"},
		&cobra.Group{ID: "store", Title: "Images and volumes:"},
		&cobra.Group{ID: "machine", Title: "The server and this machine:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("sandbox", a.runCommand(), a.createCommand(), a.lsCommand(), a.inspectCommand(), a.execCommand(), a.shellCommand(), a.cpCommand(),
		a.logsCommand(), a.eventsCommand(), a.portCommand(), a.portForwardCommand(), a.policyCommand(), a.renewCommand(), a.pauseCommand(), a.resumeCommand(), a.rmCommand())
	add("store", a.imageCommand(), a.volumeCommand())
	add("machine", a.serveCommand(), a.mcpCommand(), a.doctorCommand(), a.configCommand(), a.resetCommand(), a.versionCommand())
	root.SetHelpCommandGroupID("machine")
	root.SetCompletionCommandGroupID("machine")
	return root
}

// Execute runs the command line. The context ends at the first signal to stop.
func Execute(ctx context.Context, args []string, s Streams) error {
	root := New(s)
	root.SetArgs(args)
	return withRemedy(root.ExecuteContext(ctx))
}

// withRemedy adds what to do to an error that every command may have.
func withRemedy(err error) error {
	var answer *client.Error
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusUnauthorized {
		return err
	}
	const remedy = "\nTry: set PADDOCK_API_KEY to the server's key, which is in the file " + apiKeyFile + " of its data directory"
	var exit *ExitError
	if errors.As(err, &exit) {
		return &ExitError{Code: exit.Code, Err: fmt.Errorf("%w%s", err, remedy)}
	}
	return fmt.Errorf("%w%s", err, remedy)
}

// args makes a check of the number of arguments whose error shows the usage.
func args(low, high int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		try := cmd.CommandPath()
		if names != "" {
			try += " " + names
		}
		switch {
		case len(given) < low:
			return &UsageError{Message: fmt.Sprintf("%s needs %s", cmd.CommandPath(), names), Try: try}
		case high >= 0 && len(given) > high:
			return &UsageError{Message: fmt.Sprintf("%s does not know what to do with %q", cmd.CommandPath(), given[high]), Try: try}
		}
		return nil
	}
}

// subcommand is the check of a command that only holds others.
func subcommand(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	try := cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
		try = cmd.CommandPath() + " " + near[0]
	}
	return &UsageError{Message: fmt.Sprintf("%q is not a command of %s", given[0], cmd.CommandPath()), Try: try}
}

// usagef is a usage error of one command.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &UsageError{Message: fmt.Sprintf(format, args...), Try: cmd.CommandPath() + " --help"}
}

// interspersedOff makes a command leave flags after its first argument to the
// command that is run in the sandbox.
func interspersedOff(f *pflag.FlagSet) { f.SetInterspersed(false) }

// each does a thing for every id and goes on after a failure, as rm(1) does. What
// was done is printed; in JSON under key, with those that failed and why.
func (a *app) each(ids []string, key string, do func(id string) error) error {
	var failed []error
	outcomes := make([]map[string]string, 0, len(ids))
	for _, id := range ids {
		outcome := map[string]string{key: id}
		outcomes = append(outcomes, outcome)
		if err := do(id); err != nil {
			outcome["error"] = err.Error()
			failed = append(failed, fmt.Errorf("%s: %w", shownID(id), err))
			continue
		}
		if a.output == "table" {
			fmt.Fprintln(a.streams.Out, id)
		}
	}
	if a.output == "json" {
		if err := a.json(outcomes); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// shownID is an argument as it stands in an error.
func shownID(id string) string {
	if id == "" {
		return `""`
	}
	return sanitize(id)
}

// sanitize makes words from a server or a sandbox safe for one cell of a table.
func sanitize(s string) string {
	return client.Printable(strings.ReplaceAll(s, "\t", " "))
}
