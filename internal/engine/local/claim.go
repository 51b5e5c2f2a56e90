package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Create makes the sandbox: image, shell, claim.
func (e *Engine) Create(ctx context.Context, req sandbox.CreateRequest) (*sandbox.Created, error) {
	created, err := e.create(ctx, req)
	if err != nil {
		e.Release(req.ID) // in case the shell was not reached
		return nil, startError(err)
	}
	return created, nil
}

func (e *Engine) create(ctx context.Context, req sandbox.CreateRequest) (*sandbox.Created, error) {
	img, err := e.ensureImage(ctx, req)
	if err != nil {
		return nil, err
	}
	argv, err := entrypoint(req.Spec, &img.Config)
	if err != nil {
		return nil, err
	}
	if err := e.checkFree(); err != nil {
		return nil, err
	}
	if err := e.images.Hold(req.ID, img); err != nil {
		return nil, err
	}
	s, err := e.takeShell(ctx, req)
	if err != nil {
		e.images.Unhold(req.ID)
		return nil, err
	}
	s.token, s.ownEnv = req.Token, ownTrustEnv(req.Spec)
	volumes, err := e.claim(ctx, s, req, img, argv)
	if err != nil {
		e.removeVolumes(volumes)
		keepLogs := req.Spec.PreStartTimeout() > 0 // a hook may have printed why
		if derr := e.dismantle(context.WithoutCancel(ctx), s, keepLogs); derr != nil {
			e.log.Error("taking a failed sandbox apart", "sandbox", s.id, "error", derr)
		}
		e.images.Unhold(req.ID)
		return nil, err
	}
	s.closeNamespaces()
	e.mu.Lock()
	e.live[s.id] = s
	e.mu.Unlock()
	e.watch(s)
	return &sandbox.Created{Entrypoint: argv, CreatedVolumes: volumes}, nil
}

func (e *Engine) ensureImage(ctx context.Context, req sandbox.CreateRequest) (*image.Image, error) {
	spec := req.Spec
	if img, err := e.images.Lookup(ctx, spec.Image, spec.Platform); err == nil && img != nil {
		return img, nil
	}
	began := time.Now()
	img, err := e.images.Ensure(ctx, spec.Image, spec.Platform, spec.Auth, func(p image.Progress) {
		if req.Progress != nil {
			req.Progress(p.String())
		}
	})
	if err == nil {
		note(req, sandbox.EventPulled, "The image %q was pulled in %s.", spec.Image, time.Since(began).Round(time.Millisecond))
	}
	return img, err
}

// entrypoint is what runs: the request's, else the image's ENTRYPOINT and CMD.
func entrypoint(spec *sandbox.Spec, cfg *image.Config) ([]string, error) {
	if len(spec.Entrypoint) > 0 {
		return spec.Entrypoint, nil
	}
	argv := imageCommand(cfg)
	if len(argv) == 0 {
		err := sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidEntrypoint,
			"Image %q has neither ENTRYPOINT nor CMD. Give `entrypoint` in the request.", spec.Image)
		err.Reason = sandbox.ReasonEntrypointFailed
		return nil, err
	}
	return argv, nil
}

func imageCommand(cfg *image.Config) []string { return slices.Concat(cfg.Entrypoint, cfg.Cmd) }

// takeShell returns the reserved shell if it still lives, else a new one.
func (e *Engine) takeShell(ctx context.Context, req sandbox.CreateRequest) (*shell, error) {
	id := req.ID
	if req.Spec.Isolation == sandbox.IsolationGVisor {
		return e.makeGVisor(ctx, id)
	}
	if err := e.takeGPUs(id, req.Spec); err != nil {
		return nil, err
	}
	s := e.pool.take(id)
	if s == nil {
		return e.makeShell(ctx, id)
	}
	if unix.PidfdSendSignal(s.pidfd, 0, nil, 0) == nil {
		return s, nil
	}
	e.log.Warn("a pooled shell had died", "sandbox", id)
	if err := e.dismantle(ctx, s, true); err != nil {
		return nil, err
	}
	return e.makeShell(ctx, id)
}

// claim turns the shell into the sandbox. It returns the named volumes that it
// made, also when it fails.
func (e *Engine) claim(ctx context.Context, s *shell, req sandbox.CreateRequest, img *image.Image, argv []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.StartTimeout+req.Spec.PreStartTimeout())
	defer cancel()
	steps := newStopwatch()
	st := &state{ID: s.id, Index: s.index, Phase: phaseClaiming, PID: s.pid, PIDStart: s.start, Image: img.Digest, GPUs: s.gpuNames(), Isolation: s.kind}
	if e.trusts(req.Spec) {
		st.Trust = trustMounted
	}
	if err := e.in.saveState(st); err != nil {
		return nil, err
	}
	steps.done("record")
	opened, made, err := e.openVolumes(s.id, req.Spec.Volumes)
	defer closeVolumes(opened)
	if err != nil {
		return made, err
	}
	gpuFiles, err := e.openGPUs(s)
	defer closeVolumes(gpuFiles)
	if err != nil {
		return made, err
	}
	trust, trustEnv, err := e.openTrust(req.Spec, img)
	defer closeVolumes(trust)
	if err != nil {
		return made, err
	}
	limits := e.limits(req.Spec)
	root := &rootfs.Root{
		Layers: img.LayerDirs, Dir: e.in.data(s.id), Base: s.base,
		UserNS: s.userns, MountNS: s.mntns,
		// The request's own mounts come last and win.
		Volumes: slices.Concat(trust, gpuFiles, opened), Links: s.gpuLinks(),
		// It is charged to the sandbox, whose limit is what bounds it. Without
		// one it stays as small as the shell's.
		SharedMemoryBytes: limits.MemoryBytes,
	}
	if size := req.Spec.Limits.EphemeralBytes; size > 0 {
		fd, loop, err := e.makeDisk(ctx, s, size)
		if err != nil {
			return made, err
		}
		defer unix.Close(fd)
		root.DirFD, s.loop, st.Loop = fd, &loop, &loop
		steps.done("disk")
	}
	if err := e.enterRoot(ctx, s, st, root, limits, steps); err != nil {
		return made, err
	}
	env := environment(s.id, req.Spec, &img.Config)
	s.addGPUEnv(env, req.Spec.Env)
	addTrust(env, trustEnv, req.Spec.Env)
	claim := &hostapi.Claim{
		ID: s.id, Token: req.Token, Entrypoint: argv,
		Env: env,
		Cwd: img.Config.WorkingDir, User: img.Config.User,
		CPUMillis: limits.CPUMillis, MemoryBytes: limits.MemoryBytes,
	}
	if s.behindGVisor() {
		claim.PIDs = limits.PIDs
	}
	addHooks(claim, req.Spec.Lifecycle)
	if p := req.Spec.NetworkPolicy; p != nil {
		if err := e.applyPolicy(ctx, s, p, e.enforcer.Begin); err != nil {
			return made, fmt.Errorf("applying the network policy: %w", err)
		}
		steps.done("policy")
	}
	if err := handOver(ctx, s, req, claim); err != nil {
		return made, err
	}
	steps.done("entrypoint")
	st.Phase = phaseClaimed
	err = e.in.saveState(st)
	steps.done("settle")
	e.log.Debug("claimed a shell", steps.attrs("sandbox", s.id)...)
	return made, err
}

