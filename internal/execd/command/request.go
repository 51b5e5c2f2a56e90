package command

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Request is the body of POST /command.
type Request struct {
	// Command is shell text; exactly one of it and Argv is set.
	Command *string  `json:"command"`
	Argv    []string `json:"argv"`
	Cwd     string   `json:"cwd"`
	// Background answers at once and lets the command run on.
	Background bool `json:"background"`
	// Timeout is in milliseconds; 0 or absent means none.
	Timeout *int64            `json:"timeout"`
	UID     *int64            `json:"uid"`
	GID     *int64            `json:"gid"`
	Envs    map[string]string `json:"envs"`
}

const (
	// maxArg is the longest argument that execve takes, MAX_ARG_STRLEN of
	// Linux less its terminator, in bytes.
	maxArg = 128<<10 - 1
	// maxTimeout keeps milliseconds within a time.Duration.
	maxTimeout = int64(1<<63-1) / int64(time.Millisecond)
)

// plan is a checked request, ready to be started.
type plan struct {
	content    string
	background bool
	timeout    time.Duration
	spec       process.Spec
	// script, when not nil, is the command's text in a file: it was too long
	// for an argument.
	script *os.File
	// err is why the program can't be started. The contract reports that in
	// the stream, not as the request's failure.
	err error
}

// prepare checks a request. Its errors are the caller's.
func prepare(g *guest.Guest, req *Request) (*plan, error) {
	p := &plan{background: req.Background}
	if req.Timeout != nil {
		if *req.Timeout < 0 || *req.Timeout > maxTimeout {
			return nil, web.BadBody("timeout is %d; it must be a number of milliseconds from 1 on, or 0 for none", *req.Timeout)
		}
		p.timeout = time.Duration(*req.Timeout) * time.Millisecond
	}
	if err := guest.CheckEnv(req.Envs); err != nil {
		return nil, web.BadBody("envs: %v", err)
	}
	dir, err := Directory(g, req.Cwd)
	if err != nil {
		return nil, err
	}
	id, err := identity(g, req.UID, req.GID)
	if err != nil {
		return nil, err
	}
	env, path := g.Environ(id, req.Envs)
	p.spec = process.Spec{Env: env, Dir: dir, Credential: Credential(id)}
	switch {
	case req.Command != nil && req.Argv != nil:
		return nil, web.BadBody("both command and argv are given; send exactly one of them")
	case req.Command != nil:
		return p, p.shell(*req.Command, path)
	case req.Argv != nil:
		return p, p.program(req.Argv, path)
	}
	return nil, web.BadBody("neither command nor argv is given; send exactly one of them")
}

func (p *plan) shell(text, path string) error {
	if strings.TrimSpace(text) == "" {
		return web.BadBody("command is empty")
	}
	if strings.ContainsRune(text, 0) {
		return web.BadBody("command contains a NUL byte, which no shell accepts")
	}
	p.content = text
	shell, err := Shell(path, p.spec.Dir)
	if err != nil {
		p.err = err
		return nil
	}
	p.spec.Path = shell
	name := shell[strings.LastIndexByte(shell, '/')+1:]
	if len(text) <= maxArg {
		p.spec.Argv = []string{name, "-c", text}
		return nil
	}
	if p.script, p.err = scriptFile(text); p.err == nil {
		p.spec.Argv = []string{name, "/proc/self/fd/3"}
	}
	return nil
}

// scriptFile holds text that is too long for an argument. It is readable for
// every user, as a descriptor that only the command inherits.
func scriptFile(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("command", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("keeping a command of %d bytes: %w", len(text), err)
	}
	f := os.NewFile(uintptr(fd), "command")
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return nil, fmt.Errorf("keeping a command of %d bytes: %w", len(text), err)
	}
	return f, nil
}

func (p *plan) program(argv []string, path string) error {
	if len(argv) == 0 || argv[0] == "" {
		return web.BadBody("argv is empty; its first element names the program")
	}
	for i, arg := range argv {
		if strings.ContainsRune(arg, 0) {
			return web.BadBody("argv[%d] contains a NUL byte, which no program can be given", i)
		}
		if len(arg) > maxArg {
			return web.BadBody("argv[%d] is %d bytes long; Linux takes at most %d", i, len(arg), maxArg)
		}
	}
	p.content = strings.Join(argv, " ")
	p.spec.Argv = argv
	p.spec.Path, p.err = process.Look(argv[0], path, p.spec.Dir)
	return nil
}

// Shell finds bash, or sh where there is no bash.
func Shell(path, dir string) (string, error) {
	for _, name := range []string{"bash", "/bin/bash", "sh", "/bin/sh"} {
		if found, err := process.Look(name, path, dir); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("this sandbox has neither bash nor sh: %w; send argv instead of command", process.ErrNotFound)
}

// Directory resolves cwd, which must be a directory; empty means the sandbox's.
func Directory(g *guest.Guest, cwd string) (string, error) {
	if cwd == "" {
		return g.Cwd, nil
	}
	dir, err := g.Path(cwd)
	if err != nil {
		return "", web.BadBody("cwd: %v", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", web.BadBody("cwd %q can't be used: %v", cwd, unwrapPath(err))
	}
	if !st.IsDir() {
		return "", web.BadBody("cwd %q is not a directory", cwd)
	}
	return dir, nil
}

// MakeDirectory is Directory for one that is made when it is missing.
func MakeDirectory(g *guest.Guest, cwd string) (string, error) {
	if cwd != "" {
		dir, err := g.Path(cwd)
		if err != nil {
			return "", web.BadBody("cwd: %v", err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", web.BadBody("cwd %q can't be made: %v", cwd, err)
		}
	}
	return Directory(g, cwd)
}

// unwrapPath drops operation and path, which the message has already.
func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

func identity(g *guest.Guest, uid, gid *int64) (account.Identity, error) {
	if uid == nil {
		if gid != nil {
			return account.Identity{}, web.BadBody("gid is given without uid; send uid as well")
		}
		return g.Identity, nil
	}
	u, err := checkID("uid", *uid)
	if err != nil {
		return account.Identity{}, err
	}
	var group *uint32
	if gid != nil {
		n, err := checkID("gid", *gid)
		if err != nil {
			return account.Identity{}, err
		}
		group = &n
	}
	return g.Accounts.ByUID(u, group)
}

func checkID(field string, n int64) (uint32, error) {
	if n < 0 || n > 1<<32-2 {
		return 0, web.BadBody("%s is %d; it must be from 0 to 4294967294", field, n)
	}
	return uint32(n), nil
}

// Credential turns an identity into what a process starts with; nil when execd
// could only keep its own identity anyway.
func Credential(id account.Identity) *syscall.Credential {
	if os.Geteuid() != 0 && int(id.UID) == os.Geteuid() {
		return nil
	}
	return id.Credential()
}
