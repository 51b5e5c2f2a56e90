package local

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/intercept"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// execdStandIn answers on a socket like an execd that somebody has taken over.
func execdStandIn(t *testing.T, h http.HandlerFunc) (socket string) {
	t.Helper()
	// Not t.TempDir: its name may be too long for a socket's.
	dir, err := os.MkdirTemp("", "execd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return socket
}

func TestTrustOfAHostileExecd(t *testing.T) {
	told := &hostapi.Trust{Files: []hostapi.TrustFile{{Path: intercept.CertPath, Content: make([]byte, 1<<20)}}, Env: map[string]string{"A": "b"}}
	refusal := func(code, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusUnprocessableEntity)
			json.NewEncoder(w).Encode(hostapi.Error{Code: code, Message: message})
		}
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := io.WriteString(w, strings.Repeat("x", 64<<10)); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   sandbox.Kind
		want   string
	}{
		"says nothing":        {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, sandbox.KindUnavailable, "try again"},
		"never ends":          {endless, sandbox.KindUnavailable, "try again"},
		"knows no such route": {http.NotFound, sandbox.KindUnavailable, "try again"},
		"has no place":        {refusal(hostapi.CodeTrustUnwritable, "writing /etc: read-only"), sandbox.KindConflict, "writing /etc: read-only"},
		"refuses oddly":       {refusal("ANY", "thing"), sandbox.KindUnavailable, "try again"},
		"talks too much":      {refusal(hostapi.CodeTrustUnwritable, "\x1b[2J"+strings.Repeat("é", 9000)), sandbox.KindConflict, "?[2Jé"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := sendTrustTo(ctx, execdStandIn(t, c.answer), told)
			if err == nil {
				t.Fatal("it passes for success")
			}
			var known *sandbox.Error
			if !errors.As(trustError("sb", err), &known) || known.Kind != c.kind || known.Code != sandbox.CodeNotTrusted ||
				!strings.Contains(known.Message, c.want) || strings.ContainsRune(known.Message, '\x1b') || len(known.Message) > 1000 {
				t.Errorf("%+v", known)
			}
		})
	}
	t.Run("does as it is told", func(t *testing.T) {
		var got hostapi.Trust
		socket := execdStandIn(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.Header.Get(hostapi.TokenHeader) != "token" || json.NewDecoder(r.Body).Decode(&got) != nil {
				t.Error("the request is not one")
			}
		})
		if err := sendTrustTo(t.Context(), socket, told); err != nil || len(got.Files) != 1 || len(got.Files[0].Content) != 1<<20 || got.Env["A"] != "b" {
			t.Errorf("%v: %d files, %v", err, len(got.Files), got.Env)
		}
	})
}

// What the request or the image set itself is handled as at create.
func TestTrustOfAnImage(t *testing.T) {
	layer := t.TempDir()
	if err := os.MkdirAll(filepath.Join(layer, "usr/lib/jvm"), 0o755); err != nil {
		t.Fatal(err)
	}
	authority, err := intercept.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{opts: Options{DataDir: t.TempDir(), Authority: authority.PEM()}}
	img := &image.Image{Digest: "sha256:1", LayerDirs: []string{layer},
		Config: image.Config{Env: []string{"JAVA_TOOL_OPTIONS=-Xmx1g", "PIP_CERT=/image", "A=b"}}}
	spec := &sandbox.Spec{Env: map[string]string{"CURL_CA_BUNDLE": "/mine", "OTHER": "x"}}
	told, err := e.trustOf(img, ownTrustEnv(spec))
	if err != nil {
		t.Fatal(err)
	}
	if len(told.Files) != 3 || told.Files[0].Path != intercept.CertPath || string(told.Files[0].Content) != string(e.opts.Authority) {
		t.Errorf("%d files", len(told.Files))
	}
	for name, want := range map[string]string{"CURL_CA_BUNDLE": "", "OTHER": "", "A": "", "PIP_CERT": intercept.BundlePath, "NODE_EXTRA_CA_CERTS": intercept.CertPath} {
		if told.Env[name] != want {
			t.Errorf("%s=%q, want %q", name, told.Env[name], want)
		}
	}
	if v := told.Env["JAVA_TOOL_OPTIONS"]; !strings.HasPrefix(v, "-Xmx1g -D") {
		t.Errorf("JAVA_TOOL_OPTIONS=%q", v)
	}
	told, err = e.trustOf(img, map[string]string{"JAVA_TOOL_OPTIONS": "-Xmx2g"})
	if _, set := told.Env["JAVA_TOOL_OPTIONS"]; err != nil || set {
		t.Errorf("the request's JAVA_TOOL_OPTIONS became %q, %v", told.Env["JAVA_TOOL_OPTIONS"], err)
	}
}

