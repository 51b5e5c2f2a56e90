package browser

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	image = "python:3.11"
	// secureBase is below no public suffix that browsers know, as most domains
	// of a company; localhost is one itself.
	secureBase, plainBase = "apps.test", "localhost"
	appPort               = 8000
	// startTimeout bounds making the server, the sandboxes and the browser.
	startTimeout = 3 * time.Minute
)

//go:embed testdata/app.py
var app string

// shared is what all tests use. It is made by the first.
var shared struct {
	once   sync.Once
	err    error
	server *harness.Server
	secure bool // the server has TLS
	work   string
	spki   string // of the server's certificate
	// ids are of the sandboxes with the applications "one" and "two".
	ids  [2]string
	keys *address.Keys
	// browser is the browser's context.
	browser context.Context
	island  *island
	stop    []context.CancelFunc
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	ctx := context.Background()
	if os.Geteuid() == 0 {
		harness.SweepStale(ctx, harness.BinaryPath())
	}
	code := m.Run()
	for _, stop := range shared.stop {
		stop()
	}
	if s := shared.server; s != nil {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			fmt.Printf("FAIL: closing the server:\n%v\n", err)
			code = max(code, 1)
		}
		if code != 0 && testing.Verbose() {
			fmt.Printf("the server's log ends with:\n%s\n", s.LogTail(16<<10))
		}
	}
	if shared.work != "" {
		os.RemoveAll(shared.work)
	}
	if dir, err := harness.RunDir(); err == nil {
		os.RemoveAll(dir)
	}
	return code
}

// setUp makes the server, with TLS, the sandboxes and the browser.
func setUp(t *testing.T) {
	t.Helper()
	binary := harness.Binary(t)
	chromium := harness.RequireProgram(t, "chromium")
	harness.RequireProgram(t, "nsenter")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(cache, "paddock", "starter.tar")
	_, err = os.Stat(archive)
	harness.Require(t, err == nil, "the starter image at "+archive+": run scripts/starter-image.sh")
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if shared.err = startServer(ctx, binary, archive); shared.err == nil {
			shared.err = startBrowser(chromium)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	if shared.server.PID() == 0 {
		t.Fatalf("the server has died; its log ends with:\n%s", shared.server.LogTail(8<<10))
	}
}

// serve has the server use TLS or not, and the host names that go with it.
func serve(t *testing.T, secure bool) {
	t.Helper()
	setUp(t)
	if shared.secure == secure {
		return
	}
	cert, key, base := "", "", plainBase
	if secure {
		cert, key, base = filepath.Join(shared.work, "cert.pem"), filepath.Join(shared.work, "key.pem"), secureBase
	}
	s := shared.server
	s.Set("server.tls_cert", cert)
	s.Set("server.tls_key", key)
	s.Set("gateway.base_domain", base)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	shared.secure = secure
}

func startServer(ctx context.Context, binary, archive string) (err error) {
	if shared.work, err = os.MkdirTemp("", "paddock-browser-"); err != nil {
		return err
	}
	cert, key := filepath.Join(shared.work, "cert.pem"), filepath.Join(shared.work, "key.pem")
	if err := certify(cert, key); err != nil {
		return err
	}
	o := harness.Options{Binary: binary, DataDir: filepath.Join(shared.work, "data"), Settings: map[string]string{
		"server.tls_cert": cert, "server.tls_key": key, "gateway.base_domain": secureBase, "pool.size": "2",
	}}
	shared.secure = true
	if o.RunDir, err = harness.RunDir(); err != nil {
		return err
	}
	if err := harness.Remember(o.RunDir, o.DataDir); err != nil {
		return err
	}
	s, err := harness.Launch(ctx, o)
	if err != nil {
		return err
	}
	shared.server = s
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := s.Client.ImportImage(ctx, f, image); err != nil {
		return err
	}
	for i, name := range []string{"one", "two"} {
		sb, err := s.Client.Create(ctx, client.CreateRequest{
			Image: image, Entrypoint: []string{"python3", "-c", app, fmt.Sprint(appPort), name}, Timeout: time.Hour, Wait: time.Minute,
		})
		if err != nil {
			return err
		}
		shared.ids[i] = sb.ID
	}
	secret, err := os.ReadFile(filepath.Join(s.DataDir, "gateway-key"))
	if err != nil {
		return err
	}
	shared.keys, err = keysOf(string(secret))
	return err
}

// startBrowser starts Chromium. Root needs --no-sandbox, which chromedp adds.
func startBrowser(path string) error {
	var err error
	if shared.island, err = newIsland(); err != nil {
		return err
	}
	var opts []chromedp.ExecAllocatorOption
	opts = append(opts, chromedp.DefaultExecAllocatorOptions[:]...)
	opts = append(opts,
		chromedp.ExecPath(path), chromedp.DisableGPU,
		// Another way around a certificate that nobody signed would make
		// service workers impossible.
		chromedp.Flag("ignore-certificate-errors-spki-list", shared.spki),
		chromedp.Flag("host-resolver-rules", "MAP *."+secureBase+" 127.0.0.1"),
		chromedp.Flag("no-proxy-server", true),
		chromedp.ModifyCmdFunc(shared.island.command),
		// What it leaves behind goes with this directory.
		chromedp.Env("TMPDIR="+shared.work, "HOME="+shared.work),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	browser, cancel := chromedp.NewContext(allocator)
	shared.stop = append(shared.stop, cancel, stop)
	shared.browser = browser
	return chromedp.Do(browser)
}

// certify writes a certificate for the API and the host names of ports, which
// signs itself.
func certify(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "paddock test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"*." + secureBase}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(public)
	shared.spki = base64.StdEncoding.EncodeToString(sum[:])
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
}
