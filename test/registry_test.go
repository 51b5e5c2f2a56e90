package test

import (
	"archive/tar"
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// pullServer is a server without images, for tests of pulls.
func pullServer(t *testing.T) *harness.Server {
	t.Helper()
	return harness.New(t, map[string]string{"pool.size": "1", "image.resolve_timeout": "3s"})
}

// withBulk adds a layer of random bytes, so that a pull lasts.
func withBulk(img imagetest.Image, size int) imagetest.Image {
	bulk := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(bulk)
	img.Layers = append(img.Layers, imagetest.Layer{Entries: []imagetest.Entry{
		{Header: tar.Header{Name: "bulk", Typeflag: tar.TypeReg, Mode: 0o644}, Body: bulk},
	}})
	return img
}

// createOf makes a sandbox of an image and returns it however it ended.
func createOf(t *testing.T, s *harness.Server, ref string, auth *client.RegistryAuth) (*client.Sandbox, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sb, err := s.Client.Create(ctx, client.CreateRequest{Image: ref, Auth: auth, Entrypoint: forever, Timeout: 10 * time.Minute, Wait: time.Minute})
	if sb != nil {
		s.Forget(t, sb.ID)
	}
	return sb, err
}

func wantRunning(t *testing.T, s *harness.Server, ref string, auth *client.RegistryAuth) {
	t.Helper()
	sb, err := createOf(t, s, ref, auth)
	if err != nil || sb.Status.State != client.StateRunning {
		t.Fatalf("a sandbox of %s: %+v, %v", ref, sb, err)
	}
	if got := s.Must(t, sb.ID, "echo pulled"); got != "pulled" {
		t.Errorf("it says %q", got)
	}
}

// wantRefused expects a create that is refused at once, with nothing recorded.
func wantRefused(t *testing.T, s *harness.Server, ref string, auth *client.RegistryAuth, status int, words ...string) {
	t.Helper()
	before, err := s.Client.List(t.Context(), client.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	body := createBody(ref)
	if auth != nil {
		body["image"] = map[string]any{"uri": ref, "auth": map[string]string{"username": auth.Username, "password": auth.Password}}
	}
	began := time.Now()
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", body)
	_, message := r.Error(t)
	if r.Status != status {
		t.Errorf("%s: %d %s, want %d", ref, r.Status, message, status)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(message), strings.ToLower(w)) {
			t.Errorf("%s: the message does not say %q: %s", ref, w, message)
		}
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("%s: the answer took %s", ref, d)
	}
	after, err := s.Client.List(t.Context(), client.ListOptions{})
	if err != nil || after.Pagination.TotalItems != before.Pagination.TotalItems {
		t.Errorf("a refused create was recorded: %+v %v", after, err)
	}
}

func TestPulls(t *testing.T) {
	harness.RequireProgram(t, "docker-registry")
	s := pullServer(t)
	open := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	closed := imagetest.StartRegistry(t, imagetest.RegistryOptions{Login: true})
	layout := imagetest.Layout(t, "", imagetest.Busybox(t))
	ref := open.Push(t, layout, "team/busybox", "1")
	private := closed.Push(t, layout, "team/private", "1")
	login := &client.RegistryAuth{Username: imagetest.User, Password: imagetest.Password}

	wantRunning(t, s, ref, nil)
	wantRunning(t, s, private, login)
	img, err := s.Client.PullImage(t.Context(), client.PullRequest{Image: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantRunning(t, s, open.Host+"/team/busybox@"+img.Digest, nil)

	wantRefused(t, s, open.Host+"/team/none:1", nil, http.StatusNotFound, "team/none")
	wantRefused(t, s, open.Host+"/team/busybox:none", nil, http.StatusNotFound, "none")
	fresh := closed.Push(t, imagetest.Layout(t, "", withBulk(imagetest.Busybox(t), 10)), "team/other", "1")
	wantRefused(t, s, fresh, &client.RegistryAuth{Username: imagetest.User, Password: "wrong"}, http.StatusBadRequest)
	wantRefused(t, s, fresh, nil, http.StatusNotFound)

	arm := imagetest.Busybox(t)
	arm.Arch = "s390x"
	other := open.Push(t, imagetest.Layout(t, "", arm), "team/s390x", "1")
	sb, err := createOf(t, s, other, nil)
	if err == nil || !strings.Contains(err.Error(), "s390x") || !strings.Contains(err.Error(), "amd64") && !strings.Contains(err.Error(), "arm64") {
		t.Errorf("an image of another architecture: %+v, %v; want an error that names both", sb, err)
	}
}

func TestUnreachableRegistry(t *testing.T) {
	s := pullServer(t)
	// Nothing listens.
	wantRefused(t, s, "127.0.0.1:1/x:1", nil, http.StatusServiceUnavailable, "127.0.0.1:1")
	// It listens and never answers.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantRefused(t, s, l.Addr().String()+"/x:1", nil, http.StatusServiceUnavailable, l.Addr().String())
}

// largestBlob is the digest of a layout's largest blob.
func largestBlob(t *testing.T, layout string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(layout, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	best, size := "", int64(-1)
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() > size {
			best, size = filepath.Base(f), st.Size()
		}
	}
	return best
}

// onlyFor lets requests pass whose path does not contain part.
func onlyFor(part string, f imagetest.Fault) imagetest.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, part) {
			f(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func TestRegistryFaults(t *testing.T) {
	harness.RequireProgram(t, "docker-registry")
	s := pullServer(t)
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	proxy := registry.Proxy(t)
	// Each image has a large layer of its own, so that none is there already.
	size := 3 << 20
	var largest string
	push := func(name string) string {
		size++
		layout := imagetest.Layout(t, "", withBulk(imagetest.Busybox(t), size))
		largest = largestBlob(t, layout)
		ref := registry.Push(t, layout, name, "1")
		return proxy.Host + strings.TrimPrefix(ref, registry.Host)
	}
	fails := func(t *testing.T, ref string) *client.Sandbox {
		sb, err := createOf(t, s, ref, nil)
		if err == nil || sb == nil || sb.Status.State != client.StateFailed || sb.Status.Reason != "IMAGE_PULL_FAILED" || sb.Status.Message == "" {
			t.Fatalf("%+v, %v; want Failed with IMAGE_PULL_FAILED and a message", sb, err)
		}
		for _, trace := range s.AwaitEnded(sb.ID) {
			t.Errorf("left after a failed pull: %s", trace)
		}
		return sb
	}
	t.Run("dies in a layer and stays away", func(t *testing.T) {
		ref := push("dies")
		proxy.SetFault(onlyFor(largest, imagetest.Cut(0, 1<<20)))
		defer proxy.SetFault(nil)
		fails(t, ref)
		proxy.SetFault(nil)
		wantRunning(t, s, ref, nil)
	})
	t.Run("dies once and comes back", func(t *testing.T) {
		ref := push("blinks")
		proxy.SetFault(imagetest.Cut(1<<20, 1))
		defer proxy.SetFault(nil)
		wantRunning(t, s, ref, nil)
	})
	t.Run("wrong bytes", func(t *testing.T) {
		ref := push("spoilt")
		proxy.SetFault(imagetest.Spoil(2 << 20))
		defer proxy.SetFault(nil)
		fails(t, ref)
		proxy.SetFault(nil)
		wantRunning(t, s, ref, nil)
	})
	t.Run("rate limit", func(t *testing.T) {
		ref := push("limited")
		proxy.SetFault(imagetest.Answer("/manifests/", http.StatusTooManyRequests, "Retry-After", "7"))
		defer proxy.SetFault(nil)
		body := createBody(ref)
		r := s.Do(t, http.MethodPost, "/v1/sandboxes", body)
		if r.Status != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" {
			t.Errorf("%d, Retry-After %q: %s", r.Status, r.Header.Get("Retry-After"), r.Body)
		}
	})
	t.Run("delete during the pull", func(t *testing.T) {
		ref := push("slow")
		started, release := make(chan struct{}), make(chan struct{})
		proxy.SetFault(imagetest.Hang(largest, started, release))
		defer proxy.SetFault(nil)
		defer close(release)
		sb, err := s.Client.Create(t.Context(), client.CreateRequest{Image: ref, Entrypoint: forever, Timeout: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		<-started
		if got, err := s.Client.Get(t.Context(), sb.ID); err != nil || got.Status.State != client.StatePending {
			t.Errorf("while it pulls: %+v %v", got, err)
		}
		began := time.Now()
		if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 15*time.Second {
			t.Errorf("the delete took %s", d)
		}
		for _, trace := range s.AwaitNoTraces(sb.ID) {
			t.Errorf("left: %s", trace)
		}
	})
	t.Run("killed during the pull", func(t *testing.T) {
		ref := push("killed")
		started, release := make(chan struct{}), make(chan struct{})
		proxy.SetFault(imagetest.Hang(largest, started, release))
		sb, err := s.Client.Create(t.Context(), client.CreateRequest{Image: ref, Entrypoint: forever, Timeout: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		s.Forget(t, sb.ID)
		<-started
		s.Kill()
		close(release)
		proxy.SetFault(nil)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.State(t, sb.ID, client.StateRunning)
		if got := s.Must(t, sb.ID, "echo finished"); got != "finished" {
			t.Errorf("it says %q", got)
		}
	})
}

// A data directory that fills up: creates and pulls fail with a reason, and
// nothing of what was there is lost.
func TestFullDisk(t *testing.T) {
	s := serverOnTmpfs(t, "96m", "16Mi")
	sb := sleeper(t, s)
	// The sandbox fills the disk below what must stay free.
	s.Shell(t, sb.ID, "head -c 90000000 /dev/zero > /fill 2>/dev/null")
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", createBody(busyboxImage), "Prefer", "wait=20")
	if r.Status == http.StatusAccepted {
		var refused sandboxJSON
		r.JSON(t, &refused)
		s.Forget(t, refused.ID)
		if refused.Status.State != client.StateFailed {
			t.Errorf("a create on a full disk: %s", r.Body)
		}
	} else if _, message := r.Error(t); !strings.Contains(message, "space") && !strings.Contains(message, "free") {
		t.Errorf("a create on a full disk: %d %s", r.Status, message)
	}
	if got := s.Must(t, sb.ID, "rm /fill; echo alive"); got != "alive" {
		t.Errorf("the first sandbox says %q", got)
	}
	wantRunning(t, s, busyboxImage, nil)
}