func sendTrustTo(ctx context.Context, socket string, told *hostapi.Trust) error {
	conn, err := dialExecd(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	return sendTrust(ctx, conn, "token", told)
}

// asked is a policy with conditions on requests.
func asked(t *testing.T) *policy.Policy {
	t.Helper()
	p, err := policy.Policy{DefaultAction: policy.Deny, Egress: []policy.Rule{
		{Action: policy.Allow, Target: "ruled.example", HTTP: &policy.HTTP{Methods: []string{"GET"}}}}}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// A sandbox is told once, at the latest when a server finds that it was not.
func TestTrustThatComesLater(t *testing.T) {
	h := newHost(t)
	authority, err := intercept.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h.opts.Authority = authority.PEM()
	e, _ := h.open(t)
	told := func(id string) bool {
		t.Helper()
		st, err := e.in.loadState(id)
		if err != nil {
			t.Fatal(err)
		}
		_, code := run(t, e, id, `test -s "$SSL_CERT_FILE" && test -s "$NODE_EXTRA_CA_CERTS"`)
		if (code == "0") != (st.Trust != "") {
			t.Errorf("the record says %q of a sandbox that ended with %q", st.Trust, code)
		}
		return code == "0"
	}
	plain := func(s *sandbox.Spec) { s.NetworkPolicy = denyBut(t, "plain.example") }
	ctx := context.Background()

	mounted := mustCreate(t, e, func(s *sandbox.Spec) { s.NetworkPolicy = asked(t) })
	late, crashed, paused := mustCreate(t, e, plain), mustCreate(t, e, plain), mustCreate(t, e, plain)
	if !told(mounted) || told(late) || told(crashed) || told(paused) {
		t.Fatal("the creates are not what they should be")
	}
	if err := e.SetPolicy(ctx, late, denyBut(t, "other.example")); err != nil || told(late) {
		t.Errorf("a rule that looks at no requests: %v", err)
	}
	for range 2 {
		if err := e.SetPolicy(ctx, late, asked(t)); err != nil || !told(late) {
			t.Errorf("a rule that does: %v", err)
		}
	}
	if err := e.Trust(ctx, mounted); err != nil {
		t.Errorf("one that was told at create: %v", err)
	}
	if err := e.Pause(ctx, paused); err != nil {
		t.Fatal(err)
	}
	var known *sandbox.Error
	if err := e.SetPolicy(ctx, paused, asked(t)); !errors.As(err, &known) || known.Code != sandbox.CodeNotTrusted || known.Kind != sandbox.KindConflict {
		t.Errorf("one that is paused: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	// The server died when it had recorded the policies, and done no more.
	var recorded []*sandbox.Sandbox
	for _, id := range []string{mounted, late, crashed, paused} {
		r := &sandbox.Sandbox{ID: id, Token: "token-of-" + id, Spec: sandbox.Spec{Image: testImage, NetworkPolicy: asked(t)}}
		r.Status.State = sandbox.Running
		recorded = append(recorded, r)
	}
	recorded[3].Status.State = sandbox.Paused
	e, found := h.open(t, recorded...)
	defer e.Close()
	if found[crashed] != sandbox.FoundRunning || found[paused] != sandbox.FoundPaused {
		t.Fatalf("found %v", found)
	}
	for name, id := range map[string]string{"mounted": mounted, "late": late, "crashed": crashed} {
		if !told(id) {
			t.Errorf("%s is not told after a restart", name)
		}
	}
	if err := e.Resume(ctx, paused); err != nil || !told(paused) {
		t.Errorf("one that was paused meanwhile: %v", err)
	}
}
