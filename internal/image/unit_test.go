package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestParseRef(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"python":                    "docker.io/library/python:latest",
		"python:3.11":               "docker.io/library/python:3.11",
		"user/app":                  "docker.io/user/app:latest",
		"ghcr.io/a/b:v1":            "ghcr.io/a/b:v1",
		"localhost:5000/x":          "localhost:5000/x:latest",
		"127.0.0.1:5000/a/b:c":      "127.0.0.1:5000/a/b:c",
		"python@sha256:" + sum:      "docker.io/library/python@sha256:" + sum,
		"python:3.11@sha256:" + sum: "docker.io/library/python@sha256:" + sum,
		"sha256:" + sum:             "sha256:" + sum,
		"[::1]:5000/x:1":            "[::1]:5000/x:1",
	} {
		r, err := parseRef(in)
		if err != nil || r.name != want {
			t.Errorf("%q: %q, %v; want %q", in, r.name, err, want)
		}
	}
	for _, bad := range []string{"", " ", "Python", "a//b", "a:b:c", "http://x/y", "../x", "x@sha256:short", "a b", "x:" + strings.Repeat("t", 200), strings.Repeat("x", 100_000), "\x00", sum} {
		_, err := parseRef(bad)
		e := wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageInvalid)
		if !strings.Contains(e.Message, "image.uri") || len(e.Message) > 1500 {
			t.Errorf("%.50q: message %.200q does not name image.uri or is too long", bad, e.Message)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"python:3.11", "a/b@sha256:" + strings.Repeat("0", 64), "localhost:5000/x", "sha256:" + strings.Repeat("f", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := parseRef(in)
		if err != nil {
			return
		}
		if strings.ContainsAny(r.name, " \n\x00") {
			t.Fatalf("%q has a name that records cannot hold: %q", in, r.name)
		}
		again, err := parseRef(r.name)
		if err != nil || again.name != r.name {
			t.Fatalf("%q is not stable: %q, then %q, %v", in, r.name, again.name, err)
		}
		if r.repository != "" && repositoryOf(r.name) != r.repository {
			t.Fatalf("repository of %q is %q, want %q", r.name, repositoryOf(r.name), r.repository)
		}
	})
}

