package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Resolve makes sure that an image exists and may be read: here, else in its
// registry, within ResolveTimeout. It downloads no layer. Errors are as for
// Pull.
func (s *Store) Resolve(ctx context.Context, reference string, p *sandbox.Platform, auth *sandbox.RegistryAuth) (*Resolved, error) {
	r, platform, err := s.wanted(reference, p)
	if err != nil {
		return nil, err
	}
	if img := s.index.lookup(r, platform); img != nil {
		return &Resolved{Digest: img.Digest, Local: true, Image: img}, nil
	}
	rem, err := s.remote(r, auth)
	if err != nil {
		return nil, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, lease, err := s.lease(ctx, pullLease(r, platform, auth))
	if err != nil {
		return nil, failure(r, false, err)
	}
	// The documents stay leased for the pull that is likely to come.
	defer s.active.Delete(lease.ID)
	f, _, err := s.look(ctx, rem, platform)
	if err != nil {
		s.endLease(lease)
		return nil, failure(r, rem.creds.any(), err)
	}
	return &Resolved{Digest: f.target.Digest.String()}, nil
}

// Ensure returns the image if it is here, else it pulls and unpacks it. All
// who wait for the same image with the same login share one pull, which is
// cancelled when the last of them leaves. progress, which may be nil, is called
// from the calling goroutine at most about five times a second.
//
// Errors for the caller are *sandbox.Error: KindNotFound when there is no such
// image, KindInvalid for a wrong reference, platform or login, KindBusy at a
// registry's rate limit, KindUnavailable when the registry cannot be reached,
// KindInternal when the image is damaged or the disk is full.
func (s *Store) Ensure(ctx context.Context, reference string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(Progress)) (*Image, error) {
	r, platform, err := s.wanted(reference, p)
	if err != nil {
		return nil, err
	}
	if img := s.index.lookup(r, platform); img != nil {
		return img, nil
	}
	return s.shared(ctx, r, platform, auth, progress)
}

// Pull is Ensure that always asks the registry, so that a tag which has moved
// means the new image afterwards. Layers that are here are not loaded again.
func (s *Store) Pull(ctx context.Context, reference string, p *sandbox.Platform, auth *sandbox.RegistryAuth, progress func(Progress)) (*Image, error) {
	r, platform, err := s.wanted(reference, p)
	if err != nil {
		return nil, err
	}
	return s.shared(ctx, r, platform, auth, progress)
}

func (s *Store) wanted(reference string, p *sandbox.Platform) (ref, sandbox.Platform, error) {
	r, err := s.refs.parse(reference)
	if err != nil {
		return ref{}, sandbox.Platform{}, err
	}
	platform, err := s.platform(p)
	return r, platform, err
}

func (s *Store) shared(ctx context.Context, r ref, p sandbox.Platform, auth *sandbox.RegistryAuth, progress func(Progress)) (*Image, error) {
	rem, err := s.remote(r, auth)
	if err != nil {
		return nil, err
	}
	id := strings.Join([]string{r.name, formatPlatform(p), loginID(auth)}, " ")
	return s.flights.join(ctx, s.ctx, id, func(ctx context.Context, m *meter) (*Image, error) {
		img, err := s.pull(ctx, rem, p, pullLease(r, p, auth), m)
		if err != nil {
			return nil, failure(r, rem.creds.any(), err)
		}
		return img, nil
	}, progress)
}

// loginID tells logins apart: a pull that fails because of one caller's
// password must not fail for another.
func loginID(auth *sandbox.RegistryAuth) string {
	if auth == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(auth.Username + "\x00" + auth.Password))
	return hex.EncodeToString(sum[:])
}

