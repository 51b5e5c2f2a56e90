package imagetest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The login of a registry started with Login.
const (
	User     = "alice"
	Password = "open sesame"
	// passwordHash is Password with bcrypt, cost 4, as htpasswd -B writes it.
	passwordHash = "$2b$04$.AQHJxN73.q3ZCn.FucP9OgjFkkiTbdUuBL0YixZq8GtDzJUHIhWm"
)

// RegistryOptions configure a test registry.
type RegistryOptions struct {
	// Login demands User and Password for everything.
	Login bool
}

// Registry is a running docker-registry.
type Registry struct {
	// Host is its address, for image references.
	Host  string
	login bool
}

// startTimeout bounds the start of a registry, stopTimeout its end.
const (
	startTimeout = 20 * time.Second
	stopTimeout  = 5 * time.Second
)

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// StartRegistry runs docker-registry on a free loopback port until the test
// ends. It skips the test where the program is not installed.
func StartRegistry(t testing.TB, o RegistryOptions) *Registry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry (Debian package docker-registry)")
	}
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {accesslog: {disabled: true}, level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\nhttp: {addr: '127.0.0.1:0', secret: test}\n",
		filepath.Join(dir, "data"))
	if o.Login {
		passwords := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(passwords, []byte(User+":"+passwordHash+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %q}\n", passwords)
	}
	configFile := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(configFile, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", configFile)
	// It dies with the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	cmd.Stdout, cmd.Stderr = pw, pw
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	done := make(chan struct{})
	go watch(pr, addr, done)
	t.Cleanup(func() { stop(t, cmd, done) })
	select {
	case host := <-addr:
		return &Registry{Host: host, login: o.Login}
	case <-done:
		t.Fatal("docker-registry ended at once")
	case <-time.After(startTimeout):
		t.Fatal("docker-registry did not start in time")
	}
	return nil
}

// watch reads the registry's log to its end and picks the address out of it.
func watch(r io.ReadCloser, addr chan<- string, done chan<- struct{}) {
	defer close(done)
	defer r.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			select {
			case addr <- m[1]:
			default:
			}
		}
	}
}

func stop(t testing.TB, cmd *exec.Cmd, done <-chan struct{}) {
	timer := time.AfterFunc(stopTimeout, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Logf("stopping docker-registry: %v", err)
	}
	cmd.Wait()
	<-done
}

// Push uploads the first image of a layout as repository:tag and returns the
// reference under which it can be pulled.
func (r *Registry) Push(t testing.TB, layout, repository, tag string) string {
	t.Helper()
	top := Top(t, layout)
	r.pushTree(t, layout, repository, top, tag)
	return r.Host + "/" + repository + ":" + tag
}

func (r *Registry) pushTree(t testing.TB, layout, repository string, d ocispec.Descriptor, tag string) {
	t.Helper()
	data, err := os.ReadFile(blobPath(layout, d))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case images.IsIndexType(d.MediaType):
		var index ocispec.Index
		readJSON(t, blobPath(layout, d), &index)
		for _, m := range index.Manifests {
			r.pushTree(t, layout, repository, m, m.Digest.String())
		}
	case images.IsManifestType(d.MediaType):
		var manifest ocispec.Manifest
		readJSON(t, blobPath(layout, d), &manifest)
		for _, blob := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
			r.pushBlob(t, layout, repository, blob)
		}
	}
	resp := r.do(t, http.MethodPut, "http://"+r.Host+"/v2/"+repository+"/manifests/"+tag, d.MediaType, data)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("pushing manifest: %s", resp.Status)
	}
}

func (r *Registry) pushBlob(t testing.TB, layout, repository string, d ocispec.Descriptor) {
	t.Helper()
	data, err := os.ReadFile(blobPath(layout, d))
	if err != nil {
		t.Fatal(err)
	}
	resp := r.do(t, http.MethodPost, "http://"+r.Host+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("starting upload: %s", resp.Status)
	}
	location, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	query := location.Query()
	query.Set("digest", d.Digest.String())
	location.RawQuery = query.Encode()
	resp = r.do(t, http.MethodPut, location.String(), "application/octet-stream", data)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("uploading blob: %s", resp.Status)
	}
}

func (r *Registry) do(t testing.TB, method, address, contentType string, body []byte) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.login {
		req.SetBasicAuth(User, Password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Logf("%s %s: %s", method, address, strings.TrimSpace(string(answer)))
	}
	return resp
}
