package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	vaultHost  = "api.vault.example"   // a credential is bound to it
	ruledHost  = "ruled.vault.example" // a rule has conditions on its requests
	vaultValue = "v4lue/never+seen-inside"
)

// vaultWorld is the destinations of TestVault and what arrives at them.
type vaultWorld struct {
	mu   sync.Mutex
	seen []arrival
}

type arrival struct {
	Host, Proto, Method, Path, Authorization, Body string
}

func (w *vaultWorld) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/ws") {
		c, err := websocket.Accept(rw, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		kind, b, err := c.Read(r.Context())
		if err == nil {
			_ = c.Write(r.Context(), kind, append([]byte("heard "), b...))
			c.Close(websocket.StatusNormalClosure, "")
		}
		w.note(r, "")
		return
	}
	var body bytes.Buffer
	body.ReadFrom(r.Body)
	a := w.note(r, body.String())
	rw.Header().Set("Content-Type", "application/json")
	json.NewEncoder(rw).Encode(a) // a destination that sends the credential back
}

func (w *vaultWorld) note(r *http.Request, body string) arrival {
	w.mu.Lock()
	defer w.mu.Unlock()
	host, _, _ := strings.Cut(r.Host, ":")
	a := arrival{host, r.Proto, r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"), body}
	w.seen = append(w.seen, a)
	return a
}

// last returns what arrived last, and forgets all.
func (w *vaultWorld) last(t *testing.T) arrival {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		t.Fatal("nothing arrived")
	}
	a := w.seen[len(w.seen)-1]
	w.seen = nil
	return a
}

// newVaultWorld makes the destinations, in a network namespace beside the
// test's own, and returns the certificate that vouches for them.
func newVaultWorld(t testing.TB) (*vaultWorld, []byte) {
	t.Helper()
	w, v := &world{queries: map[string]int{}}, &vaultWorld{}
	w.in(t, true, func() (err error) {
		w.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	t.Cleanup(func() { w.ns.Close() })
	if err := errors.Join(linkUp("lo"), netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan0", PeerNamespace: netlink.NsFd(int(w.ns.Fd())),
	}), linkUp("wan0", "203.0.113.1/24"), addRoute("0.0.0.0/0", "203.0.113.10")); err != nil {
		t.Fatal(err)
	}
	cert, root := certifiedFor(t, vaultHost, ruledHost)
	w.in(t, false, func() error {
		if err := errors.Join(linkUp("lo"), linkUp("wan0", "203.0.113.10/24", "203.0.113.53/24"), addRoute("0.0.0.0/0", "203.0.113.1")); err != nil {
			return err
		}
		for _, port := range []string{"80", "443"} {
			l, err := net.Listen("tcp4", ":"+port)
			if err != nil {
				return err
			}
			srv := &http.Server{Handler: v, ErrorLog: quiet}
			t.Cleanup(func() { srv.Close() })
			if port == "443" {
				srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
				go srv.ServeTLS(l, "", "")
			} else {
				go srv.Serve(l)
			}
		}
		pc, err := net.ListenPacket("udp4", "203.0.113.53:53")
		if err != nil {
			return err
		}
		srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(q)
			if q.Question[0].Qtype == dns.TypeA {
				rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 203.0.113.10")
				if err == nil {
					m.Answer = append(m.Answer, rr)
				}
			}
			rw.WriteMsg(m)
		})}
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go srv.ActivateAndServe()
		<-started
		t.Cleanup(func() { srv.Shutdown() })
		return nil
	})
	return v, root
}

// certifiedFor makes a certificate for names, and the root that vouches for it.
func certifiedFor(t testing.TB, names ...string) (tls.Certificate, []byte) {
	t.Helper()
	make := func(c, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	rootKey, key := newKey(), newKey()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "world"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER := make(root, root, rootKey, rootKey)
	leaf := make(&x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: names}, root, key, rootKey)
	return tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
}

