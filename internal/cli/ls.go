package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// knownStates are those that a sandbox can be in.
var knownStates = []string{client.StatePending, client.StateRunning, client.StatePausing, client.StatePaused,
	client.StateResuming, client.StateStopping, client.StateTerminated, client.StateFailed}

func (a *app) lsCommand() *cobra.Command {
	var states, metadata []string
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"ps", "list"},
		Short:   "List sandboxes, newest first",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := pairs(cmd, "metadata", metadata)
			if err != nil {
				return err
			}
			for _, state := range states {
				if !slices.ContainsFunc(knownStates, func(s string) bool { return strings.EqualFold(s, state) }) {
					return usagef(cmd, "--state %q: want one of %s", state, strings.Join(knownStates, ", "))
				}
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			all := []*client.Sandbox{}
			for sb, err := range conn.All(cmd.Context(), client.ListOptions{States: states, Metadata: filter}) {
				if err != nil {
					return err
				}
				all = append(all, sb)
			}
			switch {
			case a.output == "json":
				return a.json(all)
			case quiet:
				for _, sb := range all {
					fmt.Fprintln(a.streams.Out, sb.ID)
				}
				return nil
			}
			return a.table([]string{"ID", "NAME", "IMAGE", "STATE", "CREATED", "EXPIRES"}, sandboxRows(all, time.Now()))
		},
	}
	cmd.Flags().StringSliceVar(&states, "state", nil, "only sandboxes in these states, such as Running")
	cmd.Flags().StringArrayVarP(&metadata, "metadata", "l", nil, "only sandboxes with this KEY=VALUE")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func sandboxRows(all []*client.Sandbox, now time.Time) [][]string {
	rows := make([][]string, len(all))
	for i, sb := range all {
		image := "-"
		if sb.Image != nil {
			image = sb.Image.URI
		}
		state := sb.Status.State
		if sb.Status.Ended() && sb.Status.Reason != "" {
			state += " (" + sb.Status.Reason + ")"
		}
		name := sb.Metadata[nameKey]
		if name == "" {
			name = "-"
		}
		rows[i] = []string{sb.ID, name, image, state, ago(sb.CreatedAt, now), until(sb.ExpiresAt, now)}
	}
	return rows
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect ID...",
		Short: "Show everything about sandboxes, as JSON",
		Args:  args(1, -1, "ID..."),
		RunE: func(cmd *cobra.Command, ids []string) error {
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			found := make([]*client.Sandbox, 0, len(ids))
			for _, id := range ids {
				sb, err := conn.Get(cmd.Context(), id)
				if err != nil {
					return err
				}
				found = append(found, sb)
			}
			return a.json(found)
		},
	}
}
