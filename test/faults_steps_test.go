package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// envEveryStep, when set, makes TestKilledAtEachStep take every step instead of
// a few at random, which takes minutes.
const envEveryStep = "PADDOCK_TEST_EVERY_STEP"

// TestKilledAtEachStep kills the server at one of the system calls by which a
// create and a delete change the host, after another. What was acknowledged is
// there after the restart, what was not is finished or gone, and nothing is left
// over.
func TestKilledAtEachStep(t *testing.T) {
	s := ownServer(t, map[string]string{"pool.size": "0"})
	api, err := client.New(client.Options{Server: s.URL, APIKey: s.Key, MaxRetries: -1, RequestTimeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	for _, operation := range []struct {
		name   string
		sample int
		do     func(t *testing.T, s *harness.Server, api *client.Client, step int) (at string, steps int)
	}{
		{"create", 6, createKilledAt}, {"delete", 4, deleteKilledAt},
	} {
		t.Run(operation.name, func(t *testing.T) {
			_, steps := operation.do(t, s, api, 0)
			if steps < 10 {
				t.Fatalf("only %d steps were seen", steps)
			}
			points := pickSteps(steps, operation.sample)
			t.Logf("%d steps, of which %v", steps, points)
			for _, step := range points {
				at, _ := operation.do(t, s, api, step)
				t.Logf("killed at step %d, %q", step, at)
			}
		})
	}
}

// pickSteps is one step of each of n stretches, or every step.
func pickSteps(steps, n int) []int {
	var points []int
	if os.Getenv(envEveryStep) != "" {
		n = steps
	}
	for i := range n {
		low, high := 1+steps*i/n, 1+steps*(i+1)/n
		points = append(points, low+rand.IntN(max(1, high-low)))
	}
	return slices.Compact(points)
}

func createKilledAt(t *testing.T, s *harness.Server, api *client.Client, step int) (at string, steps int) {
	t.Helper()
	ctx := t.Context()
	r := client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: time.Hour,
		IdempotencyKey: fmt.Sprintf("step-%d-%d", step, time.Now().UnixNano())}
	end := traceServer(t, s, step)
	first, err := api.Create(ctx, r)
	if err == nil {
		_, err = api.Wait(ctx, first.ID, 30*time.Second)
	}
	at, steps = end()
	if at == "" && err != nil {
		t.Fatalf("nobody killed the server at step %d: %v", step, err)
	}
	where := fmt.Sprintf("killed at step %d (%s)", step, at)
	if at != "" {
		<-s.Done()
		if err := s.Start(ctx); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
	}
	r.Wait = 30 * time.Second
	sb, err := api.Create(ctx, r)
	if err != nil || sb.Status.State != client.StateRunning {
		t.Fatalf("%s: the create asked for again: %+v %v", where, sb, err)
	}
	if first != nil && first.ID != sb.ID {
		t.Errorf("%s: sandbox %s was acknowledged, and the same key gave %s", where, first.ID, sb.ID)
	}
	if got := s.Must(t, sb.ID, "echo whole"); got != "whole" {
		t.Errorf("%s: the sandbox says %q", where, got)
	}
	if page, err := api.List(ctx, client.ListOptions{}); err != nil || page.Pagination.TotalItems != 1 {
		t.Errorf("%s: %+v sandboxes, %v; want one", where, page, err)
	}
	if err := api.Delete(ctx, sb.ID); err != nil {
		t.Errorf("%s: deleting: %v", where, err)
	}
	noTraces(t, s, where)
	return at, steps
}

func deleteKilledAt(t *testing.T, s *harness.Server, api *client.Client, step int) (at string, steps int) {
	t.Helper()
	ctx := t.Context()
	sb, err := api.Create(ctx, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: time.Hour, Wait: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	end := traceServer(t, s, step)
	deleted := api.Delete(ctx, sb.ID)
	if deleted == nil {
		// Its files go in the background.
		await(t, "the files to be gone, or the server", func() bool { return s.PID() == 0 || len(s.SandboxTraces(sb.ID)) == 0 })
	}
	at, steps = end()
	if at == "" && deleted != nil {
		t.Fatalf("nobody killed the server at step %d: %v", step, deleted)
	}
	where := fmt.Sprintf("killed at step %d (%s)", step, at)
	if at != "" {
		<-s.Done()
		if err := s.Start(ctx); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
	}
	err = api.Delete(ctx, sb.ID)
	if err != nil && !client.IsNotFound(err) {
		t.Errorf("%s: deleting again: %v", where, err)
	}
	if deleted == nil && err == nil {
		t.Errorf("%s: the delete was acknowledged, and the sandbox was there", where)
	}
	noTraces(t, s, where)
	return at, steps
}

// noTraces expects that the server, which keeps no shells ready, has nothing on
// the host.
func noTraces(t *testing.T, s *harness.Server, where string) {
	t.Helper()
	for _, trace := range s.AwaitNoTraces() {
		t.Errorf("%s: left: %s", where, trace)
	}
}
