package intercept

import (
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/durable"
)

const (
	authorityFor = 10 * 365 * 24 * time.Hour
	// leafFor is how long a certificate of a name is valid. One is used for half
	// of that, so that no connection begins with one that is about to end.
	leafFor = 48 * time.Hour
	// leafBefore allows for clocks in sandboxes that are slow.
	leafBefore = time.Hour
	maxLeaves  = 4096
	certFile   = "ca.crt"
	keyFile    = "ca.key"
)

// Authority signs the certificates that sandboxes see. Its methods may be
// called at the same time.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte

	mu     sync.Mutex
	leaves map[string]*list.Element // of *leaf
	recent list.List                // the last used first
}

type leaf struct {
	name  string
	cert  *tls.Certificate
	renew time.Time // when another one is made
}

// OpenAuthority reads the authority kept in a directory, and makes it at first
// use. The key is readable by its owner only.
func OpenAuthority(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the certificate authority: %w", err)
	}
	a, err := readAuthority(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(dir); err != nil {
			return nil, fmt.Errorf("making the certificate authority: %w", err)
		}
		a, err = readAuthority(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority in %s: %w", dir, err)
	}
	return a, nil
}

// PEM is the authority's certificate, which is no secret.
func (a *Authority) PEM() []byte { return a.pem }

func readAuthority(dir string) (*Authority, error) {
	// The key is written last: without it nothing was made.
	path := filepath.Join(dir, keyFile)
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key %s may be read by others (mode %04o); run: chmod 600 %s", path, fi.Mode().Perm(), path)
	}
	keyPEM, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, fmt.Errorf("the certificate of the key is missing; put it back or remove the key as well: %s", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, errors.New("key and certificate don't belong together, or are damaged; remove both to have new ones made (running sandboxes don't trust those)")
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("the certificate is not that of an authority with an ECDSA key")
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate ended on %s; remove it and its key to have new ones made", pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	return &Authority{cert: pair.Leaf, key: key, pem: certPEM, leaves: map[string]*list.Element{}}, nil
}

func makeAuthority(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	_, all4, _ := net.ParseCIDR("0.0.0.0/0")
	_, all6, _ := net.ParseCIDR("::/0")
	t := &x509.Certificate{
		SerialNumber: serial,
		// The serial keeps apart authorities of several servers, and makes one
		// that was made anew another one.
		Subject:   pkix.Name{Organization: []string{"paddock"}, CommonName: fmt.Sprintf("paddock sandbox proxy %x", serial.Bytes()[:4])},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(authorityFor),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// It speaks for host names of servers only, not for addresses.
		PermittedDNSDomainsCritical: true,
		ExcludedIPRanges:            []*net.IPNet{all4, all6},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := durable.Write(filepath.Join(dir, certFile), cert, 0o644); err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, keyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}

func newSerial() (*big.Int, error) {
	// 127 random bits with the highest set: positive, and always 16 bytes.
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 126, 1), nil
}

// leaf returns a certificate for a host name.
func (a *Authority) leaf(name string) (*tls.Certificate, error) {
	if c := a.known(name); c != nil {
		return c, nil
	}
	l, err := a.sign(name)
	if err != nil {
		return nil, err
	}
	a.keep(l)
	return l.cert, nil
}

// keep remembers a certificate, and forgets the one that was used the longest
// ago when there are many.
func (a *Authority) keep(l *leaf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.leaves[l.name]; e != nil {
		a.recent.Remove(e)
	}
	a.leaves[l.name] = a.recent.PushFront(l)
	for a.recent.Len() > maxLeaves {
		last := a.recent.Back()
		delete(a.leaves, last.Value.(*leaf).name)
		a.recent.Remove(last)
	}
}

func (a *Authority) known(name string) *tls.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.leaves[name]
	if e == nil || time.Now().After(e.Value.(*leaf).renew) {
		return nil
	}
	a.recent.MoveToFront(e)
	return e.Value.(*leaf).cert
}

func (a *Authority) sign(name string) (*leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, DNSNames: []string{name},
		NotBefore: now.Add(-leafBefore), NotAfter: now.Add(leafFor),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if len(name) <= 64 { // ub-common-name, RFC 5280 appendix A.1
		t.Subject.CommonName = name
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &leaf{name: name, renew: now.Add(leafFor / 2),
		cert: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}}, nil
}
