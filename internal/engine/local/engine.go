package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/egress/enforce"
	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/execdbin"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gpu"
	"github.com/paddock-sandbox/paddock/internal/engine/local/network"
	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/engine/local/seccomp"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// exitBuffer is how many ends of entrypoints may wait for the Manager.
const exitBuffer = 1024

// leaveTimeout bounds the removal of what sandboxes shared.
const leaveTimeout = 10 * time.Second

// Engine is the local engine. It implements sandbox.Engine, sandbox.Volumes and
// sandbox.PolicyEnforcer.
type Engine struct {
	opts    Options
	log     *slog.Logger
	in      *instance
	images  *image.Store
	cgroups *cgroup.Parent
	// gpuCgroups is the parent of sandboxes with GPUs.
	gpuCgroups *cgroup.Parent
	gpus       *gpu.Allocator
	network    *network.Network
	dns        *egress.Resolver
	enforcer   *enforce.Enforcer
	looks      looks // for the processes behind denials
	proxy      *proxy.Proxy
	runtime    *oci.Runtime
	threads    *rootfs.Threads
	indexes    *indexes
	pool       *pool
	trash      *trash

	maxFiles uint64

	mu   sync.RWMutex
	live map[string]*shell // claimed, by id

	exits   chan sandbox.Exit
	denials chan sandbox.Denial
	hooks   chan sandbox.HookRun
	// ctx ends with Close; wg counts every goroutine of the engine.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var (
	_ sandbox.Engine       = (*Engine)(nil)
	_ sandbox.Volumes      = (*Engine)(nil)
	_ sandbox.VolumeMaker  = (*Engine)(nil)
	_ sandbox.HookReporter = (*Engine)(nil)

	_ sandbox.PolicyEnforcer = (*Engine)(nil)
)

// New opens the engine. The Manager calls Recover before anything else; until
// then no shell is made. ctx bounds the opening only.
func New(ctx context.Context, o Options) (*Engine, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	in, err := openInstance(&o)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opts: o, log: o.Logger.With("engine", "local"), in: in, images: o.Images,
		live: map[string]*shell{}, exits: make(chan sandbox.Exit, exitBuffer),
		hooks: make(chan sandbox.HookRun), denials: make(chan sandbox.Denial, denialBuffer),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.open(ctx); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context) error {
	var err error
	if err = e.installExecd(); err != nil {
		return err
	}
	if e.maxFiles, err = maxOpenFiles(); err != nil {
		return err
	}
	if err := e.takeBackNull(); err != nil {
		return err
	}
	filter, err := seccomp.Compile()
	if err != nil {
		return fmt.Errorf("compiling the seccomp profile: %w", err)
	}
	if e.runtime, err = oci.New(oci.Kind(e.opts.OCIRuntime), e.opts.OCIPath, filepath.Join(e.in.runDir, "runtime"), filter); err != nil {
		return err
	}
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if e.cgroups, err = host.Parent(e.in.cgroupName()); err != nil {
		return err
	}
	if e.gpuCgroups, err = host.GrantingParent(e.in.cgroupName() + "-gpu"); err != nil {
		return err
	}
	e.gpus = gpu.NewAllocator(e.opts.CDIDirs, e.opts.GPUKind)
	if e.threads, err = rootfs.NewThreads(max(2, runtime.NumCPU()), filepath.Join(e.rootDir(), rootfs.NewRoot), e.opts.OverlayByPath); err != nil {
		return err
	}
	if err := e.openNetwork(ctx); err != nil {
		return err
	}
	if err := e.startDNS(); err != nil {
		return err
	}
	e.startProxy()
	e.trash = newTrash(e)
	e.indexes = newIndexes(e.forgetFlows)
	e.wg.Go(e.reclaimIndexes)
	e.pool = newPool(e, e.opts.PoolSize)
	return nil
}

// Name implements the logs' key "engine".
func (e *Engine) Name() string { return "local" }

// rootDir is the root of every unclaimed shell.
func (e *Engine) rootDir() string { return filepath.Join(e.in.runDir, "root") }

