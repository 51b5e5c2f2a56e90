package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// createBody is the request of the quick start.
func createBody(image string) map[string]any {
	return map[string]any{
		"image":          map[string]any{"uri": image},
		"entrypoint":     []string{"tail", "-f", "/dev/null"},
		"timeout":        600,
		"resourceLimits": map[string]string{"cpu": "500m", "memory": "512Mi"},
		"env":            map[string]string{},
		"metadata":       map[string]string{"project": "demo"},
	}
}

type sandboxJSON struct {
	ID         string
	Image      *struct{ URI string }
	Status     struct{ State, Reason, Message string }
	Metadata   map[string]string
	Entrypoint []string
	ExpiresAt  *time.Time
	CreatedAt  time.Time
}

func TestCreateAnswersAsTheContractSays(t *testing.T) {
	s := sharedServer(t)
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", createBody(busyboxImage), "X-Request-ID", "my-request-1")
	if r.Status != http.StatusAccepted {
		t.Fatalf("status %d: %s", r.Status, r.Body)
	}
	var sb sandboxJSON
	r.JSON(t, &sb)
	s.Forget(t, sb.ID)
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(sb.ID) {
		t.Errorf("id %q is not a lower-case UUID", sb.ID)
	}
	if got, want := r.Header.Get("Location"), "/v1/sandboxes/"+sb.ID; got != want {
		t.Errorf("Location %q, want %q", got, want)
	}
	if got := r.Header.Get("X-Request-ID"); got != "my-request-1" {
		t.Errorf("X-Request-ID %q, want the one that was sent", got)
	}
	if len(sb.Entrypoint) != 3 || sb.Metadata["project"] != "demo" || sb.ExpiresAt == nil {
		t.Errorf("the answer lacks what was asked for: %s", r.Body)
	} else if life := sb.ExpiresAt.Sub(sb.CreatedAt); life < 599*time.Second || life > 601*time.Second {
		t.Errorf("the lifetime is %s, want 600 s", life)
	}
	var raw map[string]any
	r.JSON(t, &raw)
	for k, v := range raw {
		if v == nil {
			t.Errorf("member %q is null; absent members are left out", k)
		}
	}
	s.State(t, sb.ID, client.StateRunning)
	var got sandboxJSON
	s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID, nil).JSON(t, &got)
	if got.Image == nil || got.Image.URI != busyboxImage {
		t.Errorf("image %+v, want the reference as it was written", got.Image)
	}
	// The same route without /v1.
	if r := s.Do(t, http.MethodGet, "/sandboxes/"+sb.ID, nil); r.Status != http.StatusOK {
		t.Errorf("GET without /v1: %d", r.Status)
	}
	if id := s.Do(t, http.MethodGet, "/v1/sandboxes/nope", nil).Header.Get("X-Request-ID"); !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
		t.Errorf("X-Request-ID %q of an error, want 32 hexadecimal digits", id)
	}
}

// A client that asks for the endpoint and uses it right after the create never
// has to wait or try again.
func TestEndpointAnswersAndHoldsWhilePending(t *testing.T) {
	s := sharedServer(t)
	for range 5 {
		var sb sandboxJSON
		s.Do(t, http.MethodPost, "/v1/sandboxes", createBody(busyboxImage)).JSON(t, &sb)
		s.Forget(t, sb.ID)
		r := s.Do(t, http.MethodGet, fmt.Sprintf("/v1/sandboxes/%s/endpoints/44772", sb.ID), nil)
		if r.Status != http.StatusOK {
			t.Fatalf("endpoint: %d %s", r.Status, r.Body)
		}
		var ep client.Endpoint
		r.JSON(t, &ep)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ep.Endpoint+"/ping", nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range ep.Headers {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("/ping at the endpoint: %d", resp.StatusCode)
		}
	}
}

func TestPreferWait(t *testing.T) {
	s := sharedServer(t)
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", createBody(busyboxImage), "Prefer", "wait=30")
	var sb sandboxJSON
	r.JSON(t, &sb)
	s.Forget(t, sb.ID)
	if r.Status != http.StatusAccepted || sb.Status.State != client.StateRunning {
		t.Errorf("%d %s: want 202 and Running", r.Status, sb.Status.State)
	}
	if got := r.Header.Get("Preference-Applied"); !strings.Contains(got, "wait") {
		t.Errorf("Preference-Applied %q", got)
	}
}

func TestIdempotencyKey(t *testing.T) {
	s := sharedServer(t)
	post := func(key string, body any) (*harness.Response, string) {
		r := s.Do(t, http.MethodPost, "/v1/sandboxes", body, "Idempotency-Key", key)
		var sb sandboxJSON
		_ = json.Unmarshal(r.Body, &sb)
		if sb.ID != "" {
			s.Forget(t, sb.ID)
		}
		return r, sb.ID
	}
	key := "key-" + t.Name() + time.Now().Format(time.RFC3339Nano)
	_, first := post(key, createBody(busyboxImage))
	if _, again := post(key, createBody(busyboxImage)); again != first {
		t.Errorf("the same key gave %s and then %s", first, again)
	}
	other := createBody(busyboxImage)
	other["timeout"] = 700
	if r, _ := post(key, other); r.Status != http.StatusConflict {
		t.Errorf("the same key with another body: %d %s", r.Status, r.Body)
	}
	// Many at once make one.
	key += "-many"
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			sb, err := s.Client.Create(t.Context(), client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: time.Minute, IdempotencyKey: key})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = sb.ID
		})
	}
	wg.Wait()
	s.Forget(t, ids[0])
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("one key made several sandboxes: %v", ids)
		}
	}
}

func TestTwoHundredCreatesAtOnce(t *testing.T) {
	s := sharedServer(t)
	const n = 200
	ids, errs := make([]string, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			sb, err := s.Client.Create(ctx, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: 10 * time.Minute,
				Metadata: map[string]string{"burst": "200"}, ResourceLimits: map[string]string{"memory": "64Mi"}})
			if err != nil {
				errs[i] = err
				return
			}
			ids[i] = sb.ID
			res, err := s.Client.Run(ctx, sb.ID, client.Command{Argv: []string{"true"}}, client.Output{})
			if err == nil && res.ExitCode != 0 {
				err = fmt.Errorf("exit code %d", res.ExitCode)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("%v", err)
	}
	page, err := s.Client.List(t.Context(), client.ListOptions{Metadata: map[string]string{"burst": "200"}, PageSize: 1})
	if err != nil || page.Pagination.TotalItems != n {
		t.Errorf("listed %+v, %v; want %d", page, err, n)
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("id %q was given twice", id)
		}
		seen[id] = true
	}
	clear(errs)
	for i, id := range ids {
		if id == "" {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			errs[i] = s.Client.Delete(ctx, id)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("deleting: %v", err)
	}
	for _, trace := range s.AwaitNoTraces(ids...) {
		t.Errorf("left after the deletes: %s", trace)
	}
}

func TestPortValidation(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	for port, want := range map[string]int{"0": 400, "65536": 400, "-1": 400, "x": 400, "18080": 200, "1": 200, "65535": 200} {
		if r := s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+"/endpoints/"+port, nil); r.Status != want {
			t.Errorf("port %s: %d %s, want %d", port, r.Status, r.Body, want)
		}
	}
}
