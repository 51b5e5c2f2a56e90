package cli

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/client"
)

func (a *app) cpCommand() *cobra.Command {
	var user string
	var through bool
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files and directories into and out of a sandbox",
		Long: `Copy files and directories into and out of a sandbox. One side is ID:PATH, the other
a path here. A source is copied into a destination that is a directory, and becomes
the destination otherwise; the content alone of a directory is copied when the
source ends with "/.".

Modes, times, links, holes and user.* attributes are kept. Owners are not: copies
belong to the sandbox's user, or to --user, and here to you. A link that is named as
the source is followed; links inside of a directory stay links.

With - as the other side a file's content comes from standard input or goes to
standard output; for a directory in the sandbox it is an uncompressed tar archive.

A file appears when it is complete. What was copied before a failure stays.

A copy from a sandbox may bring symbolic links to any place here. So the next one is
not written through a link, neither where the destination is one nor on the way to it,
unless it is in the root directory or in one where you may not write. With
--through-links it is.`,
		Example: `  paddock cp script.py $id:/tmp/
  paddock cp $id:/var/log ./logs
  paddock cp src/. $id:/app
  paddock cp $id:/etc/os-release -
  tar -c src | paddock cp - $id:/tmp/`,
		Args: args(2, 2, "SOURCE DESTINATION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			srcID, src := splitPlace(args[0])
			dstID, dst := splitPlace(args[1])
			if (srcID == "") == (dstID == "") {
				return usagef(cmd, "exactly one of %q and %q must be in a sandbox, as ID:/path", args[0], args[1])
			}
			if src == "" || dst == "" {
				return usagef(cmd, "a path is empty")
			}
			conn, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.close()
			if user != "" {
				if err := conn.actAs(cmd.Context(), srcID+dstID, user); err != nil {
					return err
				}
			}
			if dstID != "" {
				return a.copyIn(cmd.Context(), &place{conn, dstID, dst}, src)
			}
			return a.copyOut(cmd.Context(), &place{conn, srcID, src}, dst, through)
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "user of the sandbox who reads and owns files there: NAME, UID or UID:GID")
	cmd.Flags().BoolVar(&through, "through-links", false, "follow symbolic links in the path of a destination here")
	return cmd
}

// actAs makes file calls act as a user of the sandbox.
func (c *connection) actAs(ctx context.Context, id, user string) error {
	uid, gid, err := resolveUser(ctx, c, id, user)
	if err != nil {
		return err
	}
	if gid == nil {
		g, err := primaryGroup(ctx, c, id, *uid)
		if err != nil {
			return err
		}
		gid = &g
	}
	c.Client = c.Client.As(*uid, *gid)
	return nil
}

// place is a path in a sandbox.
type place struct {
	c    *connection
	id   string
	path string
}

func (p *place) String() string { return p.id + ":" + client.Printable(p.path) }

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
	// The key is the name, but for bytes that JSON does not have.
	for _, info := range infos {
		return &info, nil
	}
	return nil, nil
}

// isDir reports whether a path is a directory, also through a link. Of a link
// the API describes the link itself, but an archive of one to a directory begins
// with that directory.
func (p *place) isDir(ctx context.Context, info *client.FileInfo, name string) (bool, error) {
	switch {
	case info == nil:
		return false, nil
	case info.Type != "symlink":
		return info.Type == "directory", nil
	}
	r, err := p.c.DownloadDir(ctx, p.id, name)
	if client.IsNotFound(err) {
		return false, nil // it points to nothing
	}
	if err != nil {
		return false, err
	}
	defer r.Close()
	first, err := tar.NewReader(r).Next()
	return err == nil && first.Typeflag == tar.TypeDir, err
}

// contentOnly reports whether a source stands for what is in a directory.
func contentOnly(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

// copyIn copies from here into the sandbox.
func (a *app) copyIn(ctx context.Context, to *place, src string) error {
	info, err := to.stat(ctx, to.path)
	if err != nil {
		return err
	}
	intoDir, err := to.isDir(ctx, info, to.path)
	if err != nil {
		return err
	}
	intoDir = intoDir || info == nil && strings.HasSuffix(to.path, "/")
	if src == "-" {
		if intoDir {
			return a.uploadDir(ctx, to, to.path, newInterruptible(ctx, a.streams.In))
		}
		return a.upload(ctx, to, to.path, newInterruptible(ctx, a.streams.In), 0, -1)
	}
	st, err := os.Stat(src)
	if err != nil {
		return err
	}
	target := strings.TrimRight(to.path, "/")
	if intoDir && !(st.IsDir() && contentOnly(src)) {
		target = path.Join(to.path, filepath.Base(absolute(src)))
	}
	if target == "" {
		target = "/"
	}
	switch {
	case st.IsDir():
		if !intoDir && info != nil {
			return fmt.Errorf("%s is there and is not a directory, so the directory %s can't be copied to it", to, src)
		}
		return a.packDir(ctx, to, src, target)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a directory", src)
	case st.Size() == 0:
		// Files that the kernel makes up, such as those in /proc, have this
		// size as well.
		return a.copyContent(ctx, to, src, target, st.Mode().Perm())
	}
	return a.packFile(ctx, to, src, target, st.Size())
}

// absolute is for the name of a source such as "." or "..".
func absolute(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}

func (a *app) copyContent(ctx context.Context, to *place, src, target string, mode os.FileMode) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.upload(ctx, to, target, f, mode, -1)
}

