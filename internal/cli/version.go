package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is set by the linker; a build without it says where it is from.
var Version = "0.0.0-dev"

func userAgent() string { return "paddock/" + Version }

// revision is the commit that the binary was built from, if it is known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if len(rev) > 12 {
		rev = rev[:12]
	}
	return rev + dirty
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if a.output == "json" {
				return a.json(map[string]string{"version": Version, "revision": revision(), "go": runtime.Version(), "platform": platform})
			}
			text := "paddock " + Version
			if r := revision(); r != "" {
				text += " (" + r + ")"
			}
			fmt.Fprintln(a.streams.Out, text, runtime.Version(), platform)
			return nil
		},
	}
}
