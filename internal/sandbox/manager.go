package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults and fixed bounds of a Manager.
const (
	defaultFailedRetention = 10 * time.Minute
	defaultCreateTimeout   = time.Minute
	defaultMaxPending      = 1024
	defaultAccessInterval  = time.Minute // OpenSandbox renew on access: min_interval_seconds

	// pullTimeout is added to CreateTimeout when the image must be pulled.
	pullTimeout = 29 * time.Minute
	// engineTimeout bounds one pause, resume, stop or remove.
	engineTimeout = 30 * time.Second
	// storeTimeout bounds one write of a record.
	storeTimeout = 10 * time.Second
	// keyLifetime is how long an idempotency key answers with its sandbox.
	keyLifetime = 24 * time.Hour
	// closeGrace is how long Close waits for calls that it broke off.
	closeGrace = 5 * time.Second
	// maxRecords bounds all records, those of ended sandboxes included, so
	// that sandboxes without expiry which nobody deletes can't fill the disk.
	maxRecords = 100_000
	// maxHeld bounds how many calls may wait for a sandbox at once.
	maxHeld = 8192
	// bootIDPath holds an id that the kernel makes anew at each boot
	// (Documentation/admin-guide/sysctl/kernel.rst, random).
	bootIDPath = "/proc/sys/kernel/random/boot_id"
)

// Options configure a Manager. Engine and Store are required; the zero value of
// everything else is a good default.
type Options struct {
	Engine Engine
	Store  Store
	// Logger defaults to slog.Default.
	Logger *slog.Logger
	// Now is the wall clock; time.Now when nil.
	Now func() time.Time
	// FailedRetention is how long the record and the logs of a sandbox that
	// could not be made are kept; 10 minutes when 0.
	FailedRetention time.Duration
	// MaxTimeout bounds the lifetime that a create may ask for; 0 for no bound.
	MaxTimeout time.Duration
	// MaxSandboxes bounds the sandboxes that have not ended; 0 for no bound.
	MaxSandboxes int
	// MaxPending bounds the creates in flight; 1024 when 0.
	MaxPending int
	// CreateTimeout bounds the making of one sandbox without its pull; one
	// minute when 0. With a pull it is 29 minutes more.
	CreateTimeout time.Duration
	// AccessInterval is how often at most RenewOnAccess renews one sandbox;
	// one minute when 0.
	AccessInterval time.Duration
	// OnDenial, when set, is told of what network policies refused, and how
	// often: each second, of so many destinations of each sandbox as become
	// events. It is called from one goroutine and must not block.
	OnDenial func(d Denial, count int)
	// Forget, when set, removes what is kept for a sandbox elsewhere, such as
	// its credentials, before its record is. It is called at least once for
	// each, and again when it failed.
	Forget func(id string) error
	// BootID changes with each boot of the host, so that a restart can tell a
	// reboot from a lost sandbox. Read from the kernel when empty.
	BootID string
}

// Manager owns every sandbox: each change of state goes through it, changes of
// one sandbox are serialised, and different sandboxes never wait for each
// other. All methods may be called at the same time from any goroutine.
//
// Its locks, in the order in which they may be taken: an entry's life lock
// (held across engine calls), an entry's mu (held across one store call), then
// the short inner locks of index, admission, volumes and tombstones, which are
// never held across a call to the engine or the store.
type Manager struct {
	engine   Engine
	enforcer PolicyEnforcer // nil when the engine is none
	store    Store
	log      *slog.Logger
	clock    func() time.Time
	opts     Options
	bootID   string
	started  time.Time // for intervals that must not follow the wall clock
	entries  sync.Map  // id → *entry
	index    index
	admit    admission
	volumes  volumeUse
	graves   tombstones
	flights  flights
	creating chan struct{} // bounds Engine.Create calls that need no pull
	reaping  chan struct{} // bounds removals that the sweeper starts
	held     atomic.Int64
	counts   counters

	kick chan struct{} // wakes the sweeper

	// ctx ends when the Manager closes: whatever still waits gives up.
	ctx     context.Context
	cancel  context.CancelFunc
	closing atomic.Bool
	gate    sync.RWMutex // makes closing and wg.Add exclude each other
	wg      sync.WaitGroup
	creates sync.WaitGroup // the subset of wg that Close lets finish
}

type counters struct {
	creates, createFailures, deletes, expired, exits atomic.Int64

	denials [len(denialProtocols) + 1]atomic.Int64 // by place in that list, then others
}

// ManagerStats is a snapshot for metrics. Counters count from the start of the
// process.
type ManagerStats struct {
	ByState        map[State]int
	Creates        int64
	CreateFailures int64
	Deletes        int64
	Expired        int64
	// Exits counts sandboxes whose entrypoint ended by itself.
	Exits int64
	// Denials counts what network policies refused, by protocol.
	Denials map[string]int64
	// Held is how many calls wait for a sandbox now.
	Held int64
}

// CreateOptions are what Create needs.
type CreateOptions struct {
	Spec *Spec
	// IdempotencyKey, when not empty, makes a retry safe: for 24 hours the same
	// key with the same BodyHash answers with the same sandbox.
	IdempotencyKey string
	// BodyHash identifies the content of the request.
	BodyHash string
}

