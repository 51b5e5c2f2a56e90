package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// execPoll is how often the output of a detached command is asked for; the API
// has no stream of it.
const execPoll = 200 * time.Millisecond

func (a *app) logsCommand() *cobra.Command {
	var o client.LogOptions
	var since, execID string
	var denied bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Show what a sandbox's entrypoint, or a detached command, has printed, or was denied",
		Example: `  paddock logs -f --tail 20 $id
  paddock logs --since 10m -t $id
  paddock logs -f --exec $command $id
  paddock logs --denied $id`,
		Args: args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Since, err = parseSince(cmd, since, time.Now()); err != nil {
				return err
			}
			if o.Tail < 0 {
				return usagef(cmd, "--tail %d: want 0 for all, or a number of lines", o.Tail)
			}
			if denied && execID != "" {
				return usagef(cmd, "--denied and --exec exclude one another")
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			if denied {
				return a.denials(cmd, conn, args[0], o)
			}
			if execID != "" {
				return a.commandLogs(cmd.Context(), conn, args[0], execID, o.Follow)
			}
			o.Timestamps = o.Timestamps || a.output == "json"
			r, err := conn.Logs(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			defer r.Close()
			if a.output == "json" {
				return a.logLines(r)
			}
			_, err = io.Copy(a.streams.Out, r)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on until it has ended")
	f.IntVarP(&o.Tail, "tail", "n", 0, "only this many last lines")
	f.StringVar(&since, "since", "", "only what is newer: a duration such as 10m, or a time such as 2026-01-02T15:04:05Z")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "begin each line with its time")
	f.StringVar(&execID, "exec", "", "show this command, whose id `paddock exec -d` printed")
	f.BoolVar(&denied, "denied", false, "show what the network policy has refused, and why")
	return cmd
}

// maxLogLine bounds one line of a log in JSON, in bytes; a longer one comes in
// pieces.
const maxLogLine = 64 << 10

// logLines prints a log with times as JSON, an object for each line.
func (a *app) logLines(r io.Reader) error {
	enc := json.NewEncoder(a.streams.Out)
	enc.SetEscapeHTML(false)
	type line struct {
		Time string `json:"time,omitempty"`
		Text string `json:"text"`
	}
	in := bufio.NewReaderSize(r, maxLogLine)
	for whole := true; ; {
		text, more, err := in.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var l line
		if l.Text = string(text); whole {
			l.Time, l.Text, _ = strings.Cut(l.Text, " ")
		}
		if err := enc.Encode(l); err != nil {
			return err
		}
		whole = !more
	}
}

// kindDenied is the kind of events about what a network policy refused.
const kindDenied = "Denied"

// denials shows what the network policy refused.
func (a *app) denials(cmd *cobra.Command, c *connection, id string, o client.LogOptions) error {
	wanted := func(e *client.Event) bool { return e.Kind == kindDenied && !e.At.Before(o.Since) }
	if o.Follow {
		return c.FollowEvents(cmd.Context(), id, 0, func(e client.Event) error {
			if !wanted(&e) {
				return nil
			}
			return a.printEvent(&e)
		})
	}
	list, err := c.Events(cmd.Context(), id, 0)
	if err != nil {
		return err
	}
	list.Items = slices.DeleteFunc(list.Items, func(e client.Event) bool { return !wanted(&e) })
	// Those that are not kept may be of any kind.
	list.Dropped = 0
	if o.Tail > 0 && len(list.Items) > o.Tail {
		list.Items = list.Items[len(list.Items)-o.Tail:]
	}
	if a.output == "json" {
		return a.json(nonNil(list.Items))
	}
	return a.eventTable(list)
}

func parseSince(cmd *cobra.Command, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, usagef(cmd, "--since %q: want a duration such as 10m or a time such as 2026-01-02T15:04:05Z", s)
	}
	return t, nil
}

// commandLogs copies a detached command's output, exact to the byte.
func (a *app) commandLogs(ctx context.Context, c *connection, id, commandID string, follow bool) error {
	tick := time.NewTicker(execPoll)
	defer tick.Stop()
	for cursor := int64(0); ; {
		// Asked before the output, so that none is missed at the end.
		st, err := c.CommandStatus(ctx, id, commandID)
		if err != nil {
			return err
		}
		if cursor, err = c.CommandLogs(ctx, id, commandID, cursor, a.streams.Out); err != nil {
			return err
		}
		if !follow || !st.Running {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
