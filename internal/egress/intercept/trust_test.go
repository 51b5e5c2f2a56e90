package intercept

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBundle(t *testing.T) {
	own, other := authority(t), authority(t)
	junk := append([]byte("# comment\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), other.PEM()...)
	got := Bundle(junk, own.PEM())
	if n := len(certificates(got)); n != 2 || bytes.Contains(got, []byte("PRIVATE")) {
		t.Errorf("%d certificates in %s", n, got)
	}
	if got := Bundle(nil, own.PEM()); !bytes.Equal(got, own.PEM()) {
		t.Errorf("without roots: %s", got)
	}
	if _, err := JavaStore(nil); err == nil {
		t.Error("a trust store of nothing")
	}
}

// What a Java virtual machine makes of the trust store and of the authority.
const javaClient = `
import javax.net.ssl.*;
import java.net.Socket;
class Client {
    public static void main(String[] a) throws Exception {
        String host = a[0];
        int port = Integer.parseInt(a[1]);
        Socket plain = new Socket("127.0.0.1", port);
        SSLSocket s = (SSLSocket) ((SSLSocketFactory) SSLSocketFactory.getDefault()).createSocket(plain, host, port, true);
        SSLParameters p = s.getSSLParameters();
        p.setEndpointIdentificationAlgorithm("HTTPS");
        s.setSSLParameters(p);
        s.getOutputStream().write(("GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n").getBytes());
        System.out.println(new String(s.getInputStream().readAllBytes()));
    }
}
`

func TestJavaTrusts(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil || testing.Short() {
		t.Skip("needs java, and time")
	}
	h, ch := listening(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello from there") })
	r := newRig(t, rigOptions{}, h)
	r.bind("", bearer)
	store, err := JavaStore(Bundle(authority(t).PEM(), r.i.o.Authority.PEM()))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "ca.p12")
	source := filepath.Join(dir, "Client.java")
	if err := os.WriteFile(path, store, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, []byte(javaClient), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(r.listener.Addr().String(), ":")
	cmd := exec.CommandContext(t.Context(), java, source, testHost, port)
	options := strings.ReplaceAll(TrustEnvironment(true)["JAVA_TOOL_OPTIONS"], JavaPath, path)
	cmd.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS="+options)
	out, err := cmd.CombinedOutput()
	if err != nil && bytes.Contains(out, []byte("jdk.compiler")) {
		t.Skip("this java can't run a source file")
	}
	if err != nil || !bytes.Contains(out, []byte("hello from there")) {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := <-ch; got.Header.Get("Authorization") != "Bearer "+testValue {
		t.Errorf("arrived: %+v", got)
	}
}
