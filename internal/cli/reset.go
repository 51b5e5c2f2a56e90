package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/engine/local"
)

func (a *app) resetCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove every sandbox of a stopped server from this machine",
		Long: `Remove every sandbox of a data directory whose server is stopped, with their
interfaces, packet rules, cgroups, records and credentials. Images, volumes and the
server's keys stay.`,
		Example: "  paddock reset --data-dir /var/lib/paddock",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var overrides []config.Override
			if runDir != "" {
				overrides = append(overrides, config.Override{Key: "storage.run_dir", Value: runDir, Source: "flag --run-dir"})
			}
			cfg, err := a.load(overrides)
			if err != nil {
				return err
			}
			lock, err := lockData(cfg.Storage.DataDir)
			if err != nil {
				return err
			}
			defer lock.release()
			images, err := openImages(cmd.Context(), cfg, a.quietLogger())
			if err != nil {
				return err
			}
			defer images.Close()
			o, err := engineOptions(cfg, images, a.quietLogger())
			if err != nil {
				return err
			}
			if err := local.Reset(cmd.Context(), o); err != nil {
				return fmt.Errorf("removing what is on the machine: %w", err)
			}
			return dropRecords(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "", "run directory of that server (default storage.run_dir)")
	return cmd
}
