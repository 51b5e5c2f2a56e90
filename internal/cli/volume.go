package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Named volumes",
		Args:  subcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	ls := &cobra.Command{
		Use:   "ls",
		Short: "List named volumes",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			vols, err := conn.ListVolumes(cmd.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(nonNil(vols))
			}
			rows := make([][]string, len(vols))
			for i, v := range vols {
				rows[i] = []string{v.Name, bytesText(v.SizeBytes), ago(v.CreatedAt, time.Now())}
			}
			return a.table([]string{"NAME", "SIZE", "CREATED"}, rows)
		},
	}
	rm := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove named volumes with their content",
		Args:  args(1, -1, "NAME..."),
		RunE: a.forEach("name", func(ctx context.Context, c *connection, name string) error {
			return c.RemoveVolume(ctx, name)
		}),
	}
	cmd.AddCommand(ls, rm)
	return cmd
}
