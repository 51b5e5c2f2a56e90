package test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// policied is what the egress API says of a policy.
type policied struct {
	Status, Mode, EnforcementMode, Reason string
	Policy                                struct {
		DefaultAction string
		Egress        []struct{ Action, Target string }
	}
}

func (p policied) words() string {
	words := []string{p.Policy.DefaultAction}
	for _, r := range p.Policy.Egress {
		words = append(words, r.Action+" "+r.Target)
	}
	return strings.Join(words, ", ")
}

// policySandbox makes a sandbox with a policy, as JSON; none when empty.
func policySandbox(t *testing.T, s *harness.Server, policy string) string {
	t.Helper()
	body := map[string]any{"image": map[string]string{"uri": busyboxImage}, "entrypoint": forever, "timeout": 600, "resourceLimits": map[string]string{}}
	if policy != "" {
		body["networkPolicy"] = json.RawMessage(policy)
	}
	var sb client.Sandbox
	r := s.Do(t, "POST", "/v1/sandboxes", body)
	if r.Status != http.StatusAccepted {
		t.Fatalf("creating a sandbox: %d %s", r.Status, r.Body)
	}
	r.JSON(t, &sb)
	s.Forget(t, sb.ID)
	s.State(t, sb.ID, client.StateRunning)
	return sb.ID
}

// policyDoor is where a sandbox's egress API is, and the headers for it.
func policyDoor(t *testing.T, s *harness.Server, id string) (path string, headers []string) {
	t.Helper()
	var ep struct {
		Endpoint string
		Headers  map[string]string
	}
	s.Do(t, "GET", "/v1/sandboxes/"+id+"/endpoints/18080?use_server_proxy=true", nil).JSON(t, &ep)
	_, path, ok := strings.Cut(ep.Endpoint, "/")
	if !ok || ep.Headers["OPENSANDBOX-EGRESS-AUTH"] == "" {
		t.Fatalf("the endpoint is %+v", ep)
	}
	for k, v := range ep.Headers {
		headers = append(headers, k, v)
	}
	return "/" + path, append(headers, "OPEN-SANDBOX-API-KEY", "")
}

func changePolicy(t *testing.T, s *harness.Server, id, method, body string) policied {
	t.Helper()
	path, headers := policyDoor(t, s, id)
	var p policied
	var sent any
	if body != "" {
		sent = body
	}
	r := s.Do(t, method, path+"/policy", sent, headers...)
	if r.Status != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, body, r.Status, r.Body)
	}
	r.JSON(t, &p)
	return p
}

// resolves is whether a sandbox gets an address for the known name.
func resolves(t *testing.T, s *harness.Server, id string) bool {
	t.Helper()
	out, _, _ := s.Shell(t, id, "nslookup -type=a "+knownName)
	return strings.Contains(out, knownAddress)
}

// The two examples of the protocol's documents, with the one name that can be
// looked up here: deny all but one, and allow all but one.
func TestPolicyExamples(t *testing.T) {
	s := sharedServer(t)
	for _, c := range []struct {
		policy, mode string
		known        bool
	}{
		{`{"defaultAction":"deny","egress":[{"action":"allow","target":"known.paddock.test"}]}`, "enforcing", true},
		{`{"defaultAction":"deny","egress":[{"action":"allow","target":"pypi.org"}]}`, "enforcing", false},
		{`{"defaultAction":"allow","egress":[{"action":"deny","target":"bad.example.com"}]}`, "enforcing", true},
		{`{"defaultAction":"allow","egress":[{"action":"deny","target":"known.paddock.test"}]}`, "enforcing", false},
		{`{"defaultAction":"allow","egress":[{"action":"deny","target":"*.paddock.test"},{"action":"allow","target":"known.paddock.test"}]}`, "enforcing", false},
		{`{"egress":[{"action":"allow","target":"known.paddock.test"},{"action":"deny","target":"*.paddock.test"}]}`, "enforcing", true},
		{`{}`, "deny_all", false},
		{`{"defaultAction":"allow"}`, "allow_all", true},
		{``, "allow_all", true},
	} {
		id := policySandbox(t, s, c.policy)
		if got := changePolicy(t, s, id, "GET", ""); got.Mode != c.mode || got.Status != "ok" || got.EnforcementMode != "dns+nft" {
			t.Errorf("%s: %+v", c.policy, got)
		}
		if got := resolves(t, s, id); got != c.known {
			t.Errorf("%s: it resolves: %v", c.policy, got)
		}
	}
}

