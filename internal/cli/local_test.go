package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/durable"
)

func TestDataLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := look(dir); !errors.Is(err, errNoServer) {
		t.Fatalf("before anything: %v", err)
	}
	lock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := look(dir); !errors.Is(err, errChanging) {
		t.Errorf("locked without server.json: %v", err)
	}
	if err := durable.Write(filepath.Join(dir, serverFile), []byte(`{"url":"http://127.0.0.1:1","pid":42}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := look(dir); err != nil || info.PID != 42 {
		t.Errorf("found %+v, %v", info, err)
	}
	if _, err := lockData(dir); err == nil || !strings.Contains(err.Error(), "process 42") {
		t.Errorf("a second holder: %v", err)
	}
	if err := lock.release(); err != nil {
		t.Fatal(err)
	}
	// What a killed server leaves behind leads nobody astray.
	if _, err := look(dir); !errors.Is(err, errNoServer) {
		t.Errorf("after the end: %v", err)
	}
	again, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.release()
}

func loaded(t *testing.T, overrides ...config.Override) *config.Loaded {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	overrides = append(overrides, config.Override{Key: "storage.data_dir", Value: t.TempDir(), Source: "test"})
	cfg, err := config.Load(config.LoadOptions{Path: path, Overrides: overrides})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestServerKey(t *testing.T) {
	cfg := loaded(t)
	key, fresh, err := serverKey(cfg)
	if err != nil || !fresh || len(key) != 64 {
		t.Fatalf("%d characters, %v, %v", len(key), fresh, err)
	}
	path := filepath.Join(cfg.Storage.DataDir, apiKeyFile)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if again, fresh, err := serverKey(cfg); again != key || fresh || err != nil {
		t.Errorf("another key at the second start: %v", err)
	}
	if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := serverKey(cfg); err == nil {
		t.Error("an empty key was taken")
	}
	set := loaded(t, config.Override{Key: "server.api_key", Value: "0123456789abcdef", Source: "test"})
	if key, fresh, err := serverKey(set); key != "0123456789abcdef" || fresh || err != nil {
		t.Errorf("the configured key is not used: %v", err)
	}
	none := loaded(t, config.Override{Key: "server.insecure_no_auth", Value: "true", Source: "test"})
	if key, _, err := serverKey(none); key != "" || err != nil {
		t.Errorf("no key is due: %v", err)
	}
	if _, err := os.Stat(filepath.Join(none.Storage.DataDir, apiKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made: %v", err)
	}
}

func TestListenAddresses(t *testing.T) {
	for in, want := range map[string]string{"0.0.0.0:0": "127.0.0.1", "127.0.0.1:0": "127.0.0.1", ":0": "127.0.0.1"} {
		l, err := net.Listen(network(in), in)
		if err != nil {
			t.Fatal(err)
		}
		host, _, err := net.SplitHostPort(reachable(l.Addr()))
		if err != nil || host != want {
			t.Errorf("%s: %s, %v", in, host, err)
		}
		if c, err := net.Dial("tcp", reachable(l.Addr())); err != nil {
			t.Errorf("%s: %v", in, err)
		} else {
			c.Close()
		}
		if in == "0.0.0.0:0" && l.Addr().(*net.TCPAddr).IP.To4() == nil {
			t.Errorf("%s listens on %s", in, l.Addr())
		}
		l.Close()
	}
}

func TestNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for _, address := range []string{path, "@paddock-test-" + rand.Text()} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a := &app{environ: []string{"NOTIFY_SOCKET=" + address}}
		if err := a.notifySystemd("READY=1"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != "READY=1" {
			t.Errorf("%s: %q, %v", address, buf[:n], err)
		}
	}
	if err := (&app{}).notifySystemd("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	if err := (&app{environ: []string{"NOTIFY_SOCKET=nonsense"}}).notifySystemd("READY=1"); err == nil {
		t.Error("a strange address was taken")
	}
}

// A local server with a certificate that is valid for nothing is reached by its
// fingerprint, and another one with its key is not.
func TestPinnedCertificate(t *testing.T) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1, 0), DNSNames: []string{"elsewhere"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"version":"7"}`))
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: priv}}}
	srv.StartTLS()
	defer srv.Close()
	sum := sha256.Sum256(der)
	for _, c := range []struct {
		pin string
		ok  bool
	}{{hex.EncodeToString(sum[:]), true}, {strings.Repeat("0", 64), false}} {
		conn, err := (&app{}).dial(&serverInfo{URL: srv.URL, CertSHA256: c.pin})
		if err != nil {
			t.Fatal(err)
		}
		v, err := conn.ServerVersion(t.Context())
		if (err == nil) != c.ok || c.ok && v != "7" {
			t.Errorf("pin %.8s: %q, %v", c.pin, v, err)
		}
	}
}
