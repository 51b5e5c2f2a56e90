package server

import (
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

const somePolicy = `{"defaultAction":"deny","egress":[{"action":"allow","target":"PyPI.org"}]}`

func TestPolicyOfACreate(t *testing.T) {
	f := start(t)
	for given, want := range map[string]string{
		somePolicy: `{"defaultAction":"deny","egress":[{"action":"allow","target":"pypi.org"}]}`,
		`{}`:       `{"defaultAction":"deny","egress":[]}`,
		`{"default_action":"ALLOW","egress":[{"action":"Deny","target":"bad.example.com"}]}`: `{"defaultAction":"allow","egress":[{"action":"deny","target":"bad.example.com"}]}`,
	} {
		a := f.call("POST", "/v1/sandboxes", `{"image":{"uri":"a"},"entrypoint":["sh"],"resourceLimits":{},"networkPolicy":`+given+`}`).is(202, "")
		id, _ := a.member("id").(string)
		if got := f.call("GET", "/v1/sandboxes/"+id+"/networkpolicy", "").is(200, ""); !strings.Contains(got.body, want) {
			t.Errorf("%s: got %s", given, got.body)
		}
		f.call("GET", "/v1/sandboxes/"+id+"/diagnostics/inspect", "").is(200, "").holds("Network policy:", "otherwise")
	}
}

// Both ways to the policy answer alike; errors of one are JSON, of the other text.
func TestPolicyRoutes(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	api := "/v1/sandboxes/sb/networkpolicy"
	egress := "/v1/sandboxes/sb/proxy/18080/policy"
	auth := []string{"OPENSANDBOX-EGRESS-AUTH", "egress-of-sb"}
	for _, path := range []string{api, egress} {
		call := func(method, body string) answered { return f.call(method, path, body, auth...) }
		f.m.put("sb", sandbox.Running)
		call("GET", "").is(200, "").holds(`"mode":"allow_all"`, `"enforcementMode":"dns+nft"`, `"egress":[]`)
		call("PUT", somePolicy).is(200, "").holds(`"mode":"enforcing"`, `"pypi.org"`)
		call("PATCH", `[{"action":"allow","target":"a.example"},{"action":"deny","target":"pypi.org"}]`).is(200, "").
			holds(`[{"action":"allow","target":"a.example"},{"action":"deny","target":"pypi.org"}]`)
		call("DELETE", `["PYPI.ORG"]`).is(200, "").holds(`"egress":[{"action":"allow","target":"a.example"}]`)
		call("DELETE", `["none.example"]`).is(200, "").holds(`"reason":"no matching targets found"`, "a.example")
		call("DELETE", `["", "http://a.example/"]`).is(200, "").holds(`"reason":"no matching targets found"`)
		call("POST", `null`).is(200, "").holds(`"mode":"deny_all"`, `"reason":"policy reset to default deny-all"`)
		if a := call("PUT", `{"defaultAction":"deny","egress":[]}`).is(200, ""); !strings.Contains(a.body, `"mode":"deny_all"`) || strings.Contains(a.body, "reason") {
			t.Errorf("a policy that denies all: %s", a.body)
		}
		call("PATCH", " ").is(400, "").holds("an array of rules")
		call("DELETE", "").is(400, "").holds("an array of targets")
		call("POST", somePolicy).is(200, "")
		call("PUT", `{}`).is(200, "").holds(`"mode":"deny_all"`)
		for method, bodies := range map[string][]string{
			"PATCH":  {``, `[]`, `{}`, `[{"action":"allow"}]`, `[{"action":"permit","target":"a.example"}]`, `[{"action":"allow","target":" "}]`},
			"DELETE": {``, `[]`, `{}`, `[1]`},
			"PUT":    {`[]`, `{"defaultAction":"x"}`, `{"egress":[{"action":"allow","target":"a.example","port":1}]}`, `{`},
		} {
			for _, body := range bodies {
				if a := call(method, body); a.status != 400 {
					t.Errorf("%s %s %s: %d %s", method, path, body, a.status, a.body)
				}
			}
		}
		call("PUT", `{"egress":[`+strings.Repeat(`{"action":"allow","target":"a.example"},`, 4096)+`{"action":"allow","target":"a.example"}]}`).is(413, "")
		call("PATCH", `[{"action":"allow","target":"a.example"},{"action":"allow","target":"x:1"}]`).is(400, "").holds("[1].target")
		if a := f.call("OPTIONS", path, "", auth...).is(405, ""); !strings.Contains(a.header.Get("Allow"), "PATCH") {
			t.Errorf("Allow: %q", a.header.Get("Allow"))
		}
		tag := call("GET", "").header.Get("ETag")
		f.call("PUT", path, somePolicy, append(auth, "If-Match", tag)...).is(200, "")
		f.call("PUT", path, somePolicy, append(auth, "If-Match", tag)...).is(409, "")
		f.call("PUT", path, somePolicy, append(auth, "If-Match", "*")...).is(200, "")
		for _, bad := range []string{`W/"1"`, "1", `"1", "2"`, `"-1"`, `"9999999999999999999"`} {
			f.call("PUT", path, somePolicy, append(auth, "If-Match", bad)...).is(400, "").holds("If-Match")
		}
	}
	f.call("PUT", api, somePolicy, "OPEN-SANDBOX-API-KEY", "").is(401, codeMissingKey)
	f.call("GET", "/v1/sandboxes/none/networkpolicy", "").is(404, sandbox.CodeNotFound)
}

// The egress API wants its own token, whatever else is shown.
func TestEgressToken(t *testing.T) {
	f := start(t)
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	path := "/v1/sandboxes/sb/proxy/18080/policy"
	for _, header := range [][]string{
		nil,
		{"OPENSANDBOX-EGRESS-AUTH", "wrong"},
		{"OPENSANDBOX-EGRESS-AUTH", "egress-of-other"},
		{"OPENSANDBOX-EGRESS-AUTH", "token-of-sb"},
		{"OpenSandbox-Secure-Access", "token-of-sb", "OPEN-SANDBOX-API-KEY", ""},
	} {
		a := f.call("GET", path, "", header...)
		if a.status != 401 || strings.TrimSpace(a.body) != "unauthorized" {
			t.Errorf("%q: %d %s", header, a.status, a.body)
		}
	}
	f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "", "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb").is(401, codeSecureAccess)
	f.call("GET", path, "", "OPEN-SANDBOX-API-KEY", "", "OpenSandbox-Secure-Access", "token-of-sb", "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb").is(200, "")
	f.call("GET", "/v1/sandboxes/sb/proxy/18080/healthz", "").is(200, "").holds("ok")
	f.call("GET", "/v1/sandboxes/sb/proxy/18080/credential-vault", "", "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb").is(501, "")
	f.call("GET", "/v1/sandboxes/sb/proxy/18080/", "", "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb").is(404, "")
	f.call("GET", "/v1/sandboxes/sb/endpoints/18080", "").is(200, "").holds(`"OPENSANDBOX-EGRESS-AUTH":"egress-of-sb"`)
	if a := f.call("GET", "/v1/sandboxes/sb/endpoints/8080", ""); strings.Contains(a.body, "egress-of-sb") {
		t.Errorf("the token is shown: %s", a.body)
	}
}

