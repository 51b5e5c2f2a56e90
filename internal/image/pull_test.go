package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestPull(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	proxy := registry.Proxy(t)
	img := imagetest.Image{
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/bin"}, User: "1000", WorkingDir: "/srv", Entrypoint: []string{"/bin/a"}, Cmd: []string{"b"},
			Labels: map[string]string{"k": "v"}, StopSignal: "SIGINT",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
		},
		Layers: []imagetest.Layer{
			{Compression: ociwriter.Gzip, Entries: imagetest.Files(map[string]string{"etc/one": "1", "etc/two": "2", "keep/x": "x"}).Entries},
			{Compression: ociwriter.Zstd, Entries: imagetest.Files(map[string]string{"etc/.wh.one": "", "keep/.wh..wh..opq": "", "keep/y": "y"}).Entries},
			{Compression: ociwriter.Plain, Entries: imagetest.Files(map[string]string{"top": "t"}).Entries},
		},
	}
	registry.Push(t, imagetest.Layout(t, "", img), "team/app", "v1")
	name := proxy.Host + "/team/app:v1"
	s := openStore(t, nil)

	_, err := s.Lookup(t.Context(), name, nil)
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeImageNotFound)
	resolved, err := s.Resolve(t.Context(), name, nil, nil)
	if err != nil || resolved.Local || !strings.HasPrefix(resolved.Digest, "sha256:") {
		t.Fatalf("Resolve before the pull: %+v, %v", resolved, err)
	}
	if n := len(proxy.Requests("/blobs/")); n != 1 {
		t.Errorf("Resolve made %d requests for blobs, want 1, for the config", n)
	}

	var reports []Progress
	got, err := s.Ensure(t.Context(), name, nil, nil, func(p Progress) { reports = append(reports, p) })
	if err != nil {
		t.Fatal(err)
	}
	if n := len(proxy.Requests("GET /v2/team/app/manifests/")); n != 1 {
		t.Errorf("%d manifests were downloaded, want one: registries count them", n)
	}
	if got.Name != name || got.Digest != resolved.Digest || len(got.LayerDirs) != 3 || got.SizeBytes <= 0 || got.CreatedAt.IsZero() {
		t.Errorf("unexpected image %+v", got)
	}
	c := got.Config
	if c.User != "1000" || c.WorkingDir != "/srv" || !slices.Equal(c.Entrypoint, []string{"/bin/a"}) || !slices.Equal(c.Cmd, []string{"b"}) ||
		c.Labels["k"] != "v" || c.StopSignal != "SIGINT" || !slices.Equal(c.ExposedPorts, []string{"443/tcp", "80/tcp"}) ||
		!slices.Equal(c.Volumes, []string{"/data"}) || !slices.Equal(c.Env, []string{"PATH=/bin"}) {
		t.Errorf("unexpected config %+v", c)
	}
	if last := reports[len(reports)-1]; last.Phase != PhaseDone || last.LayersDone != 3 || last.BytesDone != last.BytesTotal {
		t.Errorf("last progress is %+v", last)
	}
	if tree := imagetest.Tree(t, got.LayerDirs[0]); tree["top"] != "t" {
		t.Errorf("LayerDirs[0] is not the topmost layer: %v", tree)
	}
	if tree := imagetest.Tree(t, got.LayerDirs[1]); tree["keep/y"] != "y" || !strings.HasPrefix(tree["etc/one"], "D") {
		t.Errorf("middle layer lacks a whiteout or file: %v", tree)
	}

	again, err := s.Lookup(t.Context(), name, nil)
	if err != nil || again != got {
		t.Fatalf("Lookup after the pull: %v, %v", again, err)
	}
	local, err := s.Resolve(t.Context(), name, nil, nil)
	if err != nil || !local.Local || local.Image != got {
		t.Fatalf("Resolve after the pull: %+v, %v", local, err)
	}
	byDigest, err := s.Lookup(t.Context(), proxy.Host+"/team/app@"+got.Digest, nil)
	if err != nil || byDigest.Digest != got.Digest {
		t.Fatalf("Lookup by digest: %v, %v", byDigest, err)
	}
}

