package intercept

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	h, _ := listening(nil)
	r := newRig(t, rigOptions{http2: true}, h)
	r.bind("", bearer)
	rt := r.transport(true)
	r.do(rt, r.request("GET", "/", ""))
	req := r.request("GET", "/", "")
	req.Host = "evil.example.com"
	r.do(rt, req)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.i)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"paddock_intercept_connections_total": 1, "paddock_intercept_connections": 1, "paddock_intercept_requests_total": 2,
		"paddock_intercept_injected_total": 1, "paddock_intercept_masked_total": 0,
		"paddock_intercept_refused_total host_mismatch": 1, "paddock_intercept_refused_total network_policy_denied": 0,
		"paddock_intercept_errors_total protocol": 0, "paddock_intercept_errors_total sandbox_handshake": 0,
	} {
		if n, ok := got[name]; !ok || n != want {
			t.Errorf("%s is %v (there: %v), want %v", name, n, ok, want)
		}
	}
}
