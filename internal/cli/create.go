package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// keepAlive is the entrypoint of a sandbox that only waits for commands; the
// same that the API's SDKs send.
var keepAlive = []string{"tail", "-f", "/dev/null"}

// createWait bounds the wait for a sandbox, its pull included.
const createWait = 30 * time.Minute

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	var noWait bool
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [--] [ENTRYPOINT...]",
		Short: "Make a sandbox and print its id",
		Long: `Make a sandbox and print its id.

The entrypoint keeps the sandbox alive: when it ends, so does the sandbox. Without
one the sandbox waits for commands until it expires or is removed.`,
		Example: `  id=$(paddock create python:3.11 --timeout 1h)
  paddock exec $id -- python3 -c 'print(6*7)'
  paddock create nginx -- nginx -g 'daemon off;'`,
		Args: args(1, -1, "IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(cmd, a, args[0])
			if err != nil {
				return err
			}
			r.Entrypoint = args[1:]
			if len(r.Entrypoint) == 0 {
				r.Entrypoint = keepAlive
			}
			if !noWait {
				r.Wait = createWait
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			sb, err := conn.Create(cmd.Context(), r)
			var failed *client.FailedError
			if errors.As(err, &failed) {
				return fmt.Errorf("%w\nTry: paddock logs %s", err, failed.Sandbox.ID)
			}
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(sb)
			}
			fmt.Fprintln(a.streams.Out, sb.ID)
			return nil
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the sandbox runs")
	return cmd
}