// What is in the store survives a restart, and is not asked for again.
func TestReopen(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	name := registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "app", "v1")
	root := filepath.Join(t.TempDir(), "images")
	s := openAt(t, root, nil)
	first, err := s.Ensure(t.Context(), name, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), name, nil, nil, nil); err == nil {
		t.Error("a closed store pulls")
	}
	s = openAt(t, root, nil)
	second, err := s.Lookup(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if second.Digest != first.Digest || !slices.Equal(second.LayerDirs, first.LayerDirs) || second.Platform != first.Platform {
		t.Errorf("after reopening: %+v, before: %+v", second, first)
	}
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("root has mode %v, %v; want 0700", info.Mode(), err)
	}
	if _, err := Open(t.Context(), Options{Root: root}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opening an open store: %v", err)
	}
}

// Pull follows a tag that moves; Ensure does not ask.
func TestPullRefreshesTag(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	name := registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "app", "latest")
	s := openStore(t, nil)
	s.HoldsRestored()
	old, err := s.Ensure(t.Context(), name, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", "2")), "app", "latest")
	same, err := s.Ensure(t.Context(), strings.TrimSuffix(name, ":latest"), nil, nil, nil)
	if err != nil || same != old {
		t.Fatalf("Ensure of a present image: %v, %v", same, err)
	}
	now, err := s.Pull(t.Context(), name, nil, nil, nil)
	if err != nil || now.Digest == old.Digest {
		t.Fatalf("Pull of a moved tag: %v, %v", now, err)
	}
	collect(t, s)
	if _, err := os.Stat(old.LayerDirs[0]); !os.IsNotExist(err) {
		t.Errorf("the old image's layer is still there: %v", err)
	}
	if err := s.Hold("sandbox", old); err == nil {
		t.Error("an image that is gone can be held")
	}
}

func TestPlatforms(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	amd, arm := oneFile("a", "amd"), oneFile("a", "arm")
	amd.Arch, arm.Arch = "amd64", "arm64"
	both := registry.Push(t, imagetest.Layout(t, "", amd, arm), "both", "v1")
	foreign := registry.Push(t, imagetest.Layout(t, "", arm), "arm", "v1")
	foreignIndex := registry.Push(t, imagetest.Layout(t, "", arm, imagetest.Image{Arch: "s390x", Layers: arm.Layers}), "index", "v1")
	s := openStore(t, func(o *Options) { o.DefaultPlatform = &sandbox.Platform{OS: "linux", Arch: "amd64"} })

	img, err := s.Ensure(t.Context(), both, nil, nil, nil)
	if err != nil || imagetest.Tree(t, img.LayerDirs[0])["a"] != "amd" {
		t.Fatalf("default platform: %+v, %v", img, err)
	}
	arm64 := &sandbox.Platform{OS: "Linux", Arch: "aarch64"}
	img, err = s.Ensure(t.Context(), both, arm64, nil, nil)
	if err != nil || imagetest.Tree(t, img.LayerDirs[0])["a"] != "arm" || img.Platform.Arch != "arm64" {
		t.Fatalf("other platform: %+v, %v", img, err)
	}
	if all, _ := s.List(t.Context()); len(all) != 2 {
		t.Errorf("%d images are listed, want one for each platform", len(all))
	}
	for _, name := range []string{foreign, foreignIndex} {
		for what, call := range map[string]func() error{
			"Resolve": func() error { _, err := s.Resolve(t.Context(), name, nil, nil); return err },
			"Ensure":  func() error { _, err := s.Ensure(t.Context(), name, nil, nil, nil); return err },
		} {
			e := wantError(t, call(), sandbox.KindInvalid, sandbox.CodeImageInvalid)
			if !strings.Contains(e.Message, "linux/arm64") || !strings.Contains(e.Message, "linux/amd64") {
				t.Errorf("%s: message %q does not name both platforms", what, e.Message)
			}
		}
	}
	_, err = s.Lookup(t.Context(), both, &sandbox.Platform{OS: "windows", Arch: "amd64"})
	wantError(t, err, sandbox.KindInvalid, sandbox.CodeInvalidParameter)
}