func TestRefCacheIsBounded(t *testing.T) {
	var c refCache
	for i := range 3 * refCacheSize {
		if _, err := c.parse(fmt.Sprintf("app:v%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.refs) > refCacheSize {
		t.Errorf("the cache holds %d references", len(c.refs))
	}
}

func TestDockerLogin(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("u:p:with:colons"))
	for _, c := range []struct{ what, config, registry, user, secret string }{
		{"auth", `{"auths":{"ghcr.io":{"auth":"` + auth + `"}}}`, "ghcr.io", "u", "p:with:colons"},
		{"hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"` + auth + `"}}}`, "docker.io", "u", "p:with:colons"},
		{"with scheme", `{"auths":{"https://r.example:5000":{"username":"a","password":"b"}}}`, "r.example:5000", "a", "b"},
		{"token", `{"auths":{"ghcr.io":{"auth":"` + auth + `","identitytoken":"tok"}}}`, "ghcr.io", "", "tok"},
		{"another registry", `{"auths":{"ghcr.io":{"auth":"` + auth + `"}}}`, "evil-ghcr.io", "", ""},
		{"empty entry", `{"auths":{"ghcr.io":{}}}`, "ghcr.io", "", ""},
		{"empty", `{}`, "ghcr.io", "", ""},
	} {
		user, secret, err := parseDockerLogin("config.json", []byte(c.config), c.registry)
		if err != nil || user != c.user || secret != c.secret {
			t.Errorf("%s: %q, %q, %v", c.what, user, secret, err)
		}
	}
	for _, bad := range []string{`{"auths":{"r":{"auth":"s3cr3t"}}}`, `{"auths":{"r":"s3cr3t"}}`, `s3cr3t`,
		`{"credHelpers":{"r":"../../s3cr3t"}}`, `{"credsStore":"no-such-helper-s3cr3t"}`} {
		_, _, err := parseDockerLogin("config.json", []byte(bad), "r")
		e := sandbox.AsError(err)
		if err == nil || strings.Contains(e.Message, "s3cr3t") {
			t.Errorf("%s: error %v", bad, e)
		}
	}
	if _, _, err := dockerLogin(filepath.Join(t.TempDir(), "none"), "r"); err != nil {
		t.Errorf("a missing file: %v", err)
	}
}

func TestCredentialHelper(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get r.example' ] || { echo 'credentials not found in native keychain'; exit 1; }\necho '{\"ServerURL\":\"r.example\",\"Username\":\"u\",\"Secret\":\"p\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, config := range []string{`{"credsStore":"test"}`, `{"credHelpers":{"r.example":"test"}}`} {
		if user, secret, err := parseDockerLogin("", []byte(config), "r.example"); user != "u" || secret != "p" || err != nil {
			t.Errorf("%s: %q, %q, %v", config, user, secret, err)
		}
	}
	if user, secret, err := parseDockerLogin("", []byte(`{"credsStore":"test"}`), "other.example"); user+secret != "" || err != nil {
		t.Errorf("unknown server: %q, %q, %v", user, secret, err)
	}
}

// A registry that redirects elsewhere does not take the login along.
func TestCredentialsOnlyForTheirHost(t *testing.T) {
	c := &credentials{host: "registry-1.docker.io", registry: "docker.io", given: &sandbox.RegistryAuth{Username: "u", Password: "p"}}
	if user, _, _ := c.lookup("evil.example"); user != "" {
		t.Error("the login is given to another host")
	}
	if user, _, _ := c.lookup("registry-1.docker.io"); user != "u" {
		t.Error("the login is not given to its host")
	}
}

func FuzzDockerLogin(f *testing.F) {
	f.Add([]byte(`{"auths":{"r":{"auth":"dTpw"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("cred")) || bytes.Contains(data, []byte("Cred")) || bytes.Contains(data, []byte(`\u`)) {
			t.Skip("would run a helper")
		}
		parseDockerLogin("config.json", data, "r")
	})
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	secret := "X-Amz-Signature=abcdef0123"
	cause := &url.Error{Op: "Get", URL: "https://user:pw@cdn.example/blob?" + secret, Err: io.ErrUnexpectedEOF}
	for _, err := range []error{cause, fmt.Errorf("fetching https://user:pw@h/x?account=joe&%s: %w", secret, errors.New("boom"))} {
		e := sandbox.AsError(failure(ref{name: "x", host: "h"}, false, err))
		if text := fmt.Sprint(e.Message, e.Err); strings.Contains(text, secret) || strings.Contains(text, "joe") || strings.Contains(text, "pw@") {
			t.Errorf("error text %q holds a secret", text)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"":                      defaultRateRetry,
		"7":                     7 * time.Second,
		"0":                     time.Second,
		"-5":                    time.Second,
		"1e9":                   defaultRateRetry,
		"999999999999999999999": defaultRateRetry,
		"99999999":              maxRateRetry,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestSchemes(t *testing.T) {
	s := &Store{opts: Options{PlainHTTP: []string{"registry.lan", "10.0.0.1:5000"}}}
	for host, want := range map[string]string{
		"docker.io": "[https]", "registry.lan": "[http]", "registry.lan:5000": "[http]", "10.0.0.1:5000": "[http]",
		"10.0.0.1": "[https]", "localhost:5000": "[http https]", "127.0.0.1": "[http https]", "localhost.evil.example": "[https]",
	} {
		if got := fmt.Sprint(s.schemes(host)); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}

func TestProgressString(t *testing.T) {
	for p, want := range map[Progress]string{
		{Phase: PhaseResolving}: "Looking up the image in its registry.",
		{Phase: PhaseDownloading, LayersDone: 1, LayersTotal: 3, BytesDone: 1_500_000, BytesTotal: 20_000_000}: "Downloading the image: 1 of 3 layers, 1.5 MB of 20 MB.",
		{Phase: PhaseUnpacking, LayersDone: 2, LayersTotal: 3}:                                                 "Unpacking the image: 2 of 3 layers.",
		{Phase: PhaseDone}: "The image is ready.",
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
}

func TestKeyedLock(t *testing.T) {
	var k keyedLock
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for a locked key: %v", err)
	}
	unlock()
	if len(k.keys) != 0 {
		t.Errorf("%d keys remain", len(k.keys))
	}
}

func BenchmarkLookup(b *testing.B) {
	s := openStore(b, nil)
	if _, err := s.Import(b.Context(), bytes.NewReader(imagetest.Archive(b, "python:3.11", oneFile("a", "1"))), ""); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Lookup(b.Context(), "python:3.11", nil); err != nil {
			b.Fatal(err)
		}
	}
}

// blob is a content.ReaderAt in memory.
type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (b blob) Size() int64 { return b.Reader.Size() }

func unpackForFuzz(ctx context.Context, data []byte, dir string, l *limits) {
	applyLayer(ctx, blob{bytes.NewReader(data)}, dir, nil, digest.SHA256, l)
	applyLayer(ctx, blob{bytes.NewReader(data)}, dir, []string{dir}, digest.SHA256, l)
}
