package intercept

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
)

// maxRoots bounds a file of certificates, in bytes: those that all browsers
// trust take a quarter of it.
const maxRoots = 1 << 20

// LoadRoots returns the roots of the host and those of a PEM file, which holds
// certificates of authorities and nothing else.
func LoadRoots(path string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authorities of this machine: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRoots+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(b) > maxRoots {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxRoots)
	}
	n := 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		n++
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("block %d of %s is of the type %q: there may be certificates only", n, path, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of %s can't be read: %w", n, path, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d of %s (%s) is not that of an authority", n, path, c.Subject)
		}
		pool.AddCert(c)
	}
	if n == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	if len(bytes.TrimSpace(b)) > 0 && bytes.Contains(b, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("what follows certificate %d of %s is damaged", n, path)
	}
	return pool, nil
}