func TestCredentials(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{Login: true})
	name := registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "private", "v1")
	good := &sandbox.RegistryAuth{Username: imagetest.User, Password: imagetest.Password}
	bad := &sandbox.RegistryAuth{Username: imagetest.User, Password: "hunter2-not-it"}

	t.Run("none", func(t *testing.T) {
		s := openStore(t, nil)
		_, err := s.Ensure(t.Context(), name, nil, nil, nil)
		e := wantError(t, err, sandbox.KindNotFound, sandbox.CodeImageNotFound)
		if !strings.Contains(e.Message, "needs credentials") {
			t.Errorf("message %q does not speak of credentials", e.Message)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		s := openStore(t, nil)
		_, err := s.Resolve(t.Context(), name, nil, bad)
		e := wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageAuth)
		if text := fmt.Sprint(e.Message, e.Err); strings.Contains(text, bad.Password) {
			t.Errorf("error text %q holds the password", text)
		}
	})
	t.Run("given", func(t *testing.T) {
		s := openStore(t, nil)
		if _, err := s.Ensure(t.Context(), name, nil, good, nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("docker config", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "config.json")
		config := fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, registry.Host, imagetest.User, imagetest.Password)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, func(o *Options) { o.DockerConfig = file })
		if _, err := s.Ensure(t.Context(), name, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	})
}

// One caller's wrong password must not fail another's pull.
func TestLoginsDoNotShareAPull(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{Login: true})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "private", "v1")
	proxy := registry.Proxy(t)
	started, release := make(chan struct{}), make(chan struct{})
	proxy.SetFault(imagetest.Hang("/manifests/", started, release))
	name := proxy.Host + "/private:v1"
	s := openStore(t, nil)
	errs := make(chan error, 1)
	go func() {
		_, err := s.Ensure(t.Context(), name, nil, &sandbox.RegistryAuth{Username: "mallory", Password: "x"}, nil)
		errs <- err
	}()
	<-started
	close(release)
	if _, err := s.Ensure(t.Context(), name, nil, &sandbox.RegistryAuth{Username: imagetest.User, Password: imagetest.Password}, nil); err != nil {
		t.Error(err)
	}
	if err := <-errs; err != nil {
		wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageAuth)
	}
}

func TestRegistryFailures(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(100_000))), "app", "v1")
	proxy := registry.Proxy(t)
	name := proxy.Host + "/app:v1"
	for _, c := range []struct {
		what  string
		name  string
		fault imagetest.Fault
		kind  sandbox.Kind
		code  string
		says  string
	}{
		{what: "missing repository", name: proxy.Host + "/other:v1", kind: sandbox.KindNotFound, code: sandbox.CodeImageNotFound, says: "/other:v1"},
		{what: "missing tag", name: proxy.Host + "/app:v2", kind: sandbox.KindNotFound, code: sandbox.CodeImageNotFound, says: "/app:v2"},
		{what: "denied without login", fault: imagetest.Answer("/manifests/", 403), kind: sandbox.KindNotFound, code: sandbox.CodeImageNotFound, says: "needs credentials"},
		{what: "broken registry", fault: imagetest.Answer("/v2/", 503), kind: sandbox.KindUnavailable, code: sandbox.CodeImagePullFailed, says: "503"},
		{what: "wrong bytes in a layer", fault: imagetest.Spoil(50_000), kind: sandbox.KindInternal, code: sandbox.CodeImagePullFailed, says: "damaged"},
		{what: "wrong bytes in the config", fault: imagetest.Spoil(20), kind: sandbox.KindInternal, code: sandbox.CodeImagePullFailed, says: "damaged"},
		{what: "endless manifest", fault: endless("/manifests/"), kind: sandbox.KindInternal, code: sandbox.CodeImagePullFailed, says: ""},
		{what: "web page", fault: page, kind: sandbox.KindInvalid, code: sandbox.CodeImageInvalid, says: "text/html"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := openStore(t, nil)
			s.HoldsRestored()
			proxy.SetFault(c.fault)
			defer proxy.SetFault(nil)
			if c.name == "" {
				c.name = name
			}
			_, err := s.Ensure(t.Context(), c.name, nil, nil, nil)
			e := wantError(t, err, c.kind, c.code)
			if !strings.Contains(e.Message, c.says) || e.Reason != sandbox.ReasonImagePullFailed {
				t.Errorf("message %q (reason %s) does not contain %q", e.Message, e.Reason, c.says)
			}
			// Nothing wrong was kept that would spoil the next attempt.
			proxy.SetFault(nil)
			if c.name != name {
				return
			}
			if _, err := s.Ensure(t.Context(), name, nil, nil, nil); err != nil {
				t.Errorf("second attempt: %v", errors.Join(err, errors.Unwrap(err)))
			}
		})
	}
}

