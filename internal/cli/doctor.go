package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/engine/local"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func (a *app) doctorCommand() *cobra.Command {
	var required bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine lacks, what that costs and what to do",
		Long: `Check what this machine has of what paddock uses. For each lack it says what it
costs and what to do about it. The exit code is 1 when something is missing without
which no sandbox can run.`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load(nil)
			if err != nil {
				return err
			}
			checks := examine(cmd.Context(), cfg, true)
			if required {
				checks = onlyRequired(checks)
			}
			if a.output == "json" {
				err = a.json(checks)
			} else {
				err = a.printChecks(checks, required)
			}
			if err == nil && len(missing(checks)) > 0 {
				err = &ExitError{Code: 1}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&required, "required", false, "only what no sandbox can run without; says nothing when all is there")
	return cmd
}

// examine runs the checks for a configuration. With trial it starts a shell, too;
// a server that starts must not depend on that, because it may be the one that
// goes on with living sandboxes.
func examine(ctx context.Context, cfg *config.Loaded, trial bool) []local.Check {
	subnet, _ := netip.ParsePrefix(cfg.Network.Subnet) // checked when it was loaded
	return local.Doctor(ctx, local.DoctorOptions{
		DataDir: cfg.Storage.DataDir, RunDir: cfg.Storage.RunDir,
		OCIRuntime: cfg.Runtime.OCI, OCIPath: cfg.Runtime.Path, Subnet: subnet,
		RunscPath: cfg.Runtime.Runsc, GVisorNeeded: cfg.Sandbox.DefaultIsolation == string(sandbox.IsolationGVisor),
		GPUKind: cfg.GPU.Kind, CDIDirs: cfg.GPU.CDIDirs, Trial: trial,
	})
}

func onlyRequired(checks []local.Check) []local.Check {
	out := []local.Check{}
	for _, c := range checks {
		if c.Required {
			out = append(out, c)
		}
	}
	return out
}

// missing returns the required checks that failed.
func missing(checks []local.Check) []local.Check {
	var out []local.Check
	for _, c := range checks {
		if c.Required && !c.OK {
			out = append(out, c)
		}
	}
	return out
}

// printChecks prints a table, and below it what to do about each lack.
func (a *app) printChecks(checks []local.Check, onlyFailed bool) error {
	var rows [][]string
	var todo []local.Check
	for _, c := range checks {
		verdict := "ok"
		if !c.OK {
			todo = append(todo, c)
			verdict = "lacking"
			if c.Required {
				verdict = "MISSING"
			}
		}
		if !onlyFailed || !c.OK {
			rows = append(rows, []string{verdict, c.Name, c.Detail})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if err := a.table([]string{"", "CHECK", "FOUND"}, rows); err != nil {
		return err
	}
	for _, c := range todo {
		fmt.Fprintf(a.streams.Out, "\n%s: %s\n", sanitize(c.Name), sanitize(c.Cost))
		fmt.Fprintf(a.streams.Out, "  Remedy: %s\n", sanitize(c.Remedy))
	}
	return nil
}

// requireMachine is the check before a server starts: one message that names
// everything that is missing and what to do.
func requireMachine(ctx context.Context, cfg *config.Loaded) error {
	failed := missing(examine(ctx, cfg, false))
	if len(failed) == 0 {
		return nil
	}
	lines := make([]string, len(failed))
	for i, c := range failed {
		lines[i] = fmt.Sprintf("  %s: %s. %s", c.Name, c.Detail, c.Remedy)
	}
	return errors.New("this machine lacks what sandboxes need:\n" + strings.Join(lines, "\n") + "\nTry: paddock doctor")
}
