package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// stallTimeout is how long a download may go without a byte.
	stallTimeout = time.Minute
	// A download is tried again maxIdleAttempts times without progress, and
	// maxAttempts times in all: a registry that drops every connection after a
	// megabyte still delivers a layer, one that drips does not hold us for ever.
	maxIdleAttempts = 4
	maxAttempts     = 32
	firstBackoff    = 250 * time.Millisecond
	maxBackoff      = 8 * time.Second
	// maxRateWait is how long a download sits out a rate limit.
	maxRateWait = 30 * time.Second
)

// fetchBlob brings a blob into the content store, from where an earlier attempt
// has left off. It tries once. What it has when it fails is kept under the
// lease in ctx, unless it is wrong.
func (s *Store) fetchBlob(ctx context.Context, fetcher remotes.Fetcher, d ocispec.Descriptor) error {
	unlock, err := s.blobLock.lock(ctx, d.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()

	err = remotes.Fetch(ctx, s.content, fetcher, d)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return nil
	case errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err):
		// The bytes are complete and not those that were promised. Keeping
		// them would make every later attempt fail.
		if abortErr := s.content.Abort(ctx, remotes.MakeRefKey(ctx, d)); abortErr != nil && !errdefs.IsNotFound(abortErr) {
			err = errors.Join(err, abortErr)
		}
		return corruptf(err, "the registry sent other bytes than those of %s", d.Digest)
	}
	return err
}

// fetchLayer is fetchBlob for layers: it counts bytes and tries again.
func (s *Store) fetchLayer(ctx context.Context, fetcher remotes.Fetcher, d ocispec.Descriptor, m *meter) error {
	counted := &countingFetcher{next: fetcher, meter: m}
	backoff := firstBackoff
	for attempt, idle := 1, 1; ; attempt, idle = attempt+1, idle+1 {
		before := counted.reached
		err := s.fetchBlob(ctx, counted, d)
		if err == nil {
			m.add(d.Size - counted.reached)
			return nil
		}
		if counted.reached > before {
			idle, backoff = 0, firstBackoff
		}
		wait := backoff
		var limited *rateLimitError
		if errors.As(err, &limited) {
			wait = limited.after
		}
		if ctx.Err() != nil || !transient(err) || attempt >= maxAttempts || idle >= maxIdleAttempts || wait > maxRateWait {
			return fmt.Errorf("layer %s: %w", d.Digest, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// transient reports whether trying again may help.
func transient(err error) bool {
	if errors.Is(err, errCorrupt) || errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsNotFound(err) {
		return false
	}
	if status := statusOf(err); status != 0 {
		return status >= 500 || status == http.StatusRequestTimeout
	}
	var limited *rateLimitError
	return errors.As(err, &limited) || networkReason(err) != ""
}

// countingFetcher reports a layer's bytes to a meter as they come, and ends a
// download that has stalled. It serves one layer, one attempt at a time.
type countingFetcher struct {
	next  remotes.Fetcher
	meter *meter
	// reached is the highest offset that was read so far.
	reached int64
}

func (f *countingFetcher) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	rc, err := f.next.Fetch(ctx, d)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	r := &countingReader{ReadCloser: rc, fetcher: f, ctx: ctx, cancel: cancel}
	r.watchdog = time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	return r, nil
}

type countingReader struct {
	io.ReadCloser
	fetcher  *countingFetcher
	ctx      context.Context
	cancel   context.CancelCauseFunc
	watchdog *time.Timer
	offset   int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.watchdog.Reset(stallTimeout)
		r.advance(r.offset + int64(n))
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(r.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Seek is called once, with what an earlier attempt has left in the store.
func (r *countingReader) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := r.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the download cannot be resumed")
	}
	offset, err := seeker.Seek(offset, whence)
	if err == nil {
		r.advance(offset)
	}
	return offset, err
}

func (r *countingReader) advance(to int64) {
	r.offset = to
	if more := to - r.fetcher.reached; more > 0 {
		r.fetcher.reached = to
		r.fetcher.meter.add(more)
	}
}

func (r *countingReader) Close() error {
	r.watchdog.Stop()
	r.cancel(nil)
	return r.ReadCloser.Close()
}