func endless(part string) imagetest.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, part) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		block := make([]byte, 1<<20)
		for r.Method == http.MethodGet {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
}

func page(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<html>Welcome</html>")
}

func TestRateLimit(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "app", "v1")
	proxy := registry.Proxy(t)
	proxy.SetFault(imagetest.Answer("/v2/", 429, "Retry-After", "120"))
	s := openStore(t, nil)
	_, err := s.Resolve(t.Context(), proxy.Host+"/app:v1", nil, nil)
	e := wantError(t, err, sandbox.KindBusy, sandbox.CodeImagePullFailed)
	if e.RetryAfter != 2*time.Minute {
		t.Errorf("RetryAfter is %v, want what the registry said, 2m", e.RetryAfter)
	}
	if n := len(proxy.Requests("/v2/")); n > 2 {
		t.Errorf("%d requests were made into a rate limit", n)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	s := openStore(t, nil)
	_, err = s.Resolve(t.Context(), host+"/app:v1", nil, nil)
	e := wantError(t, err, sandbox.KindUnavailable, sandbox.CodeImagePullFailed)
	if !strings.Contains(e.Message, host) || !strings.Contains(e.Message, "refused") || e.RetryAfter == 0 {
		t.Errorf("message %q does not say which host and why", e.Message)
	}
}

func TestSilentRegistry(t *testing.T) {
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hang.Close()
	defer hang.CloseClientConnections()
	s := openStore(t, func(o *Options) { o.ResolveTimeout = 50 * time.Millisecond })
	_, err := s.Resolve(t.Context(), hang.Listener.Addr().String()+"/app:v1", nil, nil)
	e := wantError(t, err, sandbox.KindUnavailable, sandbox.CodeImagePullFailed)
	if !strings.Contains(e.Message, "did not answer in time") {
		t.Errorf("message %q does not speak of time", e.Message)
	}
}

func TestUntrustedCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	s := openStore(t, nil)
	_, err := s.Resolve(t.Context(), server.Listener.Addr().String()+"/app:v1", nil, nil)
	if e := sandbox.AsError(err); e.Kind == sandbox.KindNotFound {
		t.Errorf("got %v, want a complaint about the connection", e)
	}
}

// A connection that is lost in the middle of a layer is taken up where it broke.
func TestResumeWithinAPull(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(1<<20))), "app", "v1")
	proxy := registry.Proxy(t)
	proxy.SetFault(imagetest.Cut(300_000, 2))
	s := openStore(t, nil)
	if _, err := s.Ensure(t.Context(), proxy.Host+"/app:v1", nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if resumed := proxy.Requests("bytes="); len(resumed) == 0 {
		t.Errorf("no request asked for a range: %v", proxy.Requests("/blobs/"))
	}
}

// What a cancelled pull has downloaded is there for the next, also after a
// restart, and goes when it is pruned.
func TestResumeAfterRestart(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(4<<20))), "app", "v1")
	proxy := registry.Proxy(t)
	name := proxy.Host + "/app:v1"
	root := filepath.Join(t.TempDir(), "images")
	s := openAt(t, root, nil)

	ctx, cancel := context.WithCancel(t.Context())
	proxy.SetFault(cutThenHang(3 << 20))
	enough := func(p Progress) {
		if p.BytesDone > 2<<20 {
			cancel()
		}
	}
	if _, err := s.Ensure(ctx, name, nil, nil, enough); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled pull: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	proxy.SetFault(nil)
	s = openAt(t, root, nil)
	if _, err := s.Ensure(t.Context(), name, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if resumed := proxy.Requests("bytes="); len(resumed) != 1 {
		t.Errorf("ranges asked for: %v, want one", resumed)
	}
	s.HoldsRestored()
	if err := s.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, s); len(left) != 0 {
		t.Errorf("after removal there is still %v", left)
	}
}

