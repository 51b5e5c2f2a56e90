package test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// plainSandbox makes a sandbox that nothing says of at create that its
// connections would be looked into.
func plainSandbox(t *testing.T, s *harness.Server, more map[string]any) string {
	t.Helper()
	body := map[string]any{
		"image": map[string]any{"uri": starterImage}, "entrypoint": forever, "timeout": 900,
		"resourceLimits": map[string]string{"cpu": "1", "memory": "512Mi"},
		"networkPolicy":  denyBut(vaultHost, ruledHost),
		"env":            map[string]string{"PIP_CERT": "/mine"},
	}
	for k, v := range more {
		body[k] = v
	}
	var sb client.Sandbox
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", body, "Prefer", "wait=30")
	if r.Status >= 300 {
		t.Fatalf("creating a sandbox: %d %s", r.Status, r.Body)
	}
	r.JSON(t, &sb)
	s.Forget(t, sb.ID)
	s.State(t, sb.ID, client.StateRunning)
	if _, _, code := s.Shell(t, sb.ID, "test -e /etc/paddock/ca.crt || env | grep -q SSL_CERT_FILE"); code == 0 {
		t.Fatal("it trusts the authority already")
	}
	return sb.ID
}

// getOnly is a patch of a policy that lets nothing but GET to ruledHost.
const getOnly = `[{"action":"allow","target":"` + ruledHost + `","http":{"methods":["GET"]}}]`

// patchPolicy changes a policy and returns the answer.
func patchPolicy(t *testing.T, s *harness.Server, id, rules string) *harness.Response {
	t.Helper()
	return s.Do(t, http.MethodPatch, "/v1/sandboxes/"+id+"/networkpolicy", rules)
}

