package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// namespace is containerd's, of which this store needs only one.
	namespace = "paddock"
	// snapshotter is the name under which the database knows the overlay
	// snapshotter. It is part of labels and must not change.
	snapshotter = "overlayfs"
	// lockTimeout bounds waiting for another process to close the store.
	lockTimeout = 2 * time.Second
)

// Store is an image store. All methods may be called from any goroutine.
type Store struct {
	opts Options
	log  *slog.Logger

	bolt      *bolt.DB
	db        *metadata.DB
	content   content.Store
	snapshots snapshots.Snapshotter
	images    images.Store
	leases    leases.Manager
	overlay   snapshots.Snapshotter

	refs      refCache
	index     *index
	flights   flights
	pulls     chan struct{} // holds one token for each pull under way
	blobLock  keyedLock     // one writer per blob
	chainLock keyedLock     // one unpack per layer chain
	active    sync.Map      // IDs of leases in use, see lease
	// recordMu serialises changes of records, so that the database follows
	// the index in the same order.
	recordMu  sync.Mutex
	collectMu sync.Mutex
	restored  atomic.Bool

	transport http.RoundTripper

	// ctx ends when the store is closed. closing is read-locked by every
	// operation that uses the database outside of a flight.
	ctx     context.Context
	cancel  context.CancelFunc
	closing sync.RWMutex
	work    sync.WaitGroup
	wake    chan struct{}
}

// Open opens the store in opts.Root, or makes it, and cleans up after a
// process that died in the middle of something. It needs root.
func Open(ctx context.Context, opts Options) (*Store, error) {
	silenceLibraries()
	opts = opts.withDefaults()
	root, err := filepath.Abs(opts.Root)
	if err != nil || opts.Root == "" {
		return nil, fmt.Errorf("opening image store: root %q is not a path", opts.Root)
	}
	opts.Root = root
	platform, err := normalPlatform(*opts.DefaultPlatform)
	if err != nil {
		return nil, fmt.Errorf("opening image store: default platform: %w", err)
	}
	opts.DefaultPlatform = &platform
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("opening image store %s: unpacking layers needs root", root)
	}
	if err := privateDir(root); err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}

	s := &Store{
		opts:      opts,
		log:       opts.Logger,
		index:     newIndex(),
		transport: newTransport(),
		wake:      make(chan struct{}, 1),
		pulls:     make(chan struct{}, maxPulls),
	}
	s.ctx, s.cancel = context.WithCancel(scope(context.Background()))
	if err := s.open(scope(ctx)); err != nil {
		s.cancel()
		s.closeFiles()
		return nil, fmt.Errorf("opening image store %s: %w", root, err)
	}
	s.work.Add(1)
	go s.collector()
	return s, nil
}

// privateDir makes dir, or tightens it. Images hold set-user-id programs, and
// only this mode keeps other users of the machine from running them.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

func (s *Store) open(ctx context.Context) error {
	var err error
	s.bolt, err = bolt.Open(filepath.Join(s.opts.Root, "meta.db"), 0o600, &bolt.Options{Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return errors.New("another process has it open")
	} else if err != nil {
		return err
	}
	blobs, err := local.NewStore(filepath.Join(s.opts.Root, "content"))
	if err != nil {
		return err
	}
	layers, err := openLayers(filepath.Join(s.opts.Root, "layers"), s.log)
	if err != nil {
		return err
	}
	s.overlay = layers
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: s.overlay})
	if err := s.db.Init(ctx); err != nil {
		return err
	}
	s.content = s.db.ContentStore()
	s.snapshots = s.db.Snapshotter(snapshotter)
	s.images = metadata.NewImageStore(s.db)
	s.leases = metadata.NewLeaseManager(s.db)
	if err := s.cleanUp(ctx); err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	return s.load(ctx)
}

// scope makes ctx fit for containerd's libraries: the namespace, and a silent
// logger, because they log requests and we report what matters ourselves.
func scope(ctx context.Context) context.Context {
	return namespaces.WithNamespace(log.WithLogger(ctx, silent), namespace)
}

var silent = func() *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}()

// silenceLibraries covers the places where containerd logs without a context.
var silenceLibraries = sync.OnceFunc(func() { log.L = silent })

// begin starts an operation that needs the database: it ends when ctx or the
// store does, and Close waits for end.
func (s *Store) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	s.closing.RLock()
	if s.ctx.Err() != nil {
		s.closing.RUnlock()
		return nil, nil, errClosed
	}
	ctx, cancel := context.WithCancel(scope(ctx))
	unlink := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		unlink()
		cancel()
		s.closing.RUnlock()
	}, nil
}

var errClosed = errors.New("the image store is closed")

// Close cancels what is under way, waits for it and closes the store. What a
// cancelled pull has downloaded is kept for the next attempt.
func (s *Store) Close() error {
	s.cancel()
	s.closing.Lock()
	defer s.closing.Unlock()
	s.flights.wait()
	s.work.Wait()
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	var errs []error
	if s.overlay != nil {
		errs = append(errs, s.overlay.Close())
	}
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	return errors.Join(errs...)
}

// Lookup returns the image that ref means for the platform, nil for the
// store's default, if it is unpacked here. It touches memory only, apart from
// the first time in which a reference is seen. A KindNotFound error with
// CodeImageNotFound means that it is not here; it may be in a registry.
func (s *Store) Lookup(_ context.Context, ref string, p *sandbox.Platform) (*Image, error) {
	r, err := s.refs.parse(ref)
	if err != nil {
		return nil, err
	}
	platform, err := s.platform(p)
	if err != nil {
		return nil, err
	}
	if img := s.index.lookup(r, platform); img != nil {
		return img, nil
	}
	return nil, notLocal(r, platform)
}

func notLocal(r ref, p sandbox.Platform) error {
	return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
		"Image %q for %s is not in the image store.", r.name, formatPlatform(p))
}

// List returns every image with a name, one entry for each name and platform,
// sorted by name.
func (s *Store) List(context.Context) ([]*Image, error) { return s.index.list(), nil }