// cutThenHang sends n bytes of a blob and hangs.
func cutThenHang(n int) imagetest.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		body := recorder.Body.Bytes()
		for k, v := range recorder.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(recorder.Code)
		if len(body) <= n {
			w.Write(body)
			return
		}
		w.Write(body[:n])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

// Everyone who wants an image shares one pull; those who leave do not end it.
func TestSharedPull(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(100_000))), "app", "v1")
	proxy := registry.Proxy(t)
	started, release := make(chan struct{}), make(chan struct{})
	proxy.SetFault(imagetest.Hang("/blobs/", started, release))
	name := proxy.Host + "/app:v1"
	s := openStore(t, nil)

	impatient, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := s.Ensure(impatient, name, nil, nil, nil)
		left <- err
	}()
	<-started
	var wg sync.WaitGroup
	joined := make(chan struct{}, 5)
	for range 5 {
		wg.Go(func() {
			first := sync.OnceFunc(func() { joined <- struct{}{} })
			if _, err := s.Ensure(t.Context(), name, nil, nil, func(Progress) { first() }); err != nil {
				t.Error(err)
			}
		})
	}
	for range 5 {
		<-joined
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	wg.Wait()
	if n := len(proxy.Requests("GET /v2/app/blobs/")); n != 2 {
		t.Errorf("%d blobs were downloaded, want config and layer once each", n)
	}
}

// When nobody waits any more the pull ends, and a later one starts afresh.
func TestAbandonedPull(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(100_000))), "app", "v1")
	proxy := registry.Proxy(t)
	started := make(chan struct{})
	gone := make(chan struct{})
	hang := imagetest.Hang("/blobs/", started, nil)
	proxy.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		hang(w, r, next)
		if strings.Contains(r.URL.Path, "/blobs/") {
			close(gone)
		}
	})
	s := openStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Ensure(ctx, proxy.Host+"/app:v1", nil, nil, nil)
		done <- err
	}()
	<-started
	cancel()
	<-gone // the request to the registry ended
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	proxy.SetFault(nil)
	if _, err := s.Ensure(t.Context(), proxy.Host+"/app:v1", nil, nil, nil); err != nil {
		t.Error(err)
	}
}

// Images with common layers, pulled at the same time, share them.
func TestSharedLayers(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	base := imagetest.Files(map[string]string{"base": noise(200_000)})
	var names []string
	for i := range 4 {
		img := imagetest.Image{Layers: []imagetest.Layer{base, imagetest.Files(map[string]string{"own": fmt.Sprint(i)})}}
		names = append(names, registry.Push(t, imagetest.Layout(t, "", img), fmt.Sprintf("app%d", i), "v1"))
	}
	s := openStore(t, nil)
	s.HoldsRestored()
	var wg sync.WaitGroup
	dirs := make([]string, len(names))
	for i, name := range names {
		wg.Go(func() {
			img, err := s.Ensure(t.Context(), name, nil, nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			dirs[i] = img.LayerDirs[1]
		})
	}
	wg.Wait()
	if slices.Sort(dirs); dirs[0] != dirs[3] || dirs[0] == "" {
		t.Errorf("the common layer is at %v", dirs)
	}
	for _, name := range names[1:] {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if tree := imagetest.Tree(t, dirs[0]); len(tree["base"]) != 200_000 {
		t.Error("the common layer went with other images")
	}
}

// A new attempt must not lose its lease to the end of the one before.
func TestPullsInARow(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	name := registry.Push(t, imagetest.Layout(t, "", oneFile("a", noise(100_000))), "app", "v1")
	s := openStore(t, nil)
	s.HoldsRestored()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		go s.Pull(ctx, name, nil, nil, func(Progress) { cancel() })
		if _, err := s.Pull(t.Context(), name, nil, nil, nil); err != nil {
			t.Fatal(err, sandbox.AsError(err).Err)
		}
		cancel()
		if err := s.Remove(t.Context(), name); err != nil && sandbox.AsError(err).Kind != sandbox.KindNotFound {
			t.Fatal(err)
		}
	}
}
