package client

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestNetworkPolicyRequests(t *testing.T) {
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.Path+" "+string(b))
		json.NewEncoder(w).Encode(NetworkPolicyStatus{Mode: "deny_all", Policy: NetworkPolicy{DefaultAction: Deny}})
	}))
	defer srv.Close()
	c, err := New(Options{Server: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, f := range []func() (*NetworkPolicyStatus, error){
		func() (*NetworkPolicyStatus, error) { return c.NetworkPolicy(ctx, "a") },
		func() (*NetworkPolicyStatus, error) { return c.SetNetworkPolicy(ctx, "a", nil) },
		func() (*NetworkPolicyStatus, error) {
			return c.SetNetworkPolicy(ctx, "a", &NetworkPolicy{DefaultAction: Allow, Egress: []NetworkRule{{Action: Deny, Target: "x"}}})
		},
		func() (*NetworkPolicyStatus, error) {
			return c.PatchNetworkPolicy(ctx, "a", NetworkRule{Action: Allow, Target: "x", HTTP: &NetworkRuleHTTP{Methods: []string{"GET"}}})
		},
		func() (*NetworkPolicyStatus, error) { return c.DeleteNetworkRules(ctx, "a", "x", "y") },
	} {
		if st, err := f(); err != nil || st.Policy.DefaultAction != Deny {
			t.Errorf("%+v, %v", st, err)
		}
	}
	want := `GET /v1/sandboxes/a/networkpolicy 
PUT /v1/sandboxes/a/networkpolicy {}
PUT /v1/sandboxes/a/networkpolicy {"defaultAction":"allow","egress":[{"action":"deny","target":"x"}]}
PATCH /v1/sandboxes/a/networkpolicy [{"action":"allow","target":"x","http":{"methods":["GET"]}}]
DELETE /v1/sandboxes/a/networkpolicy ["x","y"]`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("requests:\n%s", text)
	}
}

// A client that acts as a user asks the scoped routes for files, and the others
// for everything else.
func TestAs(t *testing.T) {
	var got []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, strings.TrimPrefix(r.URL.Path, "/v1/sandboxes/a"))
		io.WriteString(w, "{}")
	}))
	defer srv.Close()
	c, err := New(Options{Server: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	as := c.As(12, 34)
	_, _ = as.FileInfo(t.Context(), "a", "/x")
	_, _ = as.DownloadDir(t.Context(), "a", "/x")
	_, _ = as.Get(t.Context(), "a")
	_, _ = c.FileInfo(t.Context(), "a", "/x")
	want := "/proxy/44772/v1/filesystem/12/34/files/info /proxy/44772/v1/filesystem/12/34/directories/archive  /proxy/44772/files/info"
	if text := strings.Join(got, " "); text != want {
		t.Errorf("asked for %s", text)
	}
}

func TestDialPort(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/sandboxes/plain/tunnel/22":
			io.WriteString(w, "no tunnel")
			return
		case r.URL.Path != "/v1/sandboxes/a/tunnel/22" || r.Header.Get("Upgrade") != "tcp" || r.Header.Get("Connection") != "Upgrade":
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, `{"code":"BACKEND_CONNECTION_FAILED","message":"Nothing listens."}`)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello\n")
		all, _ := io.ReadAll(rw)
		io.WriteString(c, "got "+string(all))
	}))
	defer srv.Close()
	c, err := New(Options{Server: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := c.DialPort(t.Context(), "a", 22)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	in := bufio.NewReader(tunnel)
	if line, err := in.ReadString('\n'); line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
	_, _ = io.WriteString(tunnel, "this")
	if err := tunnel.CloseWrite(); err != nil {
		t.Error(err)
	}
	if all, err := io.ReadAll(in); err != nil || string(all) != "got this" {
		t.Errorf("%q, %v", all, err)
	}
	if _, err := c.DialPort(t.Context(), "a", 23); err == nil || !strings.Contains(err.Error(), "Nothing listens") {
		t.Errorf("refused: %v", err)
	}
	if _, err := c.DialPort(t.Context(), "plain", 22); err == nil || !strings.Contains(err.Error(), "status 200") {
		t.Errorf("no upgrade: %v", err)
	}
}
