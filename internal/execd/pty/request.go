package pty

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxArg is the longest argument that execve takes, MAX_ARG_STRLEN of
	// Linux less its terminator, in bytes.
	maxArg = 128<<10 - 1
	// maxTerm is longer than every name in terminfo.
	maxTerm = 64
	// defaultTerm is a terminal that every web terminal is.
	defaultTerm = "xterm-256color"
)

// createRequest is the body of POST /pty. All but cwd and command is paddock's.
type createRequest struct {
	// Cwd is made when it is missing.
	Cwd string `json:"cwd"`
	// Command is shell text; at most one of it and Argv is given. Without
	// either the session is an interactive shell.
	Command string   `json:"command"`
	Argv    []string `json:"argv"`
	// Cols and Rows are the terminal's first size; both or none.
	Cols *int `json:"cols"`
	Rows *int `json:"rows"`
	// Term is the value of TERM.
	Term string `json:"term"`
	// Env and Envs are added to the environment; the second is what POST
	// /command calls it, and wins.
	Env  map[string]string `json:"env"`
	Envs map[string]string `json:"envs"`
	// User is an image's USER: "name", "uid", and either with ":group" or
	// ":gid". At most one of it and UID is given.
	User string `json:"user"`
	UID  *int64 `json:"uid"`
	GID  *int64 `json:"gid"`
}

// plan is a checked request. It is not changed after it was made.
type plan struct {
	guest    *guest.Guest
	command  string
	argv     []string
	dir      string
	size     size
	term     string
	env      map[string]string
	identity account.Identity
}

// prepare checks a request. Its errors are the caller's.
func prepare(g *guest.Guest, req *createRequest) (*plan, error) {
	p := &plan{guest: g, command: req.Command, argv: req.Argv, size: defaultSize, term: req.Term}
	if err := checkProgram(req); err != nil {
		return nil, err
	}
	if !isTerm(req.Term) {
		return nil, web.BadBody("term is %q; it must be the name of a terminal type, such as %s: letters, digits and -+._ only", clip(req.Term), defaultTerm)
	}
	var err error
	if req.Cols != nil || req.Rows != nil {
		if req.Cols == nil || req.Rows == nil {
			return nil, web.BadBody("only one of cols and rows is given; send both or none")
		}
		if p.size, err = checkSize(*req.Cols, *req.Rows); err != nil {
			return nil, web.BadBody("cols, rows: %v", err)
		}
	}
	p.env = make(map[string]string, len(req.Env)+len(req.Envs))
	maps.Copy(p.env, req.Env)
	maps.Copy(p.env, req.Envs)
	if err := guest.CheckEnv(p.env); err != nil {
		return nil, web.BadBody("env: %v", err)
	}
	if p.identity, err = identity(g, req); err != nil {
		return nil, err
	}
	p.dir, err = command.MakeDirectory(g, req.Cwd)
	return p, err
}

func checkProgram(req *createRequest) error {
	if req.Command != "" && req.Argv != nil {
		return web.BadBody("both command and argv are given; send one of them, or none for an interactive shell")
	}
	if req.Argv != nil && (len(req.Argv) == 0 || req.Argv[0] == "") {
		return web.BadBody("argv is empty; its first element names the program")
	}
	for i, arg := range append([]string{req.Command}, req.Argv...) {
		name := "command"
		if i > 0 {
			name = "an element of argv"
		}
		if strings.ContainsRune(arg, 0) {
			return web.BadBody("%s contains a NUL byte, which no program can be given", name)
		}
		if len(arg) > maxArg {
			return web.BadBody("%s is %d bytes long; Linux takes at most %d", name, len(arg), maxArg)
		}
	}
	return nil
}

func isTerm(s string) bool {
	return len(s) <= maxTerm && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-+._", r))
	}) < 0
}

func identity(g *guest.Guest, req *createRequest) (account.Identity, error) {
	switch {
	case req.User != "" && (req.UID != nil || req.GID != nil):
		return account.Identity{}, web.BadBody("user is given together with uid or gid; send either")
	case req.User != "":
		id, err := g.Accounts.Resolve(req.User)
		if err != nil {
			return id, web.BadBody("user: %v", err)
		}
		return id, nil
	case req.UID == nil && req.GID != nil:
		return account.Identity{}, web.BadBody("gid is given without uid; send uid as well")
	case req.UID == nil:
		return g.Identity, nil
	}
	uid, err := checkID("uid", *req.UID)
	if err != nil {
		return account.Identity{}, err
	}
	var group *uint32
	if req.GID != nil {
		gid, err := checkID("gid", *req.GID)
		if err != nil {
			return account.Identity{}, err
		}
		group = &gid
	}
	return g.Accounts.ByUID(uid, group)
}

func checkID(field string, n int64) (uint32, error) {
	// The last number means "leave as it is" (setresuid(2)).
	if n < 0 || n > 1<<32-2 {
		return 0, web.BadBody("%s is %d; it must be from 0 to 4294967294", field, n)
	}
	return uint32(n), nil
}

// spec is what to start, without its descriptors.
func (p *plan) spec(terminal bool) (process.Spec, error) {
	extra := p.env
	if _, given := extra["TERM"]; p.term != "" && !given {
		extra = maps.Clone(extra)
		extra["TERM"] = p.term
	}
	env, pathList := p.guest.Environ(p.identity, extra)
	if terminal && !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		env = append(env, "TERM="+defaultTerm)
	}
	spec := process.Spec{
		Env: env, Dir: p.dir, Credential: command.Credential(p.identity),
		NewSession: terminal, Terminal: terminal,
	}
	var err error
	if p.argv != nil {
		spec.Argv = p.argv
		spec.Path, err = process.Look(p.argv[0], pathList, p.dir)
		return spec, err
	}
	if spec.Path, err = command.Shell(pathList, p.dir); err != nil {
		return spec, err
	}
	spec.Argv = []string{path.Base(spec.Path)}
	if spec.Argv[0] == "bash" {
		spec.Argv = append(spec.Argv, "--norc", "--noprofile")
	}
	if p.command != "" {
		spec.Argv = append(spec.Argv, "-c", p.command)
	}
	return spec, nil
}
