package guest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
)

// ErrPath is the sentinel of every path that can't be understood.
var ErrPath = errors.New("bad path")

// ErrUndefined is returned for a path with a variable that is not set.
var ErrUndefined = errors.New("undefined variable")

// maxPath is PATH_MAX of Linux, in bytes.
const maxPath = 4096

// Path turns a path of a request into an absolute one: "~" and "~/" are the
// home directory, $NAME and ${NAME} are taken from the sandbox's environment,
// and a relative path starts at Cwd (OpenSandbox execd API). The answer is cleaned
// lexically; symlinks are not looked at.
func (g *Guest) Path(path string) (string, error) { return g.PathAs(g.Identity, path) }

// PathAs is Path for another user, whose home directory "~" is unless the
// sandbox's environment sets HOME.
func (g *Guest) PathAs(id account.Identity, path string) (string, error) {
	switch {
	case path == "":
		return "", fmt.Errorf("%w: the path is empty", ErrPath)
	case strings.ContainsRune(path, 0):
		return "", fmt.Errorf("%w: the path %q contains a NUL byte", ErrPath, path)
	case len(path) > maxPath:
		return "", fmt.Errorf("%w: the path is %d bytes long, more than the %d that Linux allows", ErrPath, len(path), maxPath)
	}
	home := g.vars()["HOME"]
	if !g.homeGiven {
		home = id.Home
	}
	if path == "~" || strings.HasPrefix(path, "~/") {
		path = home + path[1:]
	}
	path, err := g.expandPath(path, home)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(g.Cwd, path)
	}
	return filepath.Clean(path), nil
}

func (g *Guest) expandPath(path, home string) (string, error) {
	if !strings.Contains(path, "$") {
		return path, nil
	}
	env := g.vars()
	var undefined string
	out := expand(path, func(name string) string {
		if name == "HOME" {
			return home
		}
		v, ok := env[name]
		if !ok && undefined == "" {
			undefined = name
		}
		return v
	})
	if undefined != "" {
		return "", fmt.Errorf("%w: %q uses $%s, which is not set in the sandbox's environment", ErrUndefined, path, undefined)
	}
	return out, nil
}