func (a *app) upload(ctx context.Context, to *place, target string, f io.Reader, mode os.FileMode, size int64) error {
	bar := a.transfer(path.Base(target), size)
	err := to.c.UploadFiles(ctx, to.id, client.UploadFile{
		Path: target, Mode: client.ModeOf(uint32(mode)), Content: bar.reader(f), Size: size,
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("copying to %s:%s: %w", to.id, client.Printable(target), err)
	}
	return nil
}

// copyOut copies from the sandbox to here.
func (a *app) copyOut(ctx context.Context, from *place, dst string, through bool) error {
	info, err := from.stat(ctx, from.path)
	if err != nil {
		return err
	}
	if info == nil {
		return fmt.Errorf("%s does not exist", from)
	}
	dir, err := from.isDir(ctx, info, from.path)
	if err != nil {
		return err
	}
	if dst == "-" || !dir && isDescriptor(dst) {
		return a.copyToOutput(ctx, from, dir, dst)
	}
	to, err := openDestination(dst, through)
	if err != nil {
		return err
	}
	defer func() { to.close() }()
	if to.isDir() && !(dir && contentOnly(from.path)) {
		inner, err := to.into(from.base())
		if err != nil {
			return err
		}
		to.close()
		to = inner
	}
	switch {
	case dir && to.st != nil:
		return fmt.Errorf("%s is there and is not a directory, so the directory %s can't be copied to it", to.path, from)
	case dir:
		return a.unpackDir(ctx, from, to)
	case info.Type == "other":
		return fmt.Errorf("%s is neither a file nor a directory", from)
	case to.isDir():
		return fmt.Errorf("%s is a directory, so the file %s can't be copied to it", to.path, from)
	case to.st != nil && to.st.Mode&unix.S_IFMT != unix.S_IFREG, info.Type == "symlink", info.Size == 0:
		mode := os.FileMode(info.Mode.Perm() & 0o777)
		if info.Type == "symlink" {
			mode = 0o644
		}
		return a.download(ctx, from, from.path, func(d *client.Download) error { return to.save(d, mode) })
	}
	return a.unpackFile(ctx, from, to, info.Size)
}

// base is the name of the source. It is what the user wrote, never what the
// sandbox says: that could be any name, such as .bashrc.
func (p *place) base() string {
	name := path.Base(p.path)
	if name == "/" || name == "." || name == ".." {
		return p.id
	}
	return name
}

// copyToOutput writes a file's content, or a directory as an archive, to standard
// output or, a file, to a descriptor of this process.
func (a *app) copyToOutput(ctx context.Context, from *place, dir bool, dst string) error {
	if !dir {
		return a.download(ctx, from, from.path, func(d *client.Download) error {
			if dst != "-" {
				return writeInto(dst, d)
			}
			_, err := io.Copy(a.streams.Out, d)
			return err
		})
	}
	if isTerminal(a.streams.Out) {
		return &UsageError{Message: from.String() + " is a directory, and the archive of one is not for a terminal", Try: "paddock cp " + from.String() + " - | tar -t"}
	}
	r, err := from.c.DownloadDir(ctx, from.id, from.path)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	defer r.Close()
	_, err = io.Copy(a.streams.Out, r)
	return err
}

// download opens a file in the sandbox and gives it to save.
func (a *app) download(ctx context.Context, from *place, name string, save func(*client.Download) error) error {
	d, err := from.c.DownloadFile(ctx, from.id, name, client.DownloadOptions{})
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	defer d.Close()
	bar := a.transfer(path.Base(name), d.Size)
	shown := &client.Download{ReadCloser: readCloser{bar.reader(d), d}, Size: d.Size}
	err = save(shown)
	bar.end()
	return err
}
