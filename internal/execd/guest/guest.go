package guest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
)

const (
	// DefaultPath is what Docker gives a Linux container without a PATH.
	DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// EnvFileVar names the file with extra variables (OpenSandbox execd API).
	EnvFileVar = "EXECD_ENVS"
	// DefaultEnvFile is its value when the sandbox's environment has none.
	DefaultEnvFile = "/opt/opensandbox/.env"
)

// Guest is a claimed sandbox. Its methods may be called in parallel.
type Guest struct {
	// Identity is the default one, of the image's USER.
	Identity account.Identity
	// Accounts are the sandbox's users and groups.
	Accounts account.Files
	// Cwd is absolute: where commands start, and the base of relative paths.
	Cwd string

	// env is replaced as a whole, and never changed.
	env atomic.Pointer[map[string]string]
	// homeGiven is false when HOME was completed from the passwd entry, and
	// then follows the identity of each command.
	homeGiven bool
	envFile   sync.Once
	adding    sync.Mutex // held by AddEnv
}

// New completes the environment. env is kept and must not be changed after.
func New(env map[string]string, id account.Identity, cwd string) *Guest {
	if env == nil {
		env = make(map[string]string)
	}
	if cwd == "" {
		cwd = "/"
	}
	g := &Guest{Identity: id, Accounts: account.System, Cwd: cwd}
	if env["PATH"] == "" {
		env["PATH"] = DefaultPath
	}
	if env[EnvFileVar] == "" {
		env[EnvFileVar] = DefaultEnvFile
	}
	_, g.homeGiven = env["HOME"]
	if !g.homeGiven {
		env["HOME"] = id.Home
	}
	g.env.Store(&env)
	return g
}

// AddEnv adds variables to the sandbox's environment, over those of the same
// name. What runs already keeps what it has.
func (g *Guest) AddEnv(more map[string]string) {
	g.adding.Lock()
	defer g.adding.Unlock()
	next := maps.Clone(g.vars())
	maps.Copy(next, more)
	g.env.Store(&next)
}

// vars is the sandbox's environment now, to be read only.
func (g *Guest) vars() map[string]string { return *g.env.Load() }

// Getenv returns a variable of the sandbox's environment.
func (g *Guest) Getenv(name string) (string, bool) {
	v, ok := g.vars()[name]
	return v, ok
}

// BaseEnv returns the sandbox's own environment, for the entrypoint.
func (g *Guest) BaseEnv() []string { return list(g.vars()) }

// Environ returns the environment of a command that runs as id, and its PATH.
// Precedence: extra, then the extra environment file, then the sandbox's own.
func (g *Guest) Environ(id account.Identity, extra map[string]string) (env []string, path string) {
	own := g.vars()
	merged := make(map[string]string, len(own)+len(extra)+8)
	for k, v := range own {
		merged[k] = v
	}
	if !g.homeGiven {
		merged["HOME"] = id.Home
	}
	for k, v := range g.readEnvFile() {
		merged[k] = v
	}
	for k, v := range extra {
		merged[k] = v
	}
	return list(merged), merged["PATH"]
}

func list(m map[string]string) []string {
	l := make([]string, 0, len(m))
	for k, v := range m {
		l = append(l, k+"="+v)
	}
	// Sorted, so that two runs of `env` agree.
	sort.Strings(l)
	return l
}

// CheckEnv reports the first variable that can't be passed to a process.
func CheckEnv(env map[string]string) error {
	for k, v := range env {
		switch {
		case k == "":
			return errors.New("a variable's name is empty")
		case strings.ContainsAny(k, "=\x00"):
			return fmt.Errorf("the variable name %q contains '=' or a NUL byte, which no environment can hold", k)
		case strings.ContainsRune(v, 0):
			return fmt.Errorf("the value of variable %q contains a NUL byte, which no environment can hold", k)
		}
	}
	return nil
}

// readEnvFile returns the variables of the extra environment file. The file is
// hostile and optional: what can't be read is not there.
func (g *Guest) readEnvFile() map[string]string {
	env := g.vars()
	path := env[EnvFileVar]
	if !filepath.IsAbs(path) {
		path = filepath.Join(g.Cwd, path)
	}
	g.envFile.Do(func() { g.makeEnvFile(path) })
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(f, maxEnvFile))
	if err != nil {
		return nil
	}
	return parseEnvFile(string(text), func(name string) string { return env[name] })
}

// makeEnvFile creates the file so that a sandbox whose user is not root can
// append to it, too. A read-only filesystem is no reason to fail a command.
func (g *Guest) makeEnvFile(path string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	_ = f.Chown(int(g.Identity.UID), int(g.Identity.GID))
}
