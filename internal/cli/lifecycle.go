package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm ID...",
		Short: "Remove sandboxes in any state, with all that is in them",
		Args:  args(1, -1, "ID..."),
		RunE: a.forEach("id", func(ctx context.Context, c *connection, id string) error {
			err := c.Delete(ctx, id)
			if force && client.IsNotFound(err) {
				return nil
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "no error for a sandbox that does not exist")
	return cmd
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause ID...",
		Short: "Freeze every process of sandboxes",
		Args:  args(1, -1, "ID..."),
		RunE:  a.forEach("id", func(ctx context.Context, c *connection, id string) error { return c.Pause(ctx, id) }),
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume ID...",
		Short: "Let paused sandboxes go on",
		Args:  args(1, -1, "ID..."),
		RunE:  a.forEach("id", func(ctx context.Context, c *connection, id string) error { return c.Resume(ctx, id) }),
	}
}

// forEach runs an action on everything that is named; key is what names it.
func (a *app) forEach(key string, do func(context.Context, *connection, string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, ids []string) error {
		conn, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer conn.close()
		return a.each(ids, key, func(id string) error { return do(cmd.Context(), conn, id) })
	}
}

func (a *app) renewCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "renew ID DURATION",
		Short:   "Let a sandbox expire this long from now",
		Example: "  paddock renew $id 30m",
		Args:    args(2, 2, "ID DURATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[1])
			if err != nil || d <= 0 {
				return usagef(cmd, "duration %q: want a positive one such as 30m", args[1])
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			at, err := conn.Renew(cmd.Context(), args[0], time.Now().Add(d))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"id": args[0], "expiresAt": at})
			}
			fmt.Fprintln(a.streams.Out, at.Format(time.RFC3339))
			return nil
		},
	}
}

func (a *app) portCommand() *cobra.Command {
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "port ID PORT",
		Short: "Show how to reach a port of a sandbox over HTTP",
		Long: `Show the URL of a port of a sandbox and the headers to send with each request.

The headers hold a token that opens this sandbox: keep it to yourself. With --expires
the URL needs no header, works in a browser, and is signed for that long only; the
server needs a key to sign with. For other protocols than HTTP see port-forward.`,
		Example: `  paddock port $id 8000
  paddock port $id 8000 --expires 1h`,
		Args: args(2, 2, "ID PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.Atoi(args[1])
			if err != nil || port < 1 || port > 65535 {
				return usagef(cmd, "port %q: want a number from 1 to 65535", args[1])
			}
			signed := cmd.Flags().Changed("expires")
			if signed && expires < time.Second {
				return usagef(cmd, "--expires %s: want at least 1s, such as 1h", expires)
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			if !signed {
				ep, err := conn.Endpoint(cmd.Context(), args[0], port)
				if err != nil {
					return err
				}
				return a.printEndpoint(conn, ep, time.Time{})
			}
			until := time.Now().Add(expires).Truncate(time.Second)
			ep, err := conn.SignedEndpoint(cmd.Context(), args[0], port, until)
			if err != nil {
				return err
			}
			return a.printEndpoint(conn, ep, until)
		},
	}
	cmd.Flags().DurationVar(&expires, "expires", 0, "make a signed URL that works for this long without a header")
	return cmd
}

// printEndpoint shows an endpoint; until is zero when it does not expire.
func (a *app) printEndpoint(c *connection, ep *client.Endpoint, until time.Time) error {
	url := c.EndpointURL(ep)
	if a.output == "json" {
		out := map[string]any{"url": url, "headers": ep.Headers}
		if !until.IsZero() {
			out["expiresAt"] = until.UTC()
		}
		return a.json(out)
	}
	fmt.Fprintln(a.streams.Out, sanitize(url))
	for _, name := range slices.Sorted(maps.Keys(ep.Headers)) {
		fmt.Fprintf(a.streams.Out, "%s: %s\n", sanitize(name), sanitize(ep.Headers[name]))
	}
	return nil
}
