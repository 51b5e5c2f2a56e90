package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files and directories into and out of a sandbox",
		Long: `Copy files and directories into and out of a sandbox. One side is ID:PATH, the other
a path here, or - for standard input or output. A source is copied into a
destination that is a directory, and becomes the destination otherwise. Modes are
kept, owners are not.

Symbolic links inside a directory are kept when the sandbox has tar; without tar they
are left out, with a warning.`,
		Example: `  paddock cp script.py $id:/tmp/
  paddock cp $id:/var/log ./logs
  paddock cp $id:/etc/os-release -`,
		Args: args(2, 2, "SOURCE DESTINATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			srcID, src := splitPlace(args[0])
			dstID, dst := splitPlace(args[1])
			if (srcID == "") == (dstID == "") {
				return usagef(cmd, "exactly one of %q and %q must be in a sandbox, as ID:/path", args[0], args[1])
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			if dstID != "" {
				return a.copyIn(cmd.Context(), &place{conn, dstID, dst}, src)
			}
			return a.copyOut(cmd.Context(), &place{conn, srcID, src}, dst)
		},
	}
}

// place is a path in a sandbox.
type place struct {
	c    *connection
	id   string
	path string
}

// splitPlace splits ID:PATH. What begins with "." or "/" is a path here even
// when it holds a colon.
func splitPlace(s string) (id, p string) {
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return "", s
	}
	id, p, ok := strings.Cut(s, ":")
	if !ok || id == "" || strings.Contains(id, "/") {
		return "", s
	}
	if p == "" {
		p = "."
	}
	return id, p
}

// stat describes a path in the sandbox, or returns nil when it is not there.
func (p *place) stat(ctx context.Context, name string) (*client.FileInfo, error) {
	infos, err := p.c.FileInfo(ctx, p.id, name)
	if client.IsNotFound(err) {
		// The sandbox itself may be what is not there.
		if _, serr := p.c.Get(ctx, p.id); serr != nil {
			return nil, serr
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, ok := infos[name]
	if !ok {
		return nil, nil
	}
	return &info, nil
}

// isDir reports whether a path is a directory, also through a link.
func (p *place) isDir(ctx context.Context, info *client.FileInfo, name string) (bool, error) {
	switch {
	case info == nil:
		return false, nil
	case info.Type != "symlink":
		return info.Type == "directory", nil
	}
	through, err := p.stat(ctx, strings.TrimSuffix(name, "/")+"/.")
	return through != nil && through.Type == "directory", err
}

// copyIn copies from here into the sandbox.
func (a *app) copyIn(ctx context.Context, to *place, src string) error {
	if src == "-" {
		return a.upload(ctx, to, to.path, a.streams.In, 0, -1)
	}
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	target, err := to.destination(ctx, filepath.Base(absolute(src)))
	if err != nil {
		return err
	}
	switch {
	case st.IsDir():
		return a.copyDirIn(ctx, to, src, target)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a directory", src)
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.upload(ctx, to, target, f, st.Mode().Perm(), st.Size())
}

// destination is where a source of that name goes: into the path when it is a
// directory or is written with a slash at the end, else to the path itself.
func (p *place) destination(ctx context.Context, name string) (string, error) {
	info, err := p.stat(ctx, p.path)
	if err != nil {
		return "", err
	}
	dir, err := p.isDir(ctx, info, p.path)
	if err != nil {
		return "", err
	}
	if dir || info == nil && strings.HasSuffix(p.path, "/") {
		return path.Join(p.path, name), nil
	}
	return strings.TrimSuffix(p.path, "/"), nil
}

func absolute(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

func (a *app) upload(ctx context.Context, to *place, target string, f *os.File, mode os.FileMode, size int64) error {
	bar := a.transfer(path.Base(target), size)
	err := to.c.UploadFiles(ctx, to.id, client.UploadFile{
		Path: target, Mode: client.ModeOf(uint32(mode)), Content: bar.reader(f), Size: size,
	})
	bar.end(err)
	if err != nil {
		return fmt.Errorf("copying to %s:%s: %w", to.id, target, err)
	}
	return nil
}

// copyOut copies from the sandbox to here.
func (a *app) copyOut(ctx context.Context, from *place, dst string) error {
	info, err := from.stat(ctx, from.path)
	if err != nil {
		return err
	}
	if info == nil {
		return fmt.Errorf("%s:%s does not exist", from.id, from.path)
	}
	dir, err := from.isDir(ctx, info, from.path)
	if err != nil {
		return err
	}
	if dst == "-" {
		if dir {
			return errors.New("a directory cannot be written to standard output")
		}
		return a.download(ctx, from, from.path, func(d *client.Download) error { return copyAll(a.streams.Out, d) })
	}
	if st, serr := os.Stat(dst); serr == nil && st.IsDir() || serr != nil && strings.HasSuffix(dst, "/") {
		name := path.Base(path.Clean("/" + info.Path))
		if name == "/" || name == "." || name == ".." {
			name = from.id
		}
		dst = filepath.Join(dst, name)
	}
	if dir {
		return a.copyDirOut(ctx, from, dst)
	}
	if info.Type == "other" {
		return fmt.Errorf("%s:%s is neither a file nor a directory", from.id, from.path)
	}
	mode := os.FileMode(info.Mode.Perm() & 0o777)
	if info.Type == "symlink" {
		mode = 0o644
	}
	return a.download(ctx, from, from.path, func(d *client.Download) error { return a.saveFile(dst, d, mode) })
}

// download opens a file in the sandbox and gives it to save.
func (a *app) download(ctx context.Context, from *place, name string, save func(*client.Download) error) error {
	d, err := from.c.DownloadFile(ctx, from.id, name, client.DownloadOptions{})
	if err != nil {
		return fmt.Errorf("copying %s:%s: %w", from.id, name, err)
	}
	defer d.Close()
	bar := a.transfer(path.Base(name), d.Size)
	shown := &client.Download{ReadCloser: readCloser{bar.reader(d), d}, Size: d.Size}
	err = save(shown)
	bar.end(err)
	return err
}
