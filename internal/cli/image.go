package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Images that sandboxes start from",
		Args:  subcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.imagePullCommand(), a.imageImportCommand(), a.imageExportCommand(), a.imageLsCommand(),
		a.imageRmCommand(), a.imagePruneCommand())
	return cmd
}

// imageRun wraps a command on images, which works without a server too.
func (a *app) imageRun(do func(ctx context.Context, c *connection, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		conn, err := a.connectOrServe(cmd.Context(), "image "+cmd.Name())
		if err != nil {
			return err
		}
		return errors.Join(do(cmd.Context(), conn, args), conn.close())
	}
}

func (a *app) imagePullCommand() *cobra.Command {
	var platform, user string
	cmd := &cobra.Command{
		Use:     "pull IMAGE...",
		Short:   "Download images from their registry",
		Example: "  paddock image pull python:3.11 node:22",
		Args:    args(1, -1, "IMAGE..."),
	}
	cmd.RunE = a.imageRun(func(ctx context.Context, c *connection, refs []string) error {
		p, err := parsePlatform(cmd, platform)
		if err != nil {
			return err
		}
		var pulled []client.Image
		for _, ref := range refs {
			img, err := a.pull(ctx, c, client.PullRequest{Image: ref, Platform: p, Auth: a.registryAuth(user)})
			if err != nil {
				return fmt.Errorf("pulling image %q: %w", ref, err)
			}
			pulled = append(pulled, *img)
		}
		return a.printImages(pulled)
	})
	cmd.Flags().StringVar(&platform, "platform", "", "platform, such as linux/amd64 (default this machine's)")
	cmd.Flags().StringVar(&user, "registry-user", "", "user name for the registry; its password is read from $PADDOCK_REGISTRY_PASSWORD")
	return cmd
}

func (a *app) imageImportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Load an OCI archive or what docker save wrote; - reads standard input",
		Example: `  paddock image import python.tar python:3.11
  docker save alpine | paddock image import - alpine`,
		Args: args(1, 2, "FILE [NAME]"),
		RunE: a.imageRun(func(ctx context.Context, c *connection, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			in, size := io.Reader(a.streams.In), int64(-1)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				if st, err := f.Stat(); err == nil && st.IsDir() {
					return fmt.Errorf("%s is a directory: pack it with `tar -cf - -C %s . | paddock image import - NAME`", args[0], args[0])
				} else if err == nil && st.Mode().IsRegular() {
					size = st.Size()
				}
				in = f
			}
			if size < 0 {
				in = newInterruptible(ctx, in)
			}
			bar := a.transfer("importing", size)
			imgs, err := c.ImportImage(ctx, bar.reader(in), name)
			bar.end()
			if err != nil {
				return fmt.Errorf("importing %s: %w", args[0], err)
			}
			return a.printImages(imgs)
		}),
	}
}

func (a *app) imageExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "export IMAGE [FILE]",
		Short:   "Write an image as an OCI archive; without FILE to standard output",
		Example: "  paddock image export python:3.11 python.tar",
		Args:    args(1, 2, "IMAGE [FILE]"),
		RunE: a.imageRun(func(ctx context.Context, c *connection, args []string) error {
			toFile := len(args) == 2 && args[1] != "-"
			if !toFile && isTerminal(a.streams.Out) {
				return &UsageError{Message: "an archive is not for a terminal", Try: "paddock image export " + args[0] + " FILE"}
			}
			archive, err := c.ExportImage(ctx, args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			if !toFile {
				_, err := io.Copy(a.streams.Out, archive)
				return err
			}
			return a.saveFile(args[1], archive, 0o644)
		}),
	}
}

// saveFile writes a stream to a file that appears only when it is complete. It
// goes where a link points, and straight into a device or a pipe.
func (a *app) saveFile(path string, r io.Reader, mode os.FileMode) error {
	switch st, err := os.Stat(path); {
	case err == nil && !st.Mode().IsRegular() && !st.IsDir():
		return writeInto(path, r)
	case err == nil:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".paddock-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if _, err := io.Copy(tmp, r); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := tmp.Chmod(mode); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}

// writeInto writes to what is no file, such as /dev/null.
func writeInto(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func (a *app) imageLsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List images",
		Args:  args(0, 0, ""),
		RunE: a.imageRun(func(ctx context.Context, c *connection, _ []string) error {
			imgs, err := c.ListImages(ctx)
			if err != nil {
				return err
			}
			return a.printImages(imgs)
		}),
	}
}

func (a *app) imageRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images",
		Args:  args(1, -1, "IMAGE..."),
		RunE: a.imageRun(func(ctx context.Context, c *connection, refs []string) error {
			return a.each(refs, "name", func(ref string) error { return c.RemoveImage(ctx, ref) })
		}),
	}
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove leftovers, and with --all every image that no sandbox uses",
		Args:  args(0, 0, ""),
	}
	cmd.RunE = a.imageRun(func(ctx context.Context, c *connection, _ []string) error {
		pruned, err := c.PruneImages(ctx, all)
		if err != nil {
			return err
		}
		if a.output == "json" {
			pruned.Images = nonNil(pruned.Images)
			return a.json(pruned)
		}
		for _, name := range pruned.Images {
			fmt.Fprintln(a.streams.Out, sanitize(name))
		}
		fmt.Fprintf(a.streams.Out, "%s freed\n", bytesText(pruned.Bytes))
		return nil
	})
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also images with a name that no sandbox uses")
	return cmd
}

func (a *app) printImages(imgs []client.Image) error {
	if a.output == "json" {
		return a.json(nonNil(imgs))
	}
	rows := make([][]string, len(imgs))
	for i, img := range imgs {
		rows[i] = []string{familiar(img.Name), shortDigest(img.Digest), img.Platform.OS + "/" + img.Platform.Arch,
			bytesText(img.SizeBytes), ago(img.CreatedAt, time.Now())}
	}
	return a.table([]string{"IMAGE", "DIGEST", "PLATFORM", "SIZE", "CREATED"}, rows)
}