func (s *Store) pull(ctx context.Context, rem *remote, p sandbox.Platform, group string, m *meter) (*Image, error) {
	m.setPhase(PhaseResolving)
	select {
	case s.pulls <- struct{}{}:
		defer func() { <-s.pulls }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, lease, err := s.lease(ctx, group)
	if err != nil {
		return nil, err
	}
	img, err := s.pullLeased(ctx, rem, p, m)
	s.active.Delete(lease.ID)
	if err != nil {
		// What a failed attempt has got is worth keeping for the next one until
		// the lease expires, but only the last attempt's.
		s.endLeases(group, lease.ID)
		return nil, err
	}
	s.endLeases(group, "")
	m.setPhase(PhaseDone)
	s.log.Info("image pulled", "image", img.Name, "digest", img.Digest)
	return img, nil
}

func (s *Store) pullLeased(ctx context.Context, rem *remote, p sandbox.Platform, m *meter) (*Image, error) {
	f, fetcher, err := s.look(ctx, rem, p)
	if err != nil {
		return nil, err
	}
	if err := s.assemble(ctx, f, m, func(ctx context.Context, d ocispec.Descriptor) error {
		return s.fetchLayer(ctx, fetcher, d, m)
	}); err != nil {
		return nil, err
	}
	return s.record(ctx, nameKey{rem.ref.name, p}, f.source, f.target)
}

// assemble gets and unpacks all layers of an image. Layers are got several at
// a time and unpacked one after the other, bottom first, each as soon as it is
// there.
func (s *Store) assemble(ctx context.Context, f *found, m *meter, get small) error {
	layers := f.manifest.Layers
	var total int64
	for _, d := range layers {
		total += d.Size
	}
	if err := s.checkSpace(total); err != nil {
		return err
	}
	m.begin(len(layers), total)

	work, ctx := errgroup.WithContext(ctx)
	ready := make([]chan struct{}, len(layers))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	work.Go(func() error {
		downloads, ctx := errgroup.WithContext(ctx)
		downloads.SetLimit(s.opts.MaxConcurrentDownloads)
		for i, d := range layers {
			downloads.Go(func() error {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				if err := get(ctx, d); err != nil {
					return err
				}
				m.layerDownloaded()
				close(ready[i])
				return nil
			})
		}
		return downloads.Wait()
	})
	work.Go(func() error { return s.unpack(ctx, f, ready, m) })
	if err := work.Wait(); err != nil {
		return err
	}
	chains := identity.ChainIDs(slices.Clone(f.config.RootFS.DiffIDs))
	return s.connect(ctx, f, chains[len(chains)-1])
}

// checkSpace refuses what would leave less than MinFreeBytes on the disk.
func (s *Store) checkSpace(want int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Root, &st); err != nil {
		return fmt.Errorf("measuring the disk: %w", err)
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	if free-want < s.opts.MinFreeBytes || free < want {
		return &noSpaceError{free: free, want: want + s.opts.MinFreeBytes}
	}
	return nil
}

// maxPulls bounds the pulls under way at a time; others wait for their turn.
const maxPulls = 16

const (
	// keepPartial is how long what a failed pull has got is kept.
	keepPartial = 24 * time.Hour
	labelGroup  = "paddock/pull"
	leasePull   = "pull"
)

// pullLease names the leases of all attempts to pull an image with a login.
func pullLease(r ref, p sandbox.Platform, auth *sandbox.RegistryAuth) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{formatPlatform(p), r.name, loginID(auth)}, " ")))
	return leasePull + "-" + hex.EncodeToString(sum[:16])
}

// lease protects whatever is stored with the returned context from the
// garbage collector. It is active until its ID is deleted from s.active.
func (s *Store) lease(ctx context.Context, group string) (context.Context, leases.Lease, error) {
	// Active before it exists: an earlier pull of the same group may be just
	// about to end every lease that is not.
	id := rand.Text()
	s.active.Store(id, struct{}{})
	l, err := s.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(keepPartial),
		leases.WithLabel(labelGroup, group))
	if err != nil {
		s.active.Delete(id)
		return nil, l, fmt.Errorf("leasing: %w", err)
	}
	return leases.WithLease(ctx, l.ID), l, nil
}

func (s *Store) endLease(l leases.Lease) {
	s.active.Delete(l.ID)
	// Also when the pull's own context is cancelled.
	err := s.leases.Delete(scope(context.Background()), l)
	if err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("ending a lease of the image store failed", "error", err)
	}
	s.wakeCollector()
}

// endLeases ends the leases of a group that are not active, except one.
func (s *Store) endLeases(group, except string) {
	all, err := s.leases.List(scope(context.Background()), fmt.Sprintf("labels.%q==%q", labelGroup, group))
	if err != nil {
		s.log.Warn("listing leases of the image store failed", "error", err)
	}
	for _, l := range all {
		if _, active := s.active.Load(l.ID); !active && l.ID != except {
			s.endLease(l)
		}
	}
}
