package test

import (
	_ "embed"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

//go:embed testdata/lookups.py
var lookupsScript string

// BenchmarkLookup is what a lookup costs a program in a sandbox: of a name that a
// policy allows, of one that it denies, without a policy, and straight from the
// server whom the host asks, past the host's resolver. That server knows the
// answer. Run it with -benchtime=1000x: one lookup takes about 11 ms, nearly all
// of it a pause.
func BenchmarkLookup(b *testing.B) {
	if !inOwnNetwork(b) {
		return
	}
	harness.Binary(b)
	archive := harness.StarterImage(b)
	newVaultWorld(b)
	s := harness.New(b, map[string]string{"network.dns_upstreams": "203.0.113.53", "pool.size": "1"})
	if err := s.ImportFile(b.Context(), archive, starterImage); err != nil {
		b.Fatal(err)
	}
	policed, open := lookupSandbox(b, s, denyBut(vaultHost)), lookupSandbox(b, s, nil)
	resolver := strings.TrimSpace(s.Must(b, policed, "sed -n 's/^nameserver //p' /etc/resolv.conf | head -1"))
	for _, c := range []struct{ name, sandbox, resolver, host string }{
		{"policy", policed, resolver, vaultHost},
		{"denied", policed, resolver, "denied.example"},
		{"no_policy", open, resolver, vaultHost},
		{"straight", open, "203.0.113.53", vaultHost},
	} {
		b.Run(c.name, func(b *testing.B) {
			out := s.Must(b, c.sandbox, fmt.Sprintf("python3 /lookups.py %s %s %d", c.resolver, c.host, b.N))
			var times []time.Duration
			for f := range strings.FieldsSeq(out) {
				n, err := strconv.ParseInt(f, 10, 64)
				if err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Duration(n))
			}
			if len(times) != b.N {
				b.Fatalf("%d lookups of %d: %s", len(times), b.N, out)
			}
			slices.Sort(times)
			b.ReportMetric(0, "ns/op")
			for _, p := range []int{50, 95, 99} {
				b.ReportMetric(float64(times[len(times)*p/100].Microseconds()), fmt.Sprintf("p%d-µs", p))
			}
		})
	}
}

func lookupSandbox(b *testing.B, s *harness.Server, policy map[string]any) string {
	b.Helper()
	body := map[string]any{"image": map[string]any{"uri": starterImage}, "entrypoint": forever, "timeout": 900,
		"resourceLimits": map[string]string{"cpu": "1", "memory": "512Mi"}}
	if policy != nil {
		body["networkPolicy"] = policy
	}
	var sb client.Sandbox
	r := s.Do(b, http.MethodPost, "/v1/sandboxes", body, "Prefer", "wait=30")
	if r.Status >= 300 {
		b.Fatalf("creating a sandbox: %d %s", r.Status, r.Body)
	}
	r.JSON(b, &sb)
	s.Forget(b, sb.ID)
	s.State(b, sb.ID, client.StateRunning)
	s.Must(b, sb.ID, "cat > /lookups.py <<'END'\n"+lookupsScript+"\nEND")
	return sb.ID
}