// enterRoot makes the image the shell's root and sets the limits.
func (e *Engine) enterRoot(ctx context.Context, s *shell, st *state, root *rootfs.Root, limits cgroup.Limits, steps *stopwatch) error {
	if s.behindGVisor() {
		limits.PIDs = outerPIDs(limits.PIDs)
	}
	setLimits := func() error {
		if err := s.group.SetLimits(limits); err != nil {
			return fmt.Errorf("setting limits: %w", err)
		}
		steps.done("limits")
		return nil
	}
	if !s.behindGVisor() {
		if err := e.threads.Switch(ctx, root); err != nil {
			return rootError(err)
		}
		steps.done("root")
		return setLimits()
	}
	if err := setLimits(); err != nil {
		return err
	}
	if err := e.startGVisor(ctx, s, root); err != nil {
		return err
	}
	steps.done("gvisor")
	st.PID, st.PIDStart = s.pid, s.start
	return e.in.saveState(st)
}

// limits are the spec's, with the defaults where it has none.
func (e *Engine) limits(spec *sandbox.Spec) cgroup.Limits {
	pick := func(asked, fallback int64) int64 {
		if asked > 0 {
			return asked
		}
		return fallback
	}
	return cgroup.Limits{
		CPUMillis:   pick(spec.Limits.CPUMillis, e.opts.Defaults.CPUMillis),
		MemoryBytes: pick(spec.Limits.MemoryBytes, e.opts.Defaults.MemoryBytes),
		PIDs:        pick(spec.Limits.PIDs, e.opts.Defaults.PIDs),
	}
}

// environment is the image's, paddock's own, and the request's, later ones
// winning.
func environment(id string, spec *sandbox.Spec, cfg *image.Config) map[string]string {
	env := map[string]string{}
	for _, kv := range cfg.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	env["OPENSANDBOX_ID"] = id
	maps.Copy(env, spec.Env)
	return env
}

// rootError explains a failed root switch.
func rootError(err error) error {
	switch {
	case errors.Is(err, rootfs.ErrMountPoint):
		return &sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeInvalidMountPath,
			Message: "A mount path is not usable in this image: " + err.Error() + ". Choose a path that is a directory, or does not exist.", Err: err}
	case errors.Is(err, rootfs.ErrIDMap):
		return &sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeUnsupportedBackend,
			Message: "The filesystem of the data directory or of a volume cannot be mapped to a sandbox's user ids: " + err.Error() + ". Use ext4, XFS or btrfs.", Err: err}
	}
	return fmt.Errorf("switching to the image: %w", err)
}

// startError gives the error of a create the form that the sandbox's status
// shows.
func startError(err error) error {
	var known *sandbox.Error
	if errors.As(err, &known) {
		if known.Reason == "" {
			known.Reason = sandbox.ReasonStartFailed
		}
		return known
	}
	var refused *claimError
	if errors.As(err, &refused) && refused.answer.Code == hostapi.CodePreStartFailed {
		return preStartError(refused)
	}
	if refused != nil {
		return &sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeInvalidEntrypoint,
			Reason: sandbox.ReasonEntrypointFailed, Message: "The entrypoint could not be started: " + refused.answer.Message, Err: err}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &sandbox.Error{Kind: sandbox.KindUnavailable, Code: sandbox.CodeStartFailed, Reason: sandbox.ReasonStartFailed,
			Message: "The server has no disk space left for a new sandbox. Its operator must free some.", Err: err}
	}
	return &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeStartFailed, Reason: sandbox.ReasonStartFailed,
		Message: "The sandbox could not be started: " + err.Error(), Err: err}
}

// checkFree refuses to make a sandbox when the disk is nearly full: a full disk
// breaks all of them.
func (e *Engine) checkFree() error {
	if e.opts.MinFreeBytes <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(e.opts.DataDir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < e.opts.MinFreeBytes {
		return sandbox.Errorf(sandbox.KindUnavailable, sandbox.CodeStartFailed,
			"The data directory has %d MiB free, less than storage.min_free (%d MiB). The server's operator must free some space.",
			free>>20, e.opts.MinFreeBytes>>20)
	}
	return nil
}
