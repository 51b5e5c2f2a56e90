package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

var (
	_ Manager = (*sandbox.Manager)(nil)
	_ Images  = (*image.Store)(nil)
)

// patience bounds what should take no time at all; it only matters for tests
// that fail.
const patience = 20 * time.Second

const testKey = "the-api-key"

// created is when the sandboxes of these tests were made, with more digits than
// are shown.
var created = time.Date(2030, 1, 2, 3, 4, 5, 678901234, time.UTC)

// manager is a Manager without an engine: it remembers what it was asked. The
// real one has tests of its own; these are about what the server makes of
// requests and answers.
type manager struct {
	mu       sync.Mutex
	byID     map[string]*sandbox.Sandbox
	creates  []sandbox.CreateOptions
	filters  []sandbox.Filter
	patches  []map[string]*string
	renewals []string
	state    sandbox.State // of new sandboxes
	fail     error         // of every call that can fail
	trust    error         // of telling a sandbox whom to trust
	panics   atomic.Bool
	replay   bool
	waited   func(ctx context.Context) error
	dial     func(ctx context.Context, id string, port int) (net.Conn, error)
	logText  string
	log      io.Reader
	logOpts  sandbox.LogOptions
	volumes  []sandbox.VolumeInfo
	removed  []string
}

func newManager() *manager {
	return &manager{byID: make(map[string]*sandbox.Sandbox), state: sandbox.Running}
}

func (m *manager) put(id string, state sandbox.State) *sandbox.Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &sandbox.Sandbox{ID: id, CreatedAt: created, Token: "token-of-" + id, EgressToken: "egress-of-" + id, Entrypoint: []string{"sh"},
		Spec:   sandbox.Spec{Image: "python:3.11", Auth: &sandbox.RegistryAuth{Username: "u", Password: "hunter2"}},
		Status: sandbox.Status{State: state, LastTransitionAt: created}}
	m.byID[id] = s
	return s.Clone()
}

func (m *manager) check() error {
	if m.panics.Load() {
		panic("a bug")
	}
	return m.fail
}

func (m *manager) Create(_ context.Context, opts sandbox.CreateOptions) (*sandbox.Sandbox, bool, error) {
	if err := m.check(); err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	m.creates = append(m.creates, opts)
	id := fmt.Sprintf("sb-%d", len(m.creates))
	m.mu.Unlock()
	m.put(id, m.state)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[id]
	s.Spec = opts.Spec.Clone()
	s.Entrypoint = opts.Spec.Entrypoint
	if t := opts.Spec.Timeout; t != nil {
		at := created.Add(*t)
		s.ExpiresAt = &at
	}
	return s.Clone(), m.replay, nil
}

func (m *manager) Wait(ctx context.Context, id string) (*sandbox.Sandbox, error) {
	if m.waited != nil {
		if err := m.waited(ctx); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	if s := m.byID[id]; s != nil {
		s.Status.State = sandbox.Running
	}
	m.mu.Unlock()
	return m.Get(id)
}

func (m *manager) Get(id string) (*sandbox.Sandbox, error) {
	if m.panics.Load() {
		panic("a bug")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.byID[id]; s != nil {
		return s.Clone(), nil
	}
	return nil, sandbox.ErrNotFound(id)
}

func (m *manager) List(f sandbox.Filter) ([]*sandbox.Sandbox, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.filters = append(m.filters, f)
	ids := slices.Sorted(maps.Keys(m.byID))
	var page []*sandbox.Sandbox
	for i := (f.Page - 1) * f.PageSize; i < min(f.Page*f.PageSize, len(ids)); i++ {
		page = append(page, m.byID[ids[i]].Clone())
	}
	return page, len(ids)
}

func (m *manager) PatchMetadata(_ context.Context, id string, patch map[string]*string) (*sandbox.Sandbox, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.patches = append(m.patches, patch)
	m.mu.Unlock()
	return m.Get(id)
}

func (m *manager) EnforcesPolicies() bool { return true }

func (m *manager) HoldPolicy(ctx context.Context, id string, use func(context.Context, *sandbox.HeldPolicy) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[id]
	if s == nil {
		return sandbox.ErrNotFound(id)
	}
	return use(ctx, &sandbox.HeldPolicy{Sandbox: s, Trust: func(context.Context) error { return m.trust }})
}

func (m *manager) SetPolicy(_ context.Context, id string, version int64, edit func(*policy.Policy) (*policy.Policy, error)) (*sandbox.Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[id]
	if s == nil {
		return nil, sandbox.ErrNotFound(id)
	}
	if version >= 0 && version != s.PolicyVersion {
		return nil, sandbox.Errorf(sandbox.KindConflict, sandbox.CodePolicyVersion, "changed")
	}
	p, err := edit(s.Spec.NetworkPolicy.Clone())
	if err != nil {
		return nil, err
	}
	s.Spec.NetworkPolicy = p
	s.PolicyVersion++
	return s.Clone(), nil
}

func (m *manager) Renew(_ context.Context, id string, at time.Time) (*sandbox.Sandbox, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	s, err := m.Get(id)
	if err != nil {
		return nil, err
	}
	s.ExpiresAt = &at
	return s, nil
}

func (m *manager) RenewOnAccess(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renewals = append(m.renewals, id)
	return nil
}

func (m *manager) simple(id string) error {
	if err := m.check(); err != nil {
		return err
	}
	_, err := m.Get(id)
	return err
}

func (m *manager) Pause(_ context.Context, id string) error  { return m.simple(id) }
func (m *manager) Resume(_ context.Context, id string) error { return m.simple(id) }

func (m *manager) Delete(_ context.Context, id string) error {
	if err := m.simple(id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, id)
	return nil
}

func (m *manager) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	if m.dial == nil {
		return nil, sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotRunning, "Sandbox %q is paused. Resume it first.", id)
	}
	return m.dial(ctx, id, port)
}

