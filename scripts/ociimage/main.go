// Command ociimage turns a root filesystem, given as a tar on standard input,
// into an OCI archive with one layer.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "ociimage:", err)
		os.Exit(1)
	}
}

func run() error {
	var env, cmd list
	out := flag.String("o", "", "archive to write; it appears only when complete")
	name := flag.String("name", "", "image reference to enter into the archive")
	arch := flag.String("arch", runtime.GOARCH, "architecture in OCI terms, such as amd64 or arm64")
	flag.Var(&env, "env", "NAME=VALUE for the image's environment; may be repeated")
	flag.Var(&cmd, "cmd", "one word of the image's CMD; may be repeated")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		return fmt.Errorf("usage: ociimage -o FILE [-name REF] [-arch ARCH] [-env NAME=VALUE]... [-cmd WORD]... < ROOTFS.tar")
	}

	var config ocispec.Image
	config.Platform = ocispec.Platform{OS: "linux", Architecture: *arch}
	config.Config.Env = env
	config.Config.Cmd = cmd
	config.Config.WorkingDir = "/"
	return write(*out, *name, config, os.Stdin)
}

// write builds the image next to out, so that the last step is a rename.
func write(out, name string, config ocispec.Image, rootfs io.Reader) error {
	dir, err := os.MkdirTemp(filepath.Dir(out), ".ociimage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	layout, err := ociwriter.NewLayout(filepath.Join(dir, "layout"))
	if err != nil {
		return err
	}
	layer, err := layout.AddLayer(rootfs, ociwriter.Zstd)
	if err != nil {
		return err
	}
	desc, err := layout.AddManifest(config, layer)
	if err != nil {
		return err
	}
	layout.Name(desc, name)
	if err := layout.Close(); err != nil {
		return err
	}

	archive := filepath.Join(dir, "archive.tar")
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ociwriter.Archive(f, filepath.Join(dir, "layout")); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(archive, out)
}
