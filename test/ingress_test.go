package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// curl runs curl and returns the status and the body. Every host name below
// the base domain of these tests leads to the gateway.
func curl(t *testing.T, gateway string, args ...string) (status int, body string) {
	t.Helper()
	program := harness.RequireProgram(t, "curl")
	out := filepath.Join(t.TempDir(), "body")
	args = append([]string{"-sS", "--path-as-is", "--max-time", "30", "--connect-to", "::" + gateway, "-o", out, "-w", "%{http_code}"}, args...)
	b, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %q: %v: %s", args, err, b)
	}
	if _, err := fmt.Sscan(string(b), &status); err != nil {
		t.Fatalf("curl %q: %s", args, b)
	}
	data, _ := os.ReadFile(out)
	return status, string(data)
}

// ingressServer is a server whose gateway has a port of its own.
func ingressServer(t *testing.T) (s *harness.Server, gateway string) {
	t.Helper()
	port, err := harness.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	gateway = fmt.Sprintf("127.0.0.1:%d", port)
	s = harness.New(t, map[string]string{
		"gateway.listen": gateway, "gateway.base_domain": "apps.test", "gateway.h2c": "true", "pool.size": "2",
	})
	if err := s.ImportFile(t.Context(), harness.StarterImage(t), starterImage); err != nil {
		t.Fatal(err)
	}
	return s, gateway
}

// signed asks for an address that is valid for an hour.
func signed(t *testing.T, s *harness.Server, id string, port int) (endpoint string, headers map[string]string) {
	t.Helper()
	return configuredEndpoint(t, s, id, port, fmt.Sprintf("?expires=%d", time.Now().Add(time.Hour).Unix()))
}

// configuredEndpoint asks for an address in the form that the server is
// configured for.
func configuredEndpoint(t *testing.T, s *harness.Server, id string, port int, query string) (endpoint string, headers map[string]string) {
	t.Helper()
	r := s.Do(t, http.MethodGet, fmt.Sprintf("/v1/sandboxes/%s/endpoints/%d%s", id, port, query), nil)
	if r.Status != http.StatusOK {
		t.Fatalf("the endpoint: %d %s", r.Status, r.Body)
	}
	var e struct {
		Endpoint string
		Headers  map[string]string
	}
	r.JSON(t, &e)
	return e.Endpoint, e.Headers
}

// Each form leads to the same port, with a signature and without, also after the
// server was killed, and to no other.
func TestIngress(t *testing.T) {
	s, gateway := ingressServer(t)
	sb, _ := startPortServer(t, s, "127.0.0.1")
	other := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	for _, c := range []struct{ name, mode, keys string }{
		{"path", "path", ""}, {"header", "header", ""}, {"host names", "wildcard", ""},
		{"host names with short signatures", "wildcard", "a=a2V5LWZvci10aGVzZS10ZXN0cw=="},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.Set("gateway.mode", c.mode)
			s.Set("gateway.signing_keys", c.keys)
			s.Kill()
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			checkForm(t, s, gateway, sb.ID, other.ID)
			if c.mode != "wildcard" { // no resolver knows those host names
				checkSDK(t, s)
			}
		})
	}
	t.Run("cookie", func(t *testing.T) {
		s.Set("gateway.signing_keys", "")
		s.Kill()
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkCookie(t, s, gateway, sb.ID)
	})
	t.Run("states", func(t *testing.T) { checkStates(t, s, gateway, sb.ID) })
}

func checkForm(t *testing.T, s *harness.Server, gateway, id, other string) {
	t.Helper()
	endpoint, headers := signed(t, s, id, 8000)
	call := func(path string, more ...string) (int, string) {
		t.Helper()
		for k, v := range headers {
			more = append(more, "-H", k+": "+v)
		}
		return curl(t, gateway, append(more, "http://"+endpoint+path)...)
	}
	sees := func(want string, status int, body string) {
		t.Helper()
		var got shown
		if status != http.StatusOK || json.Unmarshal([]byte(body), &got) != nil || got.Path != want {
			t.Errorf("%d %s", status, body)
		}
	}
	status, body := call("/a%2Fb//../%2e%2e/c?x=1")
	sees("/a%2Fb//../%2e%2e/c?x=1", status, body)
	status, body = call("/x", "--http2-prior-knowledge")
	sees("/x", status, body)
	if _, ok := headers["OpenSandbox-Secure-Access"]; ok {
		t.Error("a signed address came with the token")
	}

	// With the headers of an unsigned one.
	address, with := configuredEndpoint(t, s, id, 8000, "")
	_, theirs := configuredEndpoint(t, s, other, 8000, "")
	plain := func(token string) (int, string) {
		t.Helper()
		args := []string{"http://" + address + "/y"}
		for k, v := range with {
			if k != "OpenSandbox-Secure-Access" {
				args = append(args, "-H", k+": "+v)
			}
		}
		if token != "" {
			args = append(args, "-H", "OpenSandbox-Secure-Access: "+token)
		}
		return curl(t, gateway, args...)
	}
	status, body = plain(with["OpenSandbox-Secure-Access"])
	sees("/y", status, body)
	for name, token := range map[string]string{"no token": "", "the token of another": theirs["OpenSandbox-Secure-Access"]} {
		if status, body := plain(token); status != http.StatusUnauthorized {
			t.Errorf("with %s: %d %s", name, status, body)
		}
	}
	checkHostPorts(t, s, gateway, id)

	// What was given out outlives the server.
	s.Kill()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	status, body = call("/again")
	sees("/again", status, body)
	if info, err := os.Stat(filepath.Join(s.DataDir, "gateway-key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key of the gateway: %v %v", info, err)
	}
}

