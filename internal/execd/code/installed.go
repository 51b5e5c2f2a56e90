package code

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// kernelPrefix in front of a language's name means the kernel of that name,
	// also where the name is that of a language with a driver.
	kernelPrefix = "kernel:"
	// kernelsVar is a variable of the sandbox's environment. With the value
	// kernelsOff contexts get a kernel only if its name was asked for.
	kernelsVar = "PADDOCK_KERNELS"
	kernelsOff = "off"
)

// installed is what an image has of Jupyter.
type installed struct {
	env    map[string]string
	search string
	dir    string
	specs  []*jupyter.Spec
}

// kernels reads the kernel specs of the image. They are read anew each time:
// the sandbox's user may install one at any moment.
func (a *API) kernels(dir string) *installed {
	g := a.opts.Guest()
	env, path := g.Environ(g.Identity, nil)
	in := &installed{env: make(map[string]string, len(env)), search: path, dir: dir}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		in.env[name] = value
	}
	in.specs = jupyter.Specs(jupyter.Paths(in.getenv, in.prefixes(), in.env["HOME"]))
	return in
}

func (in *installed) getenv(name string) string { return in.env[name] }

func (in *installed) look(name string) (string, error) {
	return process.Look(name, in.search, in.dir)
}

// prefixes are where the Python interpreters in PATH are installed: virtual
// environments have a link to the interpreter that they were made with.
func (in *installed) prefixes() []string {
	var all []string
	add := func(program string) {
		if bin := filepath.Dir(program); filepath.Base(bin) == "bin" {
			all = append(all, filepath.Dir(bin))
		}
	}
	for _, name := range []string{"python3", "python"} {
		if found, err := in.look(name); err == nil {
			add(found)
			if real, err := filepath.EvalSymlinks(found); err == nil {
				add(real)
			}
		}
	}
	return all
}

func (in *installed) named(name string) *jupyter.Spec { return named(in.specs, name) }

// named finds the kernel with that name, and nil when there is none.
func named(specs []*jupyter.Spec, name string) *jupyter.Spec {
	i := slices.IndexFunc(specs, func(s *jupyter.Spec) bool { return strings.EqualFold(s.Name, name) })
	if i < 0 {
		return nil
	}
	return specs[i]
}

// first finds the first kernel of a language, which may have several names.
func first(specs []*jupyter.Spec, names ...string) *jupyter.Spec {
	i := slices.IndexFunc(specs, func(s *jupyter.Spec) bool { return slices.ContainsFunc(names, s.Is) })
	if i < 0 {
		return nil
	}
	return specs[i]
}

// interpreter finds the ipykernel of a Python interpreter.
func (in *installed) interpreter(program string) *jupyter.Spec {
	for _, s := range in.specs {
		if !s.Python() {
			continue
		}
		if found, err := s.Program(in.look); err == nil && sameProgram(found, program) {
			return s
		}
	}
	return nil
}

// sameProgram reports whether two paths lead to one interpreter. Its name
// matters: a virtual environment's is a link to a file that is another
// interpreter under its own name.
func sameProgram(a, b string) bool {
	a, b = filepath.Clean(a), filepath.Clean(b)
	if a == b {
		return true
	}
	if filepath.Dir(a) != filepath.Dir(b) {
		return false
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// allKernels are the kernels of the Jupyter server, if the environment names one
// that answers, and those of the image.
func (a *API) allKernels(ctx context.Context, in *installed) []*jupyter.Spec {
	server, err := in.server()
	if err != nil || server == nil {
		return in.specs
	}
	theirs, err := a.ask(ctx, server)
	if err != nil {
		return in.specs
	}
	return append(theirs, in.specs...)
}

// language finds the language of a context by its name: one that has a driver,
// a kernel, or the language of a kernel.
func (a *API) language(ctx context.Context, name string) (*language, error) {
	lower := strings.ToLower(name)
	if l := languageNames[lower]; l != nil {
		return l, nil
	}
	if shell, _ := isShell(lower); shell {
		return nil, refuseLanguage(name, nil)
	}
	specs := a.allKernels(ctx, a.kernels(a.opts.Guest().Cwd))
	wanted, only := strings.CutPrefix(lower, kernelPrefix)
	spec := named(specs, wanted)
	if spec == nil && !only {
		spec = first(specs, lower)
	}
	if spec == nil {
		return nil, refuseLanguage(name, specs)
	}
	return &language{name: lower, kernel: spec.Name}, nil
}

// refuseLanguage says why a language has no contexts.
func refuseLanguage(name string, specs []*jupyter.Spec) error {
	lower := strings.ToLower(name)
	if shell, _ := isShell(lower); shell {
		return web.Errorf(http.StatusInternalServerError, web.CodeNotSupported, "language %q has no contexts: each command is on its own; use POST /session to keep a shell's state, or the language bash", name)
	}
	if lower == "sql" {
		return web.Errorf(http.StatusInternalServerError, web.CodeNotSupported, "language \"sql\" is not supported: use a client of your database from python or a command (in python: import sqlite3)")
	}
	kernels := "no Jupyter kernel is installed"
	if len(specs) > 0 {
		names := make([]string, 0, len(specs))
		for _, s := range specs {
			names = append(names, kernelPrefix+s.Name)
		}
		kernels = "the Jupyter kernels " + cut(strings.Join(names, ", "), 1024)
	}
	return web.Errorf(http.StatusInternalServerError, web.CodeNotSupported, "language %q is not supported; the languages are %s, and command for a shell command; %s", cut(name, 100), known(), kernels)
}