func (m *manager) Logs(_ context.Context, id string, opts sandbox.LogOptions) (io.ReadCloser, error) {
	if err := m.simple(id); err != nil {
		return nil, err
	}
	m.logOpts = opts
	if m.log != nil {
		return io.NopCloser(m.log), nil
	}
	return io.NopCloser(strings.NewReader(m.logText)), nil
}

func (m *manager) Events(id string) (sandbox.Events, error) {
	s, err := m.Get(id)
	if err != nil {
		return sandbox.Events{}, err
	}
	return s.Events, m.check()
}

// FollowEvents gives what there is and then ends, as for an ended sandbox.
func (m *manager) FollowEvents(_ context.Context, id string, after int64, give func([]sandbox.Event) error) error {
	events, err := m.Events(id)
	if fresh := events.After(after); err == nil && len(fresh) > 0 {
		err = give(fresh)
	}
	return err
}

func (m *manager) Volumes(context.Context) ([]sandbox.VolumeInfo, error) {
	return m.volumes, m.check()
}

func (m *manager) RemoveVolume(_ context.Context, name string) error {
	m.removed = append(m.removed, name)
	return m.check()
}

func (m *manager) Stats() sandbox.ManagerStats {
	return sandbox.ManagerStats{ByState: map[sandbox.State]int{sandbox.Running: 3}, Creates: 7, Held: 2}
}

// fixture is a running server with its manager.
type fixture struct {
	t   testing.TB
	m   *manager
	s   *Server
	url string
	log *lockedBuffer
}

func start(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, m: newManager(), log: new(lockedBuffer)}
	opts := Options{Manager: f.m, APIKey: testKey, Version: "1.2.3",
		Logger: slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&opts)
	}
	var err error
	if f.s, err = New(opts); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = f.s.HTTPServer()
	srv.Start()
	f.url = srv.URL
	t.Cleanup(func() {
		f.s.Close()
		srv.Close()
	})
	return f
}

// lockedBuffer is read while the server may still write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answered is an answer that has been read.
type answered struct {
	t      testing.TB
	status int
	header http.Header
	body   string
}

// call sends a request with the API key. Headers are pairs; an empty value
// removes one. A body is JSON unless a header says otherwise.
func (f *fixture) call(method, path, body string, header ...string) answered {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, r)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if req.Header.Del(header[i]); header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	return answered{f.t, resp.StatusCode, resp.Header, string(b)}
}

// is checks the status and, for errors, the code, and that the answer is an
// error of the contract's form.
func (a answered) is(status int, code string) answered {
	a.t.Helper()
	if a.status != status {
		a.t.Errorf("status %d, want %d: %s", a.status, status, a.body)
		return a
	}
	if code != "" {
		if e := a.failure(); e.Code != code {
			a.t.Errorf("code %q, want %q: %s", e.Code, code, e.Message)
		}
	}
	return a
}

// failure decodes an error and checks its form.
func (a answered) failure() api.Error {
	a.t.Helper()
	var e api.Error
	if err := wellFormedError(a.status, a.header, []byte(a.body), &e); err != nil {
		a.t.Error(err)
	}
	return e
}

// wellFormedError checks what must hold for every error answer.
func wellFormedError(status int, h http.Header, body []byte, e *api.Error) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(e); err != nil || e.Code == "" || e.Message == "" {
		return fmt.Errorf("%d is not {code, message}: %q (%v)", status, body, err)
	}
	if ct := h.Get("Content-Type"); ct != "application/json" {
		return fmt.Errorf("%d %s has Content-Type %q", status, e.Code, ct)
	}
	if len(e.Message) > 1000 {
		return fmt.Errorf("%d %s has a message of %d bytes", status, e.Code, len(e.Message))
	}
	if h.Get("X-Request-ID") == "" {
		return fmt.Errorf("%d %s has no request id", status, e.Code)
	}
	return nil
}

// says checks that an error's message has all these parts.
func (a answered) says(parts ...string) answered {
	a.t.Helper()
	msg := a.failure().Message
	for _, p := range parts {
		if !strings.Contains(msg, p) {
			a.t.Errorf("message %q does not say %q", msg, p)
		}
	}
	return a
}

func (a answered) into(v any) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		a.t.Fatalf("%v: %s", err, a.body)
	}
}

// member returns a member of a JSON answer by its path of names.
func (a answered) member(path ...string) any {
	a.t.Helper()
	var v any
	a.into(&v)
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	return v
}

func tcpTo(addr string) func(context.Context, string, int) (net.Conn, error) {
	return func(ctx context.Context, _ string, _ int) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func program(t testing.TB, h http.HandlerFunc) func(context.Context, string, int) (net.Conn, error) {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return tcpTo(srv.Listener.Addr().String())
}