func (a answered) holds(parts ...string) {
	a.t.Helper()
	for _, p := range parts {
		if !strings.Contains(a.body, p) {
			a.t.Errorf("%q does not hold %s", a.body, p)
		}
	}
}

const someVault = `{"credentials":[{"name":"c","source":{"value":"hunter2"}}],"bindings":[{"name":"b","match":{"hosts":["pypi.org"]},"auth":{"type":"bearer","credential":"c"}}]}`

// The vault is reached with the sandbox's egress token, and a policy can't leave
// a credential without a rule for its host.
func TestCredentialVault(t *testing.T) {
	vaults, err := vault.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, func(o *Options) { o.Vaults = vaults })
	f.call("POST", "/v1/sandboxes", `{"image":{"uri":"a"},"resourceLimits":{},"credentialProxy":{"enabled":true}}`).is(400, "").holds("credentialProxy.enabled", "networkPolicy")
	a := f.call("POST", "/v1/sandboxes", `{"image":{"uri":"a"},"resourceLimits":{},"credentialProxy":{"enabled":true},"networkPolicy":`+somePolicy+`}`).is(202, "")
	id, _ := a.member("id").(string)
	sb, err := f.m.Get(id)
	if err != nil || !sb.Spec.CredentialProxy {
		t.Fatalf("%+v, %v", sb, err)
	}
	auth := []string{"OPENSANDBOX-EGRESS-AUTH", sb.EgressToken}
	root := "/v1/sandboxes/" + id + "/proxy/18080"
	call := func(method, path, body string) answered { return f.call(method, root+path, body, auth...) }

	call("GET", "/credential-vault", "").is(404, "")
	call("POST", "/credential-vault", someVault).is(201, "").holds(`"revision":1`)
	if a := call("GET", "/credential-vault", "").is(200, ""); strings.Contains(a.body, "hunter2") {
		t.Errorf("the value is shown: %s", a.body)
	}
	call("GET", "/credential-vault/bindings/b", "").is(200, "")
	call("GET", "/credential-vault/bindings/%62", "").is(200, "")
	call("GET", "/credential-vault/_active", "").is(403, "")
	call("GET", "/credential-vaults", "").is(404, "")
	f.call("GET", root+"/credential-vault", "").is(401, "")

	for _, path := range []string{root + "/policy", "/v1/sandboxes/" + id + "/networkpolicy"} {
		f.call("PUT", path, `{}`, auth...).is(400, "").holds("pypi.org")
		f.call("DELETE", path, `["pypi.org"]`, auth...).is(400, "").holds("pypi.org")
		f.call("PATCH", path, `[{"action":"allow","target":"a.example"}]`, auth...).is(200, "")
	}
	call("DELETE", "/credential-vault", "").is(204, "")
	call("PUT", "/policy", `{}`).is(200, "")

	// What can't be told whom to trust gets no credential, and is asked only if
	// there is one to use.
	f.m.trust = sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotTrusted, "it is paused")
	call("POST", "/credential-vault", strings.ReplaceAll(someVault, "pypi.org", "nowhere.example")).is(400, "").holds("nowhere.example")
	call("PATCH", "/policy", `[{"action":"allow","target":"pypi.org"}]`).is(200, "")
	call("POST", "/credential-vault", someVault).is(409, "").holds("it is paused")
	call("GET", "/credential-vault", "").is(404, "")
	call("POST", "/credential-vault", `{"credentials":[],"bindings":[]}`).is(201, "")

	// One that reaches nothing by a rule.
	f.m.put("sb", sandbox.Running)
	f.call("POST", "/v1/sandboxes/sb/proxy/18080/credential-vault", someVault, "OPENSANDBOX-EGRESS-AUTH", "egress-of-sb").is(412, "").holds("network policy")
}