func TestPolicyThatIsWrong(t *testing.T) {
	s := sharedServer(t)
	for _, target := range []string{"https://example.com/", "example.com:443", "*", "a.*.example.com", "localhost", "10.0.0.1/8", ""} {
		body := map[string]any{"image": map[string]string{"uri": busyboxImage}, "resourceLimits": map[string]string{}, "networkPolicy": map[string]any{
			"egress": []map[string]string{{"action": "allow", "target": "example.com"}, {"action": "allow", "target": target}}}}
		r := s.Do(t, "POST", "/v1/sandboxes", body)
		if r.Status != 400 {
			t.Fatalf("%q: %d %s", target, r.Status, r.Body)
		}
		if _, message := r.Error(t); !strings.Contains(message, "networkPolicy.egress[1].target") {
			t.Errorf("%q: %s", target, message)
		}
	}
}

// A change is in force when its answer comes, for new lookups, and nothing but
// the sandbox's own egress token allows it.
func TestPolicyChanges(t *testing.T) {
	s := sharedServer(t)
	id := policySandbox(t, s, `{}`)
	if resolves(t, s, id) {
		t.Fatal("it resolves although all is denied")
	}
	p := changePolicy(t, s, id, "PATCH", `[{"action":"allow","target":"Known.Paddock.Test."}]`)
	if p.words() != "deny, allow known.paddock.test" || !resolves(t, s, id) {
		t.Errorf("after PATCH: %+v", p)
	}
	if p = changePolicy(t, s, id, "DELETE", `["KNOWN.paddock.test"]`); p.words() != "deny" || resolves(t, s, id) {
		t.Errorf("after DELETE: %+v", p)
	}
	if p = changePolicy(t, s, id, "POST", `{"defaultAction":"allow"}`); p.Mode != "allow_all" || !resolves(t, s, id) {
		t.Errorf("after POST: %+v", p)
	}
	var shown policied
	r := s.Do(t, "GET", "/v1/sandboxes/"+id+"/networkpolicy", nil)
	if r.JSON(t, &shown); shown.words() != "allow" || r.Header.Get("ETag") != `"3"` {
		t.Errorf("%+v, %s", shown, r.Header.Get("ETag"))
	}
	if r = s.Do(t, "PUT", "/v1/sandboxes/"+id+"/networkpolicy", `{}`, "If-Match", `"1"`); r.Status != 409 {
		t.Errorf("a change of another version: %d %s", r.Status, r.Body)
	}

	path, headers := policyDoor(t, s, id)
	other, strange := policyDoor(t, s, policySandbox(t, s, ""))
	for name, h := range map[string][]string{
		"no token": nil, "another sandbox's": strange, "none at all": {"OPEN-SANDBOX-API-KEY", ""},
	} {
		if r := s.Do(t, "PUT", path+"/policy", `{}`, h...); r.Status != 401 {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if r := s.Do(t, "GET", other+"/policy", nil, headers...); r.Status != 401 {
		t.Errorf("a token at another sandbox: %d", r.Status)
	}
	if r := s.Do(t, "GET", path+"/healthz", nil, headers...); r.Status != 200 || strings.TrimSpace(string(r.Body)) != "ok" {
		t.Errorf("healthz: %d %s", r.Status, r.Body)
	}
	// Whatever listens there in the sandbox, the server answers.
	s.Must(t, id, "mkdir -p /www && echo mine > /www/policy && httpd -p 18080 -h /www")
	if r := s.Do(t, "GET", path+"/policy", nil, headers...); r.Status != 200 || strings.Contains(string(r.Body), "mine") {
		t.Errorf("with a server in the sandbox: %d %s", r.Status, r.Body)
	}
	if out := s.Must(t, id, "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(out, headers[1]) || strings.Contains(out, headers[3]) {
		t.Error("a token is in the sandbox's environment")
	}
}

// What a policy refuses is an event, a count and a call of the webhook.
func TestPolicyDenials(t *testing.T) {
	calls := make(chan map[string]any, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var c map[string]any
		if err := json.Unmarshal(body, &c); err != nil {
			t.Errorf("the webhook got %s", body)
		}
		calls <- c
	}))
	defer receiver.Close()
	upstream, err := startUpstream()
	if err != nil {
		t.Fatal(err)
	}
	s := ownServer(t, map[string]string{"egress.deny_webhook": receiver.URL + "/denials", "network.dns_upstreams": upstream})
	id := policySandbox(t, s, `{"defaultAction":"allow","egress":[{"action":"allow","target":"example.com"},{"action":"deny","target":"*.paddock.test"}]}`)
	if resolves(t, s, id) {
		t.Fatal("it resolves")
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	err = s.Client.FollowEvents(ctx, id, 0, func(e client.Event) error {
		if e.Kind != "Denied" {
			return nil
		}
		if !strings.Contains(e.Message, "dns known.paddock.test") || !strings.Contains(e.Message, "rule 1 (*.paddock.test)") || e.Count < 1 {
			t.Errorf("the event is %+v", e)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Fatalf("no event of a denial: %v", err)
	}
	select {
	case c := <-calls:
		if c["hostname"] != "known.paddock.test" || c["sandboxId"] != id || c["source"] != "opensandbox-egress" || c["timestamp"] == nil || c["rule"] != 1.0 {
			t.Errorf("the webhook got %v", c)
		}
	case <-ctx.Done():
		t.Error("the webhook was not called")
	}
	metrics := string(s.Do(t, "GET", "/metrics", nil).Body)
	if !strings.Contains(metrics, `paddock_policy_denials_total{protocol="dns"}`) || strings.Contains(metrics, `paddock_policy_denials_total{protocol="dns"} 0`) {
		t.Error("the denial is not counted")
	}
	if r := s.Do(t, "GET", "/v1/sandboxes/"+id+"/diagnostics/events?scope=runtime", nil); !strings.Contains(string(r.Body), "known.paddock.test") {
		t.Errorf("diagnostics: %s", r.Body)
	}
}

// A policy outlives the server, and one that was being changed when the server
// died is either the old one or the new one, in what is shown and in force.
func TestPolicyAcrossRestarts(t *testing.T) {
	upstream, err := startUpstream()
	if err != nil {
		t.Fatal(err)
	}
	s := ownServer(t, map[string]string{"network.dns_upstreams": upstream})
	const open, closed = `{"defaultAction":"allow"}`, `{}`
	id := policySandbox(t, s, closed)
	path, headers := policyDoor(t, s, id)
	for round := range 4 {
		changing := make(chan struct{})
		go func() {
			defer close(changing)
			for i := 0; ; i++ {
				body := open
				if i%2 == 1 {
					body = closed
				}
				req, _ := http.NewRequestWithContext(t.Context(), "PUT", s.URL+path+"/policy", strings.NewReader(body))
				req.Header.Set("Content-Type", "application/json")
				for h := 0; h < len(headers); h += 2 {
					req.Header.Set(headers[h], headers[h+1])
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					return // it died
				}
				resp.Body.Close()
			}
		}()
		// Some changes later, wherever that is.
		before := changePolicyVersion(t, s, id)
		for changePolicyVersion(t, s, id) < before+2+round {
		}
		s.Kill()
		<-changing
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := changePolicy(t, s, id, "GET", "") // with the token from before
		if got := resolves(t, s, id); got != (p.Mode == "allow_all") {
			t.Errorf("round %d: shown %s, and it resolves: %v", round, p.Mode, got)
		}
	}
	if again, h := policyDoor(t, s, id); again != path || strings.Join(h, " ") == "" {
		t.Errorf("the endpoint has moved from %s to %s", path, again)
	}
}

// changePolicyVersion is the version of a policy.
func changePolicyVersion(t *testing.T, s *harness.Server, id string) int {
	t.Helper()
	tag := s.Do(t, "GET", "/v1/sandboxes/"+id+"/networkpolicy", nil).Header.Get("ETag")
	var n int
	if err := json.Unmarshal([]byte(strings.Trim(tag, `"`)), &n); err != nil {
		t.Fatalf("the version is %q", tag)
	}
	return n
}
