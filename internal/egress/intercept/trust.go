package intercept

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"

	"software.sslmate.com/src/go-pkcs12"
)

// Where a sandbox finds what it is to trust.
const (
	TrustDir = "/etc/paddock"
	// CertPath is the authority's certificate alone.
	CertPath = TrustDir + "/ca.crt"
	// BundlePath is the roots of the image and the authority.
	BundlePath = TrustDir + "/ca-bundle.crt"
	// JavaPath is the same for Java, in PKCS #12.
	JavaPath = TrustDir + "/ca-bundle.p12"
)

// javaPassword guards nothing: there are public certificates behind it, and
// Java's own store has the same.
const javaPassword = "changeit"

// TrustEnvironment tells programs about BundlePath, those that add to their own
// roots about CertPath, and, if asked to, Java about JavaPath.
func TrustEnvironment(java bool) map[string]string {
	env := map[string]string{
		// These name what is trusted instead of the program's own roots.
		"SSL_CERT_FILE":      BundlePath, // OpenSSL, Go, Python's ssl, Ruby, rustls
		"REQUESTS_CA_BUNDLE": BundlePath, // Python requests
		"CURL_CA_BUNDLE":     BundlePath, // curl, and requests
		"PIP_CERT":           BundlePath,
		"GIT_SSL_CAINFO":     BundlePath,
		"AWS_CA_BUNDLE":      BundlePath, // the AWS command line and SDKs
		"CARGO_HTTP_CAINFO":  BundlePath,

		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": BundlePath,

		// These add to them.
		"NODE_EXTRA_CA_CERTS": CertPath,
		"DENO_CERT":           CertPath,
	}
	if java {
		env["JAVA_TOOL_OPTIONS"] = "-Djavax.net.ssl.trustStore=" + JavaPath +
			" -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=" + javaPassword
	}
	return env
}

// Bundle is the certificates of roots, which may be anything, and that of the
// authority.
func Bundle(roots, authority []byte) []byte {
	var out bytes.Buffer
	for _, c := range certificates(roots) {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Buffer takes all
	}
	out.Write(authority)
	return out.Bytes()
}

// JavaStore is a Bundle as Java reads it.
func JavaStore(bundle []byte) ([]byte, error) {
	certs := certificates(bundle)
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate to put into a trust store")
	}
	return pkcs12.Modern.EncodeTrustStore(certs, javaPassword)
}

// certificates are those that can be read. Others are left out, as a TLS library
// would.
func certificates(from []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, from = pem.Decode(from); block == nil {
			return all
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
}