// TestVault has programs in a sandbox use a credential that they never see.
func TestVault(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	harness.Binary(t)
	archive := harness.StarterImage(t)
	w, root := newVaultWorld(t)
	rootFile := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(rootFile, root, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", rootFile) // what the server trusts
	s := harness.New(t, map[string]string{"network.dns_upstreams": "203.0.113.53", "pool.size": "1"})
	if err := s.ImportFile(t.Context(), archive, starterImage); err != nil {
		t.Fatal(err)
	}
	id := vaultSandbox(t, s, true, "deny")
	call := egressCaller(t, s, id)

	body := fmt.Sprintf(`{"credentials":[{"name":"c","source":{"type":"inline","value":%q}}],"bindings":[`+
		`{"name":"b","match":{"hosts":[%q],"paths":["/v1/*","/ws"]},"auth":{"type":"bearer","credential":"c"}},`+
		`{"name":"plain","match":{"hosts":[%[2]q],"schemes":["http"]},"auth":{"type":"bearer","credential":"c"}},`+
		`{"name":"subst","match":{"hosts":[%[2]q],"paths":["/s/*"]},"auth":{"type":"passthrough","substitutions":[{"credential":"c","placeholder":"{{KEY}}","in":["body","query"]}]}}]}`,
		vaultValue, vaultHost)
	if r := call(http.MethodPost, "", body); r.Status != http.StatusCreated || strings.Contains(string(r.Body), vaultValue) {
		t.Fatalf("making the vault: %d %s", r.Status, r.Body)
	}
	t.Run("programs", func(t *testing.T) { testVaultPrograms(t, s, w, id, true) })
	t.Run("substitution", func(t *testing.T) {
		s.Must(t, id, "curl -sS --data 'k={{KEY}}' 'https://"+vaultHost+"/s/x?q=%7B%7BKEY%7D%7D'")
		if a := w.last(t); a.Body != "k=v4lue%2Fnever%2Bseen-inside" || a.Path != "/s/x?q=v4lue%2Fnever%2Bseen-inside" {
			t.Errorf("arrived: %+v", a)
		}
	})
	t.Run("conditions", func(t *testing.T) {
		if out := s.Must(t, id, "curl -sS https://"+ruledHost+"/ok"); !strings.Contains(out, ruledHost) {
			t.Errorf("a request that is allowed: %s", out)
		}
		out := s.Must(t, id, "curl -sS -w ' %{http_code}' -X POST https://"+ruledHost+"/ok")
		if !strings.HasSuffix(out, " 403") || !strings.Contains(out, "NETWORK_POLICY_DENIED") {
			t.Errorf("a request that is not: %s", out)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			r := s.Do(t, http.MethodGet, "/v1/sandboxes/"+id+"/events", nil)
			if strings.Contains(string(r.Body), "rule 1 allows other requests") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no event tells of it: %s", r.Body)
			}
		}
	})
	t.Run("covered", func(t *testing.T) {
		r := s.Do(t, http.MethodPut, "/v1/sandboxes/"+id+"/networkpolicy", denyBut(ruledHost))
		if r.Status != http.StatusBadRequest || !strings.Contains(string(r.Body), vaultHost) {
			t.Errorf("a policy without the host of a binding: %d %s", r.Status, r.Body)
		}
	})
	t.Run("restart", func(t *testing.T) {
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
	})
	t.Run("replaced_and_deleted", func(t *testing.T) {
		if r := call(http.MethodPatch, "", `{"expectedRevision":1,"credentials":{"replace":[{"name":"c","source":{"value":"another-value"}}]}}`); r.Status != 200 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		s.Must(t, id, "curl -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer another-value" {
			t.Errorf("after a patch: %+v", a)
		}
		if r := call(http.MethodDelete, "", ""); r.Status != 204 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		// Its connections are passed on as they are now, so that the sandbox
		// sees the destination's own certificate.
		if out, _, code := s.Shell(t, id, "curl -ksS https://"+vaultHost+"/v1/x"); code != 0 || strings.Contains(out, "Bearer") {
			t.Errorf("without a vault: %d %s", code, out)
		}
	})
	t.Run("sdk", func(t *testing.T) { testVaultSDK(t, s, w, id) })
	t.Run("without_policy", func(t *testing.T) {
		sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
		if r := egressCaller(t, s, sb.ID)(http.MethodPost, "", body); r.Status != http.StatusPreconditionFailed {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
	t.Run("trust_on_demand", func(t *testing.T) { testTrustOnDemand(t, s, w, body) })
	t.Run("default_allow", func(t *testing.T) {
		// Allowed by name, where everything else is allowed too.
		open := vaultSandbox(t, s, true, "allow")
		if r := egressCaller(t, s, open)(http.MethodPost, "", body); r.Status != http.StatusCreated {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		s.Must(t, open, "curl -sS https://"+vaultHost+"/v1/x")
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("arrived: %+v", a)
		}
		// An address that the sandbox only says is the host's gets nothing.
		s.Shell(t, open, "curl -ksS --resolve "+vaultHost+":80:203.0.113.53 http://"+vaultHost+"/v1/x")
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, a := range w.seen {
			if a.Authorization != "" {
				t.Errorf("another address got it: %+v", a)
			}
		}
	})
	t.Run("nothing_in_clear", func(t *testing.T) { nothingInClear(t, s) })
	t.Run("gone_with_its_sandbox", func(t *testing.T) {
		if r := call(http.MethodPost, "", body); r.Status != 201 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		if err := s.Client.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(filepath.Join(s.DataDir, "vaults"))
		if err != nil || len(left) != 0 {
			t.Errorf("left: %v %v", left, err)
		}
	})
}

func vaultSandbox(t *testing.T, s *harness.Server, proxy bool, otherwise string) string {
	t.Helper()
	p := denyBut(vaultHost)
	p["defaultAction"] = otherwise
	p["egress"] = []map[string]any{{"action": "allow", "target": vaultHost},
		{"action": "allow", "target": ruledHost, "http": map[string]any{"methods": []string{"GET"}}}}
	var sb client.Sandbox
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", map[string]any{
		"image": map[string]any{"uri": starterImage}, "entrypoint": forever, "timeout": 900,
		"resourceLimits": map[string]string{"cpu": "1", "memory": "512Mi"},
		"networkPolicy":  p, "credentialProxy": map[string]any{"enabled": proxy},
		"env": map[string]string{"PIP_CERT": "/mine"},
	}, "Prefer", "wait=30")
	if r.Status >= 300 {
		t.Fatalf("creating a sandbox: %d %s", r.Status, r.Body)
	}
	r.JSON(t, &sb)
	s.Forget(t, sb.ID)
	s.State(t, sb.ID, client.StateRunning)
	return sb.ID
}

// egressCaller calls the vault of a sandbox the way that SDKs do.
func egressCaller(t *testing.T, s *harness.Server, id string) func(method, path, body string) *harness.Response {
	var endpoint struct{ Headers map[string]string }
	s.Do(t, http.MethodGet, "/v1/sandboxes/"+id+"/endpoints/18080", nil).JSON(t, &endpoint)
	return func(method, path, body string) *harness.Response {
		t.Helper()
		var headers []string
		for k, v := range endpoint.Headers {
			headers = append(headers, k, v)
		}
		var content any
		if body != "" {
			content = json.RawMessage(body)
		}
		return s.Do(t, method, "/v1/sandboxes/"+id+"/proxy/18080/credential-vault"+path, content, headers...)
	}
}

// testVaultPrograms has programs use the vault of a sandbox, into which what they
// must trust was mounted, or written while it ran.
func testVaultPrograms(t *testing.T, s *harness.Server, w *vaultWorld, id string, mounted bool) {
	const url = "https://" + vaultHost + "/v1/x"
	node := `const r = await fetch("` + url + `", {method: "POST", body: "b"}); console.log(await r.text())`
	ws := `python3 - <<'END'
import socket, ssl
s = ssl.create_default_context().wrap_socket(socket.create_connection(("` + vaultHost + `", 443)), server_hostname="` + vaultHost + `")
s.sendall(b"GET /ws HTTP/1.1\r\nHost: ` + vaultHost + `\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")
f = s.makefile("rb")
while f.readline().strip(): pass
s.sendall(b"\x81\x85\0\0\0\0hello")  # one frame of text, masked with zeros
print(f.read(13)[2:].decode())
END`
	for name, c := range map[string]struct{ line, proto string }{
		"curl":          {"curl -sS --http1.1 " + url, "HTTP/1.1"},
		"curl_http2":    {"curl -sS --http2 " + url, "HTTP/2.0"},
		"curl_plain":    {"curl -sS http://" + vaultHost + "/v1/x", "HTTP/1.1"},
		"curl_own":      {"curl -sS -H 'Authorization: Bearer mine' " + url, "HTTP/2.0"},
		"python":        {`python3 -c 'import urllib.request as u; print(u.urlopen("` + url + `", b"b").read().decode())'`, "HTTP/1.1"},
		"python_no_env": {`env -i PATH="$PATH" SSL_CERT_FILE=/etc/paddock/ca-bundle.crt python3 -c 'import urllib.request as u; print(u.urlopen("` + url + `").read().decode())'`, "HTTP/1.1"},
		"node":          {"node --input-type=module -e '" + node + "'", "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			out := s.Must(t, id, c.line)
			if a := w.last(t); a.Authorization != "Bearer "+vaultValue || a.Proto != c.proto {
				t.Errorf("arrived: %+v", a)
			}
			if strings.Contains(out, vaultValue) || !strings.Contains(out, "Bearer "+strings.Repeat("*", len(vaultValue))) {
				t.Errorf("came back: %s", out)
			}
		})
	}
	t.Run("websocket", func(t *testing.T) {
		if out := s.Must(t, id, ws); strings.TrimSpace(out) != "heard hello" {
			t.Errorf("it says %q", out)
		}
		if a := w.last(t); a.Authorization != "Bearer "+vaultValue {
			t.Errorf("arrived: %+v", a)
		}
	})
	t.Run("elsewhere", func(t *testing.T) {
		s.Must(t, id, "curl -sS https://"+vaultHost+"/other")
		if a := w.last(t); a.Authorization != "" {
			t.Errorf("a path that is not bound got it: %+v", a)
		}
	})
	t.Run("environment", func(t *testing.T) {
		if out := s.Must(t, id, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(out, vaultValue) || !strings.Contains(out, "SSL_CERT_FILE=/etc/paddock/ca-bundle.crt") ||
			!strings.Contains(out, "PIP_CERT=/mine") {
			t.Errorf("the environment: %s", out)
		}
		if !mounted {
			return
		}
		if _, _, code := s.Shell(t, id, "echo x >> /etc/paddock/ca.crt"); code == 0 {
			t.Error("the certificate can be written to")
		}
	})
}

// nothingInClear looks for the value wherever the server writes.
func nothingInClear(t *testing.T, s *harness.Server) {
	err := filepath.WalkDir(s.DataDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // what is removed meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "images" || d.Name() == "trash") {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, v := range []string{vaultValue, "another-value", "from-the-sdk-0123"} {
			if bytes.Contains(b, []byte(v)) {
				t.Errorf("%s has a value in clear", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func testVaultSDK(t *testing.T, s *harness.Server, w *vaultWorld, id string) {
	python := sdkPython(t, newestSDK)
	cmd := exec.CommandContext(t.Context(), python, filepath.Join("python", "sdk_vault.py"))
	cmd.Env = append(harness.CleanEnviron(), "OPEN_SANDBOX_DOMAIN="+strings.TrimPrefix(s.URL, "http://"), "OPEN_SANDBOX_API_KEY="+s.Key,
		"TEST_IMAGE="+starterImage, "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1", "SANDBOX="+id, "HOST="+vaultHost)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if a := w.last(t); a.Authorization != "Basic from-the-sdk-0123" {
		t.Errorf("arrived: %+v", a)
	}
}