// NewManager loads every record, lets the engine adopt what lives, settles what
// differs, and starts the Manager's own work: what is left to finish of
// interrupted creates and deletes goes on in the background. The context bounds
// the start only.
func NewManager(ctx context.Context, opts Options) (*Manager, error) {
	if opts.Engine == nil || opts.Store == nil {
		return nil, errors.New("sandbox manager: an engine and a store are required")
	}
	opts = withDefaults(opts)
	m := &Manager{
		engine:   opts.Engine,
		store:    opts.Store,
		log:      opts.Logger,
		clock:    opts.Now,
		opts:     opts,
		bootID:   opts.BootID,
		started:  time.Now(),
		creating: make(chan struct{}, 4*runtime.NumCPU()),
		reaping:  make(chan struct{}, 8*runtime.NumCPU()),
		kick:     make(chan struct{}, 1),
	}
	m.enforcer, _ = opts.Engine.(PolicyEnforcer)
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.admit.maxPending, m.admit.maxLive = opts.MaxPending, opts.MaxSandboxes
	m.admit.maxRecords = maxRecords
	m.volumes.init()
	m.graves.init(m.now)
	m.flights.init()
	if err := m.recover(ctx); err != nil {
		m.cancel()
		return nil, err
	}
	m.spawn(m.watchExits)
	if hooks, ok := m.engine.(HookReporter); ok {
		m.spawn(func() { m.watchHooks(hooks.HookRuns()) })
	}
	if m.enforcer != nil {
		m.spawn(func() { m.watchDenials(m.enforcer.Denials()) })
	}
	m.spawn(m.sweepLoop)
	return m, nil
}

func withDefaults(opts Options) Options {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FailedRetention <= 0 {
		opts.FailedRetention = defaultFailedRetention
	}
	if opts.MaxPending <= 0 {
		opts.MaxPending = defaultMaxPending
	}
	if opts.CreateTimeout <= 0 {
		opts.CreateTimeout = defaultCreateTimeout
	}
	if opts.AccessInterval <= 0 {
		opts.AccessInterval = defaultAccessInterval
	}
	if opts.BootID == "" {
		// Without it a reboot is reported as a lost sandbox: less precise,
		// still true.
		if b, err := os.ReadFile(bootIDPath); err == nil {
			opts.BootID = strings.TrimSpace(string(b))
		}
	}
	return opts
}

// now is the wall clock without a monotonic reading: expiry follows the wall
// clock, across restarts and when it is set.
func (m *Manager) now() time.Time { return m.clock().Round(0).UTC() }

// spawn runs f as a goroutine that Close waits for; f must return when m.ctx
// ends. It answers false, and does not run f, when the Manager is closing.
func (m *Manager) spawn(f func()) bool {
	m.gate.RLock()
	defer m.gate.RUnlock()
	if m.closing.Load() {
		return false
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		f()
	}()
	return true
}

// Stats counts sandboxes by state and what happened since the start.
func (m *Manager) Stats() ManagerStats {
	st := ManagerStats{
		ByState:        make(map[State]int),
		Creates:        m.counts.creates.Load(),
		CreateFailures: m.counts.createFailures.Load(),
		Deletes:        m.counts.deletes.Load(),
		Expired:        m.counts.expired.Load(),
		Exits:          m.counts.exits.Load(),
		Denials:        m.counts.denied(),
		Held:           m.held.Load(),
	}
	for _, e := range m.index.all() {
		st.ByState[e.load().Status.State]++
	}
	return st
}

// Close refuses new creates and lets those in flight finish until the context
// ends; what is not finished then is left for the next start, which is no
// error. Then it stops the Manager's own goroutines, within a few seconds.
// Sandboxes run on; the engine and the store stay open, they are the caller's.
func (m *Manager) Close(ctx context.Context) error {
	m.gate.Lock()
	m.closing.Store(true)
	m.gate.Unlock()
	if err := waitGroup(ctx, &m.creates); err != nil {
		m.log.Warn("creates were still going on at the shutdown; the next start finishes them")
	}
	m.cancel()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
	defer cancel()
	if err := waitGroup(grace, &m.wg); err != nil {
		return fmt.Errorf("closing the sandbox manager: an engine or store call does not end: %w", err)
	}
	return nil
}

func waitGroup(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// storeContext is for one write of a record. It does not end with the caller's
// request: a client that goes away must not leave a change half done.
func (m *Manager) storeContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), storeTimeout)
}

// engineContext bounds one engine call that must not end with the caller's
// request.
func (m *Manager) engineContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(m.ctx, engineTimeout)
}

func errClosing() *Error {
	return &Error{Kind: KindUnavailable, Code: CodeInternal, RetryAfter: 2 * time.Second,
		Message: "The server is shutting down. Try again when it is back."}
}

// errRecord reports that a record could not be read or written.
func errRecord(err error) *Error {
	return &Error{Kind: KindUnavailable, Code: CodeInternal, RetryAfter: 2 * time.Second, Err: err,
		Message: "The sandbox's record could not be read or written, so nothing was changed. Look in the server's log (is its disk full?) and try again."}
}
