package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// recoverers is how many sandboxes are looked at together.
	recoverers = 16
	// adoptTimeout bounds the question to one execd.
	adoptTimeout = 5 * time.Second
)

// Recover adopts the recorded sandboxes that live and removes everything else
// of this instance from the host.
func (e *Engine) Recover(ctx context.Context, recorded []*sandbox.Sandbox) (map[string]sandbox.Found, error) {
	byID := make(map[string]*sandbox.Sandbox, len(recorded))
	for _, r := range recorded {
		byID[r.ID] = r
	}
	onHost, err := os.ReadDir(e.in.shellsDir())
	if err != nil {
		return nil, err
	}
	if err := e.reserveIndexes(onHost); err != nil {
		return nil, err
	}
	found := make(map[string]sandbox.Found, len(recorded))
	for id := range byID {
		found[id] = sandbox.FoundNothing
	}
	var mu sync.Mutex
	err = eachOf(ctx, recoverers, onHost, func(d os.DirEntry) error {
		f, err := e.recoverOne(ctx, d.Name(), byID[d.Name()])
		if byID[d.Name()] != nil {
			mu.Lock()
			found[d.Name()] = f
			mu.Unlock()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := e.removeStrays(ctx, byID); err != nil {
		return nil, err
	}
	e.images.HoldsRestored()
	e.pool.start()
	return found, nil
}

// eachOf runs f for all of the entries, n at a time.
func eachOf(ctx context.Context, n int, all []os.DirEntry, f func(os.DirEntry) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	work := make(chan os.DirEntry)
	for range min(n, len(all)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for d := range work {
				if err := f(d); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		}()
	}
	for _, d := range all {
		if ctx.Err() != nil {
			break
		}
		work <- d
	}
	close(work)
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// reserveIndexes takes the indexes that shells on the host have.
func (e *Engine) reserveIndexes(onHost []os.DirEntry) error {
	taken := map[int]bool{}
	for _, d := range onHost {
		if st, err := e.in.loadState(d.Name()); err == nil {
			taken[st.Index] = true
			e.gpus.Restore(st.ID, st.GPUs)
		}
	}
	return e.indexes.reserve(taken)
}

// recoverOne looks at one shell on the host. What is not adopted is taken
// apart.
func (e *Engine) recoverOne(ctx context.Context, id string, recorded *sandbox.Sandbox) (sandbox.Found, error) {
	s := e.reopen(id)
	if s == nil {
		return sandbox.FoundNothing, nil
	}
	found := sandbox.FoundNothing
	if recorded != nil && !recorded.Status.State.Ended() && s.pidfd >= 0 && !ended(s.pidfd) {
		s.token, s.hookSeq, s.ownEnv = recorded.Token, recorded.HookSeq, ownTrustEnv(&recorded.Spec)
		found = e.adopt(ctx, s)
	}
	if found == sandbox.FoundRunning || found == sandbox.FoundPaused {
		if err := e.restorePolicy(ctx, s, recorded.Spec.NetworkPolicy); err != nil {
			return found, fmt.Errorf("applying the network policy of %s: %w", id, err)
		}
		e.trustAgain(ctx, s, recorded.Spec.NetworkPolicy)
		return found, nil
	}
	keepLogs := recorded != nil
	if err := e.dismantle(ctx, s, keepLogs); err != nil {
		return found, fmt.Errorf("removing what is left of %s: %w", id, err)
	}
	e.gpus.Give(id)
	return found, nil
}

// adopt takes a living sandbox over.
func (e *Engine) adopt(ctx context.Context, s *shell) sandbox.Found {
	st, err := e.in.loadState(s.id)
	if err != nil || s.group == nil {
		return sandbox.FoundNothing
	}
	if st.Phase == phaseMaking || st.Phase == phaseShell {
		return sandbox.FoundUnclaimed
	}
	frozen, err := s.group.Frozen()
	if err != nil {
		return sandbox.FoundNothing
	}
	// A frozen sandbox can't answer; only a claimed one is ever frozen.
	if !frozen && st.Phase != phaseClaimed && !e.claimed(ctx, s) {
		return sandbox.FoundUnclaimed
	}
	if st.Phase != phaseClaimed {
		st.Phase = phaseClaimed
		if err := e.in.saveState(st); err != nil {
			return sandbox.FoundNothing
		}
	}
	if err := e.images.HoldDigest(s.id, st.Image); err != nil {
		e.log.Warn("holding the image of an adopted sandbox", "sandbox", s.id, "image", st.Image, "error", err)
	}
	e.adoptIsolated(ctx, s)
	e.mu.Lock()
	e.live[s.id] = s
	e.mu.Unlock()
	e.watch(s)
	if frozen {
		return sandbox.FoundPaused
	}
	return sandbox.FoundRunning
}

// claimed asks execd whether its entrypoint was handed over: the server may
// have died between that and writing it down.
func (e *Engine) claimed(ctx context.Context, s *shell) bool {
	return e.syncSandbox(ctx, s, adoptTimeout) == nil
}

// removeStrays removes what carries this instance's name but no known id.
func (e *Engine) removeStrays(ctx context.Context, recorded map[string]*sandbox.Sandbox) error {
	known := func(id string) bool { return e.live[id] != nil }
	var errs []error
	for _, parent := range []*cgroup.Parent{e.cgroups, e.gpuCgroups} {
		groups, err := parent.List()
		if err != nil {
			return err
		}
		for _, id := range groups {
			if known(id) {
				continue
			}
			s := newShell(id)
			if s.group, err = parent.Open(id); err == nil {
				errs = append(errs, e.dismantle(ctx, s, recorded[id] != nil))
			}
		}
	}
	links, err := e.network.Interfaces(ctx)
	errs = append(errs, err)
	var stray []int
	for _, l := range links {
		if !known(strings.TrimPrefix(l.Alias, e.in.alias(""))) {
			stray = append(stray, l.Index)
		}
	}
	errs = append(errs, e.network.Detach(ctx, stray...))
	containers, err := e.runtime.Known()
	errs = append(errs, err)
	for _, id := range containers {
		if !known(id) {
			errs = append(errs, e.runtime.Forget(id))
		}
	}
	data, err := os.ReadDir(e.in.sandboxesDir())
	errs = append(errs, err)
	for _, d := range data {
		if recorded[d.Name()] == nil {
			errs = append(errs, e.dropData(d.Name(), false))
		}
	}
	return errors.Join(errs...)
}

// Reset removes everything of an instance from the host: sandboxes, interfaces,
// packet rules, cgroups, run directory. Images and volumes stay. No server may
// be running on the data directory.
func Reset(ctx context.Context, o Options) error {
	o.PoolSize = 0
	e, err := New(ctx, o)
	if err != nil {
		return err
	}
	_, err = e.Recover(ctx, nil)
	// Close removes what sandboxes share when none is left.
	return errors.Join(err, e.trash.drain(ctx), e.Close())
}
