package execd

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hooks"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/metrics"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// maxClaim bounds a claim, in bytes: an environment and an argv have to fit
// into an execve, which takes a few MiB.
const maxClaim = 16 << 20

// refuse makes the error of a refused claim.
func refuse(code, format string, args ...any) error {
	return web.Errorf(http.StatusUnprocessableEntity, code, format, args...)
}

// handleClaim is POST hostapi.ClaimPath.
func (s *Server) handleClaim(w http.ResponseWriter, r *http.Request) error {
	if given := []byte(r.Header.Get(hostapi.KeyHeader)); subtle.ConstantTimeCompare(given, []byte(s.cfg.Key)) != 1 {
		return web.Errorf(http.StatusUnauthorized, web.CodeUnauthorized, "missing or wrong key in the header %s", hostapi.KeyHeader)
	}
	var c hostapi.Claim
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxClaim)).Decode(&c); err != nil {
		return web.BadBody("the claim can't be read: %v", err)
	}
	s.claim.Lock()
	defer s.claim.Unlock()
	if s.box.Load() != nil {
		return web.Errorf(http.StatusConflict, hostapi.CodeAlreadyClaimed, "this sandbox is already claimed")
	}
	if c.Session != nil {
		b, err := s.claimSession(&c)
		if err != nil {
			return err
		}
		s.box.Store(b)
		web.JSON(w, http.StatusOK, hostapi.ClaimResult{})
		return nil
	}
	b, millis, err := s.claimed(r.Context(), &c)
	if err != nil {
		return err
	}
	s.box.Store(b)
	s.listenInterpreter(b.guest)
	web.JSON(w, http.StatusOK, hostapi.ClaimResult{PID: b.entry.proc.PID, PreStartMillis: millis})
	return nil
}

// claimed does what a claim asks for, and says how long its preStart hook took.
func (s *Server) claimed(ctx context.Context, c *hostapi.Claim) (_ *box, millis int64, err error) {
	if err := checkClaim(c); err != nil {
		return nil, 0, err
	}
	// The root has been switched since execd started.
	if err := os.Chdir("/"); err != nil {
		return nil, 0, err
	}
	if c.PIDs > 0 {
		if err := os.WriteFile(hostapi.PIDsFile, []byte(strconv.FormatInt(c.PIDs, 10)), 0); err != nil {
			return nil, 0, fmt.Errorf("setting the limit of processes: %w", err)
		}
	}
	id, err := account.System.Resolve(c.User)
	if err != nil {
		return nil, 0, refuse(hostapi.CodeUserNotFound, "the image's user %q can't be used: %v", c.User, err)
	}
	if c.Env == nil {
		c.Env = make(map[string]string)
	}
	if _, ok := c.Env["HOSTNAME"]; !ok && c.Hostname != "" {
		c.Env["HOSTNAME"] = c.Hostname
	}
	g := guest.New(c.Env, id, c.Cwd)
	if err := makeCwd(g.Cwd); err != nil {
		return nil, 0, err
	}
	h, err := hooks.New(hooks.Config{Procs: s.cfg.Procs, Log: s.cfg.Log, Guest: g}, c.PreStart, c.Periodic)
	if err != nil {
		return nil, 0, refuse(hostapi.CodeInvalidHook, "%v", err)
	}
	took, err := h.PreStart(ctx)
	if err != nil {
		return nil, 0, refuse(hostapi.CodePreStartFailed, "%v", err)
	}
	entry, err := startEntrypoint(s.cfg.Procs, s.cfg.Log, g, c.Entrypoint)
	if err != nil {
		return nil, 0, err
	}
	h.Start(entry.proc.Done())
	limits := metrics.Limits{CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes}
	return &box{token: []byte(c.Token), guest: g, limits: limits, entry: entry, hooks: h}, took.Milliseconds(), nil
}

func checkClaim(c *hostapi.Claim) error {
	if c.ID == "" || c.Token == "" {
		return web.BadBody("the claim needs an id and a token")
	}
	if len(c.Entrypoint) == 0 || c.Entrypoint[0] == "" {
		return refuse(hostapi.CodeEntrypointNotFound, "the entrypoint is empty; give one with the create or use an image that has one")
	}
	for i, arg := range c.Entrypoint {
		if strings.ContainsRune(arg, 0) {
			return refuse(hostapi.CodeEntrypointNotExecutable, "entrypoint[%d] contains a NUL byte, which no program can be given", i)
		}
	}
	if err := guest.CheckEnv(c.Env); err != nil {
		return web.BadBody("env: %v", err)
	}
	if c.Cwd != "" && !filepath.IsAbs(c.Cwd) {
		return refuse(hostapi.CodeCwd, "the working directory %q is not an absolute path", c.Cwd)
	}
	return nil
}

// makeCwd makes the working directory when it is missing, as Docker does.
func makeCwd(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return refuse(hostapi.CodeCwd, "the working directory %q can't be made: %v", dir, err)
	}
	return nil
}

// startEntrypoint runs the image's program.
func startEntrypoint(procs *process.Table, log entryLog, g *guest.Guest, argv []string) (*entrypoint, error) {
	path, _ := g.Getenv("PATH")
	file, err := process.Look(argv[0], path, g.Cwd)
	switch {
	case errors.Is(err, process.ErrNotFound):
		return nil, refuse(hostapi.CodeEntrypointNotFound, "the entrypoint %q can't be started: %v", argv[0], err)
	case err != nil:
		return nil, refuse(hostapi.CodeEntrypointNotExecutable, "the entrypoint %q can't be started: %v", argv[0], err)
	}
	e, err := newEntrypoint(procs, log, process.Spec{
		Path:       file,
		Argv:       argv,
		Env:        g.BaseEnv(),
		Dir:        g.Cwd,
		Credential: command.Credential(g.Identity),
		NewSession: true,
	})
	if err != nil {
		return nil, refuse(hostapi.CodeEntrypointNotExecutable, "the entrypoint %q can't be started: %v", argv[0], process.ExplainExec(file, err))
	}
	return e, nil
}
