package intercept

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// curl, with an HTTP/2 library of another make, goes through with bodies both
// ways.
func TestCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	body := strings.Repeat(`{"key":"value"}`+"\n", 1<<16)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"http1.1", "http2", "http2-prior-knowledge"} {
		t.Run(version, func(t *testing.T) {
			clear := version == "http2-prior-knowledge"
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("X-Proto", r.Proto)
				io.Copy(w, r.Body)
				io.WriteString(w, r.Header.Get("Authorization"))
			})
			r := newRig(t, rigOptions{http2: version != "http1.1", plain: clear}, h)
			r.bind(`,"schemes":["http","https"]`, bearer)
			roots := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(roots, r.rootsPEM, 0o600); err != nil {
				t.Fatal(err)
			}
			url := r.url("/")
			if clear {
				url = strings.Replace(url, "https", "http", 1)
			}
			args := []string{"-sS", "--max-time", "20", "--" + version, "--cacert", roots, "-D", "/dev/stderr",
				"--connect-to", fmt.Sprintf("%s:%d:%s", testHost, r.port, r.listener.Addr())}
			for _, upload := range []string{"", body} {
				c := exec.Command("curl", append(args, url)...)
				if upload != "" {
					c = exec.Command("curl", append(args, "-T", file, url)...)
				}
				var head strings.Builder
				c.Stderr = &head
				out, err := c.Output()
				if err != nil || string(out) != upload+"Bearer "+strings.Repeat("*", len(testValue)) {
					t.Errorf("%v: %d bytes, %s", err, len(out), head.String())
				}
				if want := map[bool]string{true: "HTTP/1.1", false: "HTTP/2.0"}[version == "http1.1"]; !strings.Contains(head.String(), want) {
					t.Errorf("over another version: %s", head.String())
				}
			}
		})
	}
}
