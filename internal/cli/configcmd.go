package cli

import (
	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	var markdown bool
	var set []string
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration in effect, and where each value is from",
		Long: `Show the configuration in effect as a TOML file with secrets masked, and where
each value is from. Nothing is started; a configuration with errors is explained.`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if markdown {
				return config.WriteMarkdown(a.streams.Out)
			}
			overrides, err := setFlags(cmd, set)
			if err != nil {
				return err
			}
			cfg, err := a.load(overrides)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(cfg.Values())
			}
			return cfg.WriteTOML(a.streams.Out)
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "print the documentation of every key instead")
	cmd.Flags().StringArrayVar(&set, "set", nil, "SECTION.KEY=VALUE, as for serve")
	return cmd
}
