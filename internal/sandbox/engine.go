package sandbox

import (
	"context"
	"io"
	"net"
	"time"
)

// ExecdPort is the port of the OpenSandbox execd API in every sandbox.
const ExecdPort = 44772

// IsolatedPort is higher than ports can be: Engine.Dial reaches by it what
// answers the routes of isolated runs (OpenSandbox execd API), which clients send to
// ExecdPort, on the host.
const IsolatedPort = 1<<16 + ExecdPort

// PrivatePath is where the routes between an engine and execd live, on ExecdPort.
// Nobody else is let through to them.
const PrivatePath = "/paddock/v1"

// Engine makes sandboxes real on some substrate. The Manager calls it for one
// sandbox at a time: calls for the same id never overlap, except Dial, Logs and
// Usage, which may run at any moment and fail with a KindNotFound or
// KindConflict error when there is nothing to reach. Calls for different ids
// run in parallel.
//
// Errors meant for the caller are *Error; any other error is internal.
type Engine interface {
	// Check reports, before anything is recorded, whether this engine can
	// honour the spec: limits, platform, volumes. It has no side effect and
	// answers KindInvalid errors that name the field.
	Check(ctx context.Context, spec *Spec) error

	// Resolve makes sure that the image exists and may be read: locally, else
	// by its manifest in the registry, bounded by the engine's resolve
	// time-out. It downloads no layer.
	Resolve(ctx context.Context, spec *Spec) (*ResolvedImage, error)

	// Reserve returns the id for a new sandbox and puts aside what it will
	// need: a ready shell's id, or a fresh one. It never blocks on making
	// anything. Each id must be given to Create or Release. It answers
	// KindBusy when the engine is full.
	Reserve(ctx context.Context, spec *Spec) (id string, err error)

	// Release gives back a reserved id that will not be created.
	Release(id string)

	// Create makes the sandbox and starts its entrypoint. It pulls the image
	// if it must, and reports that through progress (called from one
	// goroutine, at most a few times per second). When it fails nothing of
	// the sandbox is left on the host but its logs.
	//
	// After a restart the id may also be that of a recorded Pending sandbox
	// that Recover did not find running; Stop was called for it just before.
	Create(ctx context.Context, req CreateRequest) (*Created, error)

	// Pause freezes every process of a running sandbox after a sync of its
	// filesystem. Idempotent.
	Pause(ctx context.Context, id string) error

	// Resume thaws a paused sandbox. Idempotent.
	Resume(ctx context.Context, id string) error

	// Stop ends every process of the sandbox and frees all that it holds on
	// the host except its logs. Idempotent; works in every state, for an
	// unknown id too. When it returns nil no process of the sandbox is left.
	Stop(ctx context.Context, id string) error

	// Remove does what Stop does and removes the logs as well. Idempotent.
	Remove(ctx context.Context, id string) error

	// Dial connects to a TCP port inside a running sandbox. ExecdPort reaches
	// execd, IsolatedPort what answers the routes of isolated runs.
	Dial(ctx context.Context, id string, port int) (net.Conn, error)

	// Logs returns what the entrypoint printed, oldest first. It works until
	// Remove.
	Logs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error)

	// Usage measures a running sandbox from outside it.
	Usage(ctx context.Context, id string) (*Usage, error)

	// Recover is called once, before any other call, with every recorded
	// sandbox. It adopts those that live, and removes every trace on the host
	// of sandboxes that are not among them. The answer holds one entry per
	// given sandbox. It leaves the traces of found but unadopted ones to
	// Stop.
	Recover(ctx context.Context, recorded []*Sandbox) (map[string]Found, error)

	// Exits delivers, once each, the ends of entrypoints. The channel is
	// never closed before Close.
	Exits() <-chan Exit

	// Close stops the engine's own work. Sandboxes run on.
	Close() error
}

// ResolvedImage is an image that is known to exist.
type ResolvedImage struct {
	// Digest is the manifest's.
	Digest string
	// Local is whether it can be used without a pull.
	Local bool
	// Entrypoint is the image's ENTRYPOINT followed by its CMD; valid only
	// when Local.
	Entrypoint []string
}

// CreateRequest is what Engine.Create needs.
type CreateRequest struct {
	ID    string
	Spec  *Spec
	Token string
	// Progress may be nil. Each call gives a sentence for the sandbox's
	// status message.
	Progress func(message string)
	// Note may be nil. It adds to the sandbox's events: what was done on the
	// way and is worth knowing later, a few times per create at most.
	Note func(kind EventKind, message string)
}

// Created is what Engine.Create learned.
type Created struct {
	// Entrypoint is the effective argv.
	Entrypoint []string
	// CreatedVolumes are named volumes that did not exist before.
	CreatedVolumes []string
}

// LogOptions choose a part of a sandbox's log.
type LogOptions struct {
	// Tail is the number of last lines; 0 means all that is kept.
	Tail int
	// Since drops what is older; zero means from the beginning.
	Since time.Time
	// Timestamps prefixes each line with its RFC 3339 time.
	Timestamps bool
	// Follow keeps the stream open until the entrypoint has ended.
	Follow bool
}

// Usage is what a sandbox uses now.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
	PIDs        int64
}

// Found is what Recover saw of one recorded sandbox.
type Found int

const (
	// FoundNothing: no process of it is on the host.
	FoundNothing Found = iota
	// FoundRunning: adopted, its entrypoint runs.
	FoundRunning
	// FoundPaused: adopted, frozen.
	FoundPaused
	// FoundUnclaimed: its shell exists but its entrypoint was never started.
	FoundUnclaimed
)

// Exit is the end of a sandbox's entrypoint, or of the sandbox as a whole.
type Exit struct {
	ID string
	// Code is the exit code; -1 when a signal ended it or it is unknown.
	Code int
	// Signal is the signal's number, 0 for none.
	Signal int
	// OutOfMemory is set when the kernel killed it for memory.
	OutOfMemory bool
	// ExecdLost is set when PID 1 of the sandbox died before the entrypoint's
	// end could be learned.
	ExecdLost bool
}

// Volumes are the named volumes that an engine keeps. Implemented by engines
// that have them.
type Volumes interface {
	ListVolumes(ctx context.Context) ([]VolumeInfo, error)
	// RemoveVolume removes a volume and its content. The Manager has checked
	// that no sandbox uses it.
	RemoveVolume(ctx context.Context, name string) error
}

// VolumeInfo describes one named volume.
type VolumeInfo struct {
	Name      string
	CreatedAt time.Time
	// SizeBytes is what it occupies on disk.
	SizeBytes int64
}
