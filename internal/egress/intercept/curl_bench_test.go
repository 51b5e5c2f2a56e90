package intercept

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// BenchmarkCurl downloads 1 GiB with curl from a network namespace: a client of
// another make, in a process of its own, over a link like that of a sandbox.
func BenchmarkCurl(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root, for a network namespace")
	}
	for _, tool := range []string{"curl", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip("needs " + tool)
		}
	}
	const size, host, peer = 1 << 30, "198.18.77.1", "198.18.77.2" // of the range for benchmarks, RFC 2544
	ns := fmt.Sprintf("bench%d", os.Getpid())
	run := func(args ...string) {
		b.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			b.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	run("netns", "add", ns)
	b.Cleanup(func() { run("netns", "del", ns) })
	link := fmt.Sprintf("b%d", os.Getpid())
	run("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
	run("addr", "add", host+"/30", "dev", link)
	run("link", "set", link, "up")
	run("-n", ns, "addr", "add", peer+"/30", "dev", "eth0")
	run("-n", ns, "link", "set", "eth0", "up")

	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		w.Header().Set("Content-Length", strconv.Itoa(size))
		for left := size; left > 0; left -= len(benchBlock) {
			if _, err := w.Write(benchBlock[:min(left, len(benchBlock))]); err != nil {
				return
			}
		}
	})
	for _, version := range []string{"http1.1", "http2"} {
		for _, kind := range []string{"octet-stream", "json"} {
			for _, way := range []string{"direct", "spliced", "intercepted"} {
				b.Run(version+"/"+kind+"/"+way, func(b *testing.B) {
					r := newRig(b, rigOptions{ip: host, http2: version == "http2", splice: way != "intercepted", direct: way == "direct"}, h)
					r.bind("", bearer)
					roots := filepath.Join(b.TempDir(), "ca.pem")
					if err := os.WriteFile(roots, r.rootsPEM, 0o600); err != nil {
						b.Fatal(err)
					}
					to := r.listener.Addr().String()
					if way == "direct" {
						to = r.addr.String()
					}
					before, child := cpuTime(), time.Duration(0)
					b.SetBytes(size)
					for b.Loop() {
						c := exec.Command("ip", "netns", "exec", ns, "curl", "-sS", "--"+version, "--cacert", roots, "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{size_download}",
							"--connect-to", fmt.Sprintf("%s:%d:%s", testHost, r.port, to), r.url("/v1/x?type=application/"+kind))
						out, err := c.CombinedOutput()
						if want := fmt.Sprintf("200 %s %d", map[string]string{"http1.1": "1.1", "http2": "2"}[version], size); err != nil || string(out) != want {
							b.Fatalf("%v: %s", err, out)
						}
						child += c.ProcessState.UserTime() + c.ProcessState.SystemTime()
					}
					b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N), "server-cpu-ms/op")
					b.ReportMetric(float64(child.Milliseconds())/float64(b.N), "curl-cpu-ms/op")
				})
			}
		}
	}
}