// checkSDK has the official SDK find execd and the egress API by the form that
// is configured.
func checkSDK(t *testing.T, s *harness.Server) {
	t.Helper()
	for _, script := range []string{"sdk_sync.py", "sdk_signed.py"} {
		cmd := exec.CommandContext(t.Context(), sdkPython(t, newestSDK), filepath.Join("python", script))
		cmd.Env = append(harness.CleanEnviron(),
			"OPEN_SANDBOX_DOMAIN="+strings.TrimPrefix(s.URL, "http://"), "OPEN_SANDBOX_API_KEY="+s.Key,
			"TEST_IMAGE="+starterImage, "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
		cmd.WaitDelay = time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
	deleteMarked(t, s)
}

// checkHostPorts reaches execd, and the egress API, which is not in the sandbox.
func checkHostPorts(t *testing.T, s *harness.Server, gateway, id string) {
	t.Helper()
	for port, path := range map[int]string{44772: "/ping", 18080: "/policy"} {
		endpoint, headers := signed(t, s, id, port)
		args := []string{"http://" + endpoint + path}
		for k, v := range headers {
			args = append(args, "-H", k+": "+v)
		}
		if status, body := curl(t, gateway, args...); status != http.StatusOK {
			t.Errorf("port %d: %d %s", port, status, body)
		}
	}
}

// checkStates: a paused sandbox says what to do, and a deleted one has no ports.
func checkStates(t *testing.T, s *harness.Server, gateway, id string) {
	t.Helper()
	endpoint, _ := signed(t, s, id, 8000)
	call := func(want int, says string) {
		t.Helper()
		if status, body := curl(t, gateway, "http://"+endpoint+"/x"); status != want || !strings.Contains(body, says) {
			t.Errorf("%d %s, want %d and %q", status, body, want, says)
		}
	}
	if err := s.Client.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	call(http.StatusServiceUnavailable, "Resume it first")
	if err := s.Client.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	call(http.StatusOK, "/x")
	if err := s.Client.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	call(http.StatusNotFound, "OpenSandbox Ingress: ")
}

// checkCookie opens a signed address as a browser does: the other requests of the
// page work by the cookie.
func checkCookie(t *testing.T, s *harness.Server, gateway, id string) {
	t.Helper()
	endpoint, _ := signed(t, s, id, 8000)
	jar := filepath.Join(t.TempDir(), "cookies")
	status, body := curl(t, gateway, "-L", "-c", jar, "-b", jar, "-H", "Accept: text/html", "http://"+endpoint+"/page?x=1")
	var got shown
	if status != http.StatusOK || json.Unmarshal([]byte(body), &got) != nil || got.Path != "/page?x=1" || got.header("cookie") != "" {
		t.Errorf("the page: %d %s", status, body)
	}
	host, _, _ := strings.Cut(endpoint, "/")
	if status, body := curl(t, gateway, "-b", jar, "http://"+host+"/style.css"); status != http.StatusOK {
		t.Errorf("a part of the page: %d %s", status, body)
	}
	if status, body := curl(t, gateway, "http://"+host+"/style.css"); status != http.StatusUnauthorized {
		t.Errorf("without the cookie: %d %s", status, body)
	}
	// The application's own cookies and logins get through.
	status, body = curl(t, gateway, "-b", jar, "-H", "Cookie: session=1", "-u", "user:password", "http://"+host+"/")
	if json.Unmarshal([]byte(body), &got); status != http.StatusOK || got.header("cookie") != "session=1" || !strings.HasPrefix(got.header("authorization"), "Basic ") {
		t.Errorf("credentials: %d %s", status, body)
	}
}