// testTrustOnDemand has the first credential and the first rule with conditions
// come to sandboxes that run.
func testTrustOnDemand(t *testing.T, s *harness.Server, w *vaultWorld, vault string) {
	t.Run("vault", func(t *testing.T) {
		id := plainSandbox(t, s, nil)
		session := newSession(t, s, id)
		call := egressCaller(t, s, id)
		if r := call(http.MethodPost, "", strings.ReplaceAll(vault, vaultHost, "other.example")); r.Status != http.StatusBadRequest {
			t.Errorf("a host that no rule allows: %d %s", r.Status, r.Body)
		}
		s.Must(t, id, "! test -e /etc/paddock")
		if r := call(http.MethodPost, "", vault); r.Status != http.StatusCreated {
			t.Fatalf("making the vault: %d %s", r.Status, r.Body)
		}
		testVaultPrograms(t, s, w, id, false)
		inSession(t, s, id, newSession(t, s, id), "curl -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("from a new session: %+v", a)
		}
		// What runs already keeps its environment, and can say itself whom to trust.
		inSession(t, s, id, session, "test -z \"$SSL_CERT_FILE\" && curl --cacert /etc/paddock/ca-bundle.crt -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("from an old session: %+v", a)
		}
		newIsolated(t, s, id, `{"workspace":{"path":"/tmp/w"},"share_net":true}`).must(t, "curl -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("from an isolated session: %+v", a)
		}
		runCode(t, s, id, "python", `import urllib.request as u; print(u.urlopen("https://`+vaultHost+`/v1/x").status)`, "200")
		w.last(t)

		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Must(t, id, "curl -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("after a restart: %+v", a)
		}
		if r := call(http.MethodPatch, "", `{"bindings":{"delete":["plain"]}}`); r.Status != http.StatusOK {
			t.Errorf("a patch after a restart: %d %s", r.Status, r.Body)
		}
	})
	t.Run("rule", func(t *testing.T) {
		id := plainSandbox(t, s, nil)
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		expectGetOnly(t, s, id)
	})
	t.Run("user", func(t *testing.T) {
		// Programs of another user than root read the files all the same.
		id := plainSandbox(t, s, nil)
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		uid := uint32(65534)
		out, stderr, code := s.Run(t, id, client.Command{Shell: "id -u; curl -sS https://" + ruledHost + "/ok; ! touch /etc/paddock/x 2>/dev/null", UID: &uid})
		if code != 0 || !strings.HasPrefix(out, "65534\n") || !strings.Contains(out, ruledHost) {
			t.Errorf("%d %s %s", code, out, stderr)
		}
	})
	t.Run("paused", func(t *testing.T) {
		id := plainSandbox(t, s, nil)
		if err := s.Client.Pause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s.State(t, id, client.StatePaused)
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusConflict || !strings.Contains(string(r.Body), "paused") {
			t.Errorf("a rule: %d %s", r.Status, r.Body)
		}
		if r := egressCaller(t, s, id)(http.MethodPost, "", vault); r.Status != http.StatusConflict || !strings.Contains(string(r.Body), "paused") {
			t.Errorf("a vault: %d %s", r.Status, r.Body)
		}
		if err := s.Client.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s.State(t, id, client.StateRunning)
		if got := changePolicy(t, s, id, "GET", ""); strings.Contains(got.words(), "http") {
			t.Errorf("the rule took force: %+v", got)
		}
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		expectGetOnly(t, s, id)
	})
	t.Run("no_place", func(t *testing.T) {
		id := plainSandbox(t, s, nil)
		s.Must(t, id, "echo hello > /etc/paddock")
		r := patchPolicy(t, s, id, getOnly)
		if r.Status != http.StatusConflict || !strings.Contains(string(r.Body), "/etc/paddock") || !strings.Contains(string(r.Body), "AUTHORITY_NOT_TRUSTED") {
			t.Errorf("%d %s", r.Status, r.Body)
		}
		// The old policy is in force: a POST reaches the host itself.
		if out := s.Must(t, id, "curl -ksS -X POST https://"+ruledHost+"/ok"); !strings.Contains(out, ruledHost) {
			t.Errorf("it says %s", out)
		}
		s.Must(t, id, "rm /etc/paddock")
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		expectGetOnly(t, s, id)
	})
	t.Run("read_only", func(t *testing.T) {
		id := plainSandbox(t, s, map[string]any{"volumes": []map[string]any{
			{"name": "etc", "pvc": map[string]any{"claimName": "trust-on-demand"}, "mountPath": "/etc/paddock", "readOnly": true}}})
		if r := patchPolicy(t, s, id, getOnly); r.Status != http.StatusConflict || !strings.Contains(string(r.Body), "on a volume") {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
}

func newSession(t *testing.T, s *harness.Server, id string) string {
	t.Helper()
	session, err := s.Client.CreateSession(t.Context(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// inSession runs a line that must succeed.
func inSession(t *testing.T, s *harness.Server, id, session, line string) {
	t.Helper()
	var said strings.Builder
	r, err := s.Client.RunInSession(t.Context(), id, session, client.SessionCommand{Shell: line}, client.Output{Stdout: &said, Stderr: &said})
	if err != nil || r.ExitCode != 0 {
		t.Errorf("%s: %+v %v\n%s", line, r, err, said.String())
	}
}

// runCode runs code in a new context and wants it to print something.
func runCode(t *testing.T, s *harness.Server, id, language, source, want string) {
	t.Helper()
	var said strings.Builder
	o, err := s.Client.RunCode(t.Context(), id, client.Code{Source: source, Language: language}, client.CodeOutput{Stdout: &said, Stderr: &said})
	if err != nil || o.Err != nil || strings.TrimSpace(said.String()) != want {
		t.Errorf("%+v %v: %s", o, err, said.String())
	}
}

// expectGetOnly is true of a sandbox whose rule looks into its connections, and
// whose programs let it.
func expectGetOnly(t *testing.T, s *harness.Server, id string) {
	t.Helper()
	if out := s.Must(t, id, "curl -sS https://"+ruledHost+"/ok"); !strings.Contains(out, ruledHost) {
		t.Errorf("a request that is allowed: %s", out)
	}
	if out := s.Must(t, id, "curl -sS -X POST https://"+ruledHost+"/ok"); !strings.Contains(out, "NETWORK_POLICY_DENIED") {
		t.Errorf("a request that is not: %s", out)
	}
}
