package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "events ID",
		Short: "Show what happened to a sandbox and why",
		Long: `Show what happened to a sandbox and why: how it was made, paused, renewed, how
its hooks and its entrypoint ended. The newest 200 are kept, as long as the
sandbox's record is.

With -f it goes on until the sandbox has ended or is removed. With -o json it
prints one object, and with -f one event per line.`,
		Example: `  paddock events $id
  paddock events -f $id
  paddock events -o json $id`,
		Args: args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			if follow {
				return a.followEvents(cmd.Context(), conn, args[0])
			}
			list, err := conn.Events(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(list)
			}
			return a.eventTable(list)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until it has ended")
	return cmd
}

func (a *app) eventTable(list *client.EventList) error {
	if list.Dropped > 0 {
		fmt.Fprintf(a.streams.Err, "%d older events are not kept any more.\n", list.Dropped)
	}
	rows := make([][]string, len(list.Items))
	for i, e := range list.Items {
		rows[i] = []string{eventTime(e.At), e.Kind, eventText(&e)}
	}
	return a.table([]string{"TIME", "EVENT", "MESSAGE"}, rows)
}

func eventTime(t time.Time) string { return t.Format("2006-01-02T15:04:05.000Z07:00") }

// eventText is the message on one line.
func eventText(e *client.Event) string {
	text := sanitize(strings.ReplaceAll(strings.TrimSpace(e.Message), "\n", " | "))
	if e.Count > 1 {
		text += fmt.Sprintf(" (%d times since %s)", e.Count, eventTime(e.FirstAt))
	}
	return text
}

func (a *app) followEvents(ctx context.Context, c *connection, id string) error {
	return c.FollowEvents(ctx, id, 0, func(e client.Event) error { return a.printEvent(&e) })
}

// printEvent prints one event of a stream on a line of its own.
func (a *app) printEvent(e *client.Event) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.streams.Out)
		enc.SetEscapeHTML(false)
		return enc.Encode(e)
	}
	_, err := fmt.Fprintf(a.streams.Out, "%s  %-18s %s\n", eventTime(e.At), sanitize(e.Kind), eventText(e))
	return err
}