// installExecd writes the embedded execd where shells find it. One inode serves
// all of them, so its code is in memory once. The directories above it are
// searchable, not readable: the OCI runtime opens the root as the shell's user.
func (e *Engine) installExecd() error {
	if err := installRoot(e.rootDir()); err != nil {
		return err
	}
	for _, d := range []string{e.opts.RunDir, e.in.runDir} {
		if err := os.Chmod(d, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// installRoot makes the root of shells: execd and empty directories.
func installRoot(root string) error {
	bin, err := execdbin.Binary()
	if err != nil {
		return err
	}
	for _, d := range []string{root, filepath.Join(root, "proc"), filepath.Join(root, "sys"), filepath.Join(root, "dev"), root + rootfs.NewRoot} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// Running sandboxes of an earlier version keep the file that they run.
	path := filepath.Join(root, "execd")
	if err := writeFile(path, bin); err != nil {
		return err
	}
	return os.Chmod(path, 0o555)
}

// maxOpenFiles is the server's own hard limit: a higher one cannot be given
// inside a user namespace.
func maxOpenFiles() (uint64, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, err
	}
	return min(r.Max, 1<<20), nil
}

// Reserve takes a ready shell's id, else a fresh one.
func (e *Engine) Reserve(_ context.Context, spec *sandbox.Spec) (string, error) {
	if pooled(spec) {
		if id, ok := e.pool.reserve(); ok {
			return id, nil
		}
	}
	if e.indexes.left() == 0 {
		return "", sandbox.Errorf(sandbox.KindBusy, sandbox.CodeCapacity,
			"Every one of the %d sandbox addresses is in use. Delete sandboxes, or try again later.", maxIndex)
	}
	id := uuid.NewString()
	if err := e.takeGPUs(id, spec); err != nil {
		return "", err
	}
	return id, nil
}

// pooled reports whether a shell from the pool can become this sandbox.
func pooled(spec *sandbox.Spec) bool {
	return spec.Limits.GPUs == "" && spec.Isolation != sandbox.IsolationGVisor
}

// Release gives a reserved id back. Its shell is taken apart, though nobody used
// it: a record with that id may exist by now, and no id is given twice.
func (e *Engine) Release(id string) {
	e.gpus.Give(id)
	s := e.pool.take(id)
	if s == nil {
		return
	}
	if err := e.dismantle(context.Background(), s, false); err != nil {
		e.log.Error("taking a released shell apart", "sandbox", id, "error", err)
	}
}

// Exits delivers the ends of entrypoints.
func (e *Engine) Exits() <-chan sandbox.Exit { return e.exits }

// find returns a claimed sandbox.
func (e *Engine) find(id string) (*shell, error) {
	e.mu.RLock()
	s := e.live[id]
	e.mu.RUnlock()
	if s == nil {
		return nil, sandbox.ErrNotFound(id)
	}
	return s, nil
}

// Close stops the pool, the resolver and the watchers. Sandboxes run on; the
// shells of the pool do not, since nobody would ever find them.
func (e *Engine) Close() error {
	e.cancel()
	var errs []error
	if e.pool != nil {
		e.pool.close()
	}
	if e.dns != nil {
		errs = append(errs, e.dns.Close())
	}
	if e.proxy != nil {
		errs = append(errs, e.proxy.Close())
	}
	e.mu.Lock()
	for _, s := range e.live {
		s.closeAll()
	}
	e.mu.Unlock()
	e.wg.Wait()
	if e.trash != nil {
		e.trash.close()
	}
	if e.threads != nil {
		e.threads.Close()
	}
	if e.runtime != nil {
		errs = append(errs, e.runtime.Close())
	}
	errs = append(errs, e.leave())
	if e.network != nil {
		errs = append(errs, e.network.Close())
	}
	for _, p := range []*cgroup.Parent{e.cgroups, e.gpuCgroups} {
		if p != nil {
			p.Close()
		}
	}
	e.in.close()
	return errors.Join(errs...)
}

// leave removes what sandboxes share, when there are none: packet rules, the
// gateway's address, cgroups, and the run directory. The next start makes them
// again.
func (e *Engine) leave() error {
	left, err := os.ReadDir(e.in.shellsDir())
	if err != nil || len(left) > 0 || e.network == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	errs := []error{e.network.Teardown(ctx), e.cgroups.Remove()}
	if e.gpuCgroups != nil {
		errs = append(errs, e.gpuCgroups.Remove())
	}
	return errors.Join(append(errs, os.RemoveAll(e.in.runDir))...)
}
