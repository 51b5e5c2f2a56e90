package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

var (
	campaignMinutes = flag.Float64("campaign.minutes", 0.5, "how long TestCrashCampaign lasts")
	campaignSeed    = flag.Uint64("campaign.seed", 0, "seed of TestCrashCampaign's choices; 0 picks one")
)

const (
	campaignClients = 6
	// perClient is how many sandboxes one client keeps at most.
	perClient = 6
)

// TestCrashCampaign lets clients work at random while the server is killed at
// random, and checks that nothing that was acknowledged is lost. Each client
// keeps a model of its own sandboxes; a request whose answer was lost leaves
// the model undecided between before and after.
//
// The seed decides what the clients and the killer do, one after another; how
// they interleave is up to the machine.
func TestCrashCampaign(t *testing.T) {
	seed := *campaignSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	length := time.Duration(*campaignMinutes * float64(time.Minute))
	if testing.Short() {
		length = min(length, 10*time.Second)
	}
	s := ownServer(t, map[string]string{"pool.size": "3"})
	c := &campaign{t: t, s: s, seed: seed, acknowledged: make(chan struct{}, 1)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: go test -count=1 -run TestCrashCampaign ./test -args -campaign.seed=%d -campaign.minutes=%g", seed, *campaignMinutes)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	clients := make([]*worker, campaignClients)
	for i := range clients {
		clients[i] = c.worker(i)
		wg.Go(func() { clients[i].work(ctx) })
	}
	kills := c.kill(ctx)
	wg.Wait()
	if s.PID() == 0 {
		t.FailNow() // the rest would only say that nobody answers
	}
	operations := 0
	for _, w := range clients {
		w.settle()
		operations += w.operations
	}
	c.nothingElse(clients)
	for _, w := range clients {
		w.deleteAll()
	}
	t.Logf("seed %d: %d operations, %d kills", seed, operations, kills)
	if strings.Contains(s.LogTail(1<<30), "panic") {
		t.Error("the server's log holds a panic")
	}
}

type campaign struct {
	t    *testing.T
	s    *harness.Server
	seed uint64
	// acknowledged is told of creates and deletes, so that the killer can
	// strike right after one.
	acknowledged chan struct{}
}

// kill kills and restarts the server until ctx ends, and leaves it running.
func (c *campaign) kill(ctx context.Context) int {
	rng := rand.New(rand.NewPCG(c.seed, 1<<32))
	for kills := 0; ; kills++ {
		switch rng.IntN(3) {
		case 0: // right after something was promised
			select {
			case <-c.acknowledged: // an old one
			default:
			}
			select {
			case <-c.acknowledged:
			case <-ctx.Done():
			}
		case 1: // after a pause of the whole process
			sleep(ctx, time.Duration(rng.IntN(800))*time.Millisecond)
			_ = syscall.Kill(c.s.PID(), syscall.SIGSTOP)
			sleep(ctx, time.Duration(rng.IntN(200))*time.Millisecond)
		default:
			sleep(ctx, time.Duration(50+rng.IntN(1500))*time.Millisecond)
		}
		c.s.Kill()
		sleep(ctx, time.Duration(rng.IntN(100))*time.Millisecond)
		if err := c.s.Start(c.t.Context()); err != nil {
			c.t.Errorf("restart after kill %d: %v", kills+1, err)
			return kills + 1
		}
		if ctx.Err() != nil {
			return kills + 1
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// known is what a client knows of one of its sandboxes.
type known struct {
	id string
	// expiries are the moments of which one must be the recorded one.
	expiries []time.Time
	// states are those of which one must be the present one.
	states   []string
	commands []string
}

// worker is one client.
type worker struct {
	c    *campaign
	n    int
	rng  *rand.Rand
	api  *client.Client
	mine []*known
	// deleted are ids whose deletion was acknowledged.
	deleted []string
	// doubtful are ids whose deletion was asked for and not acknowledged.
	doubtful   []string
	creates    int
	operations int
}

func (c *campaign) worker(n int) *worker {
	api, err := client.New(client.Options{Server: c.s.URL, APIKey: c.s.Key, MaxRetries: -1, RequestTimeout: 30 * time.Second})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(api.Close)
	return &worker{c: c, n: n, api: api, rng: rand.New(rand.NewPCG(c.seed, uint64(n)))}
}

func (w *worker) errorf(format string, args ...any) {
	w.c.t.Errorf("client %d: "+format, append([]any{w.n}, args...)...)
}

// work does one thing after another until ctx ends.
func (w *worker) work(ctx context.Context) {
	for ctx.Err() == nil && !w.c.t.Failed() {
		w.operations++
		choice := w.rng.IntN(100)
		pick := w.rng.IntN(perClient)
		if len(w.mine) == 0 || choice < 20 && len(w.mine) < perClient {
			w.create(ctx)
			continue
		}
		k := w.mine[pick%len(w.mine)]
		switch {
		case choice < 40:
			w.check(ctx, k)
		case choice < 55:
			w.start(ctx, k)
		case choice < 70:
			w.renew(ctx, k)
		case choice < 80:
			w.pause(ctx, k)
		case choice < 88:
			w.list(ctx)
		default:
			w.delete(ctx, k)
		}
	}
}

// lost reports whether err leaves open what the server did.
func lost(err error) bool {
	var e *client.Error
	return err != nil && !errors.As(err, &e)
}

// eventually repeats a request until the server answers it.
func (w *worker) eventually(do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(w.c.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := do(ctx)
		if !lost(err) && !client.IsBusy(err) || ctx.Err() != nil || w.c.t.Failed() {
			return err
		}
		sleep(ctx, 10*time.Millisecond)
	}
}

func (w *worker) create(context.Context) {
	w.creates++
	key := fmt.Sprintf("campaign-%d-%d-%d", w.c.seed, w.n, w.creates)
	wait := time.Duration(0)
	if w.rng.IntN(2) == 0 {
		wait = 20 * time.Second
	}
	var sb *client.Sandbox
	err := w.eventually(func(ctx context.Context) (err error) {
		sb, err = w.api.Create(ctx, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: time.Hour, Wait: wait,
			ResourceLimits: map[string]string{"memory": "64Mi"}, Metadata: map[string]string{"campaign": key}, IdempotencyKey: key})
		return err
	})
	if sb == nil || err != nil {
		w.errorf("create %s: %+v %v", key, sb, err)
		return
	}
	if sb.ExpiresAt == nil {
		w.errorf("create %s: no expiry", key)
		return
	}
	w.mine = append(w.mine, &known{id: sb.ID, expiries: []time.Time{*sb.ExpiresAt}, states: []string{client.StateRunning}})
	w.promise()
}

func (w *worker) promise() {
	select {
	case w.c.acknowledged <- struct{}{}:
	default:
	}
}

// check compares a sandbox with the model, if the server answers.
func (w *worker) check(ctx context.Context, k *known) {
	sb, err := w.api.Get(ctx, k.id)
	if ctx.Err() == nil && !lost(err) {
		w.compare(k, sb, err)
	}
}

func (w *worker) compare(k *known, sb *client.Sandbox, err error) {
	if err != nil {
		w.errorf("sandbox %s was acknowledged and is lost: %v", k.id, err)
		return
	}
	if sb.ExpiresAt == nil || !slices.ContainsFunc(k.expiries, sb.ExpiresAt.Equal) {
		w.errorf("sandbox %s expires at %v, want one of %v", k.id, sb.ExpiresAt, k.expiries)
	}
	switch sb.Status.State {
	case client.StatePending, client.StatePausing, client.StateResuming:
	default:
		if !slices.Contains(k.states, sb.Status.State) {
			w.errorf("sandbox %s is %+v, want one of %v", k.id, sb.Status, k.states)
		}
	}
}

// start starts a command in the background. It goes on until the sandbox does
// not.
func (w *worker) start(ctx context.Context, k *known) {
	if !slices.Equal(k.states, []string{client.StateRunning}) {
		return
	}
	id, err := w.api.Start(ctx, k.id, client.Command{Shell: "exec sleep 7654321"})
	if err == nil {
		k.commands = append(k.commands, id)
		return
	}
	if !lost(err) && !client.IsBusy(err) && !strings.Contains(err.Error(), "BACKEND_") {
		w.errorf("starting a command in %s: %v", k.id, err)
	}
}

func (w *worker) renew(ctx context.Context, k *known) {
	want := time.Now().Add(time.Duration(30+w.rng.IntN(60)) * time.Minute).UTC().Truncate(time.Second)
	at, err := w.api.Renew(ctx, k.id, want)
	switch {
	case err == nil:
		k.expiries = []time.Time{at}
	case lost(err):
		k.expiries = append(k.expiries, want)
	case !client.IsBusy(err):
		w.errorf("renewing %s: %v", k.id, err)
	}
}

// pause pauses or resumes, whatever it is not.
func (w *worker) pause(ctx context.Context, k *known) {
	if slices.Contains(k.states, client.StateRunning) {
		w.change(ctx, k, w.api.Pause, client.StatePaused)
	} else {
		w.change(ctx, k, w.api.Resume, client.StateRunning)
	}
}

func (w *worker) change(ctx context.Context, k *known, do func(context.Context, string) error, to string) {
	err := do(ctx, k.id)
	switch {
	case err == nil:
		k.states = []string{to}
	case lost(err):
		k.states = []string{client.StateRunning, client.StatePaused}
	case client.IsConflict(err):
		// It is still Pending, or an earlier change did happen.
		if slices.Equal(k.states, []string{client.StatePaused}) {
			w.errorf("resuming %s, which was paused: %v", k.id, err)
		}
	case !client.IsBusy(err):
		w.errorf("making %s %s: %v", k.id, to, err)
	}
}

func (w *worker) list(ctx context.Context) {
	seen := map[string]bool{}
	for sb, err := range w.api.All(ctx, client.ListOptions{}) {
		if err != nil {
			return
		}
		seen[sb.ID] = true
	}
	for _, k := range w.mine {
		if !seen[k.id] {
			w.errorf("sandbox %s is not listed", k.id)
		}
	}
	for _, id := range w.deleted {
		if seen[id] {
			w.errorf("sandbox %s was deleted and is listed", id)
		}
	}
}

func (w *worker) delete(ctx context.Context, k *known) {
	w.mine = slices.DeleteFunc(w.mine, func(o *known) bool { return o == k })
	err := w.api.Delete(ctx, k.id)
	switch {
	case err == nil:
		w.deleted = append(w.deleted, k.id)
		w.promise()
	case lost(err), client.IsBusy(err):
		w.doubtful = append(w.doubtful, k.id)
	default:
		w.errorf("deleting %s: %v", k.id, err)
	}
}

// settle compares the whole model with a server that is up.
func (w *worker) settle() {
	ctx := w.c.t.Context()
	for _, k := range w.mine {
		sb, err := w.api.Wait(ctx, k.id, time.Minute)
		w.compare(k, sb, err)
		if err != nil || sb.Status.State == client.StatePending {
			w.errorf("sandbox %s never settled: %+v %v", k.id, sb, err)
			continue
		}
		if sb.Status.State == client.StatePaused {
			if err := w.api.Resume(ctx, k.id); err != nil {
				w.errorf("resuming %s at the end: %v", k.id, err)
				continue
			}
		}
		for _, id := range k.commands {
			if st, err := w.api.CommandStatus(ctx, k.id, id); err != nil || !st.Running {
				w.errorf("command %s in %s was acknowledged: %+v %v", id, k.id, st, err)
			}
		}
	}
	for _, id := range w.doubtful {
		if err := w.api.Delete(ctx, id); err != nil && !client.IsNotFound(err) {
			w.errorf("deleting %s again: %v", id, err)
		}
	}
	for _, id := range slices.Concat(w.deleted, w.doubtful) {
		if _, err := w.api.Get(ctx, id); !client.IsNotFound(err) {
			w.errorf("sandbox %s was deleted and is there: %v", id, err)
		}
	}
}

// nothingElse checks that no sandbox exists that no client knows.
func (c *campaign) nothingElse(clients []*worker) {
	ids := map[string]bool{}
	for _, w := range clients {
		for _, k := range w.mine {
			ids[k.id] = true
		}
	}
	for sb, err := range c.s.Client.All(c.t.Context(), client.ListOptions{}) {
		if err != nil {
			c.t.Fatal(err)
		}
		if !ids[sb.ID] {
			c.t.Errorf("sandbox %s (%v, %s) belongs to nobody", sb.ID, sb.Metadata, sb.Status.State)
		}
	}
}

func (w *worker) deleteAll() {
	var ids []string
	for _, k := range w.mine {
		if err := w.api.Delete(w.c.t.Context(), k.id); err != nil {
			w.errorf("deleting %s at the end: %v", k.id, err)
		}
		ids = append(ids, k.id)
	}
	ids = slices.Concat(ids, w.deleted, w.doubtful)
	if len(ids) == 0 {
		return
	}
	for _, trace := range w.c.s.AwaitNoTraces(ids...) {
		w.errorf("left: %s", trace)
	}
}
