package test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	for _, c := range []struct {
		path, key string
		status    int
		code      string
	}{
		{"/v1/sandboxes", "", 401, "MISSING_API_KEY"},
		{"/v1/sandboxes", "wrong", 401, "INVALID_API_KEY"},
		{"/v1/sandboxes", s.Key + "x", 401, "INVALID_API_KEY"},
		{"/sandboxes/" + sb.ID, "", 401, "MISSING_API_KEY"},
		{"/v1/images", "", 401, "MISSING_API_KEY"},
		{"/v1/volumes", "", 401, "MISSING_API_KEY"},
		{"/metrics", "", 401, "MISSING_API_KEY"},
		{"/healthzz", "", 401, "MISSING_API_KEY"},
		{"/v1/sandboxes/" + sb.ID + "/logs", "", 401, "MISSING_API_KEY"},
		{"/v1/sandboxes/" + sb.ID + "/proxy/44772/ping", "", 401, "MISSING_OR_INVALID_SECURE_ACCESS"},
		{"/v1/sandboxes/" + sb.ID + "/proxy/44772/ping", "wrong", 401, ""},
		{"/v1/no/such/route", s.Key, 404, ""},
	} {
		r := s.Do(t, http.MethodGet, c.path, nil, "OPEN-SANDBOX-API-KEY", c.key)
		code, _ := r.Error(t)
		if r.Status != c.status || c.code != "" && code != c.code {
			t.Errorf("GET %s with key %.8q: %d %s, want %d %s", c.path, c.key, r.Status, code, c.status, c.code)
		}
	}
	for _, path := range []string{"/health", "/version"} {
		if r := s.Do(t, http.MethodGet, path, nil, "OPEN-SANDBOX-API-KEY", ""); r.Status != http.StatusOK {
			t.Errorf("GET %s without a key: %d", path, r.Status)
		}
	}
	if r := s.Do(t, http.MethodPut, "/v1/sandboxes", nil); r.Status != http.StatusMethodNotAllowed || r.Header.Get("Allow") == "" {
		t.Errorf("PUT /v1/sandboxes: %d, Allow %q", r.Status, r.Header.Get("Allow"))
	}
	if r := s.Do(t, http.MethodGet, "/v1/sandboxes/", nil); r.Status != http.StatusTemporaryRedirect {
		t.Errorf("a trailing slash: %d", r.Status)
	}
}

func TestTokenOpensOneSandboxOnly(t *testing.T) {
	s := sharedServer(t)
	one, two := sleeper(t, s), sleeper(t, s)
	ep, err := s.Client.Endpoint(t.Context(), one.ID, 44772)
	if err != nil {
		t.Fatal(err)
	}
	token := ep.Headers["OpenSandbox-Secure-Access"]
	if token == "" {
		t.Fatalf("the endpoint has no token: %v", ep.Headers)
	}
	for path, want := range map[string]int{
		"/v1/sandboxes/" + one.ID + "/proxy/44772/ping": 200,
		"/v1/sandboxes/" + two.ID + "/proxy/44772/ping": 401,
		"/v1/sandboxes/" + one.ID:                       401,
		"/v1/sandboxes":                                 401,
	} {
		r := s.Do(t, http.MethodGet, path, nil, "OPEN-SANDBOX-API-KEY", "", "OpenSandbox-Secure-Access", token)
		if r.Status != want {
			t.Errorf("GET %s with one's token: %d, want %d", path, r.Status, want)
		}
	}
	for _, path := range []string{"/v1/sandboxes/" + one.ID, "/v1/sandboxes?pageSize=200"} {
		if r := s.Do(t, http.MethodGet, path, nil); strings.Contains(string(r.Body), token) {
			t.Errorf("GET %s shows a token", path)
		}
	}
}

func TestSecretsAreNotWrittenAnywhere(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	ep, err := s.Client.Endpoint(t.Context(), sb.ID, 44772)
	if err != nil {
		t.Fatal(err)
	}
	s.Must(t, sb.ID, "true")
	body := createBody("127.0.0.1:1/none:x")
	body["image"] = map[string]any{"uri": "127.0.0.1:1/none:x", "auth": map[string]string{"username": "someone", "password": "hunter2-secret"}}
	if r := s.Do(t, http.MethodPost, "/v1/sandboxes", body); r.Status < 400 || strings.Contains(string(r.Body), "hunter2-secret") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	log, err := os.ReadFile(s.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{"the API key": s.Key, "a token": ep.Headers["OpenSandbox-Secure-Access"], "a password": "hunter2-secret"} {
		if strings.Contains(string(log), secret) {
			t.Errorf("the log holds %s", name)
		}
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range lines {
			if b, _ := os.ReadFile(f); strings.Contains(string(b), secret) {
				t.Errorf("a command line holds %s: %s", name, f)
			}
		}
	}
	for _, f := range []string{"api-key", "server.json"} {
		st, err := os.Stat(filepath.Join(s.DataDir, f))
		if err == nil && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, st.Mode().Perm())
		}
	}
}
