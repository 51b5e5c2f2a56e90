package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/paddock-sandbox/paddock/internal/gateway"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// metrics are in a registry of their own, so that two servers in one process do
// not meet.
type metrics struct {
	handler  http.Handler
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	creates  *prometheus.HistogramVec
	clients  *prometheus.HistogramVec
}

// seconds covers an API call in a fraction of a millisecond and a pull in
// minutes.
var seconds = []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

func newMetrics(m Manager, g *gateway.Gateway, more []prometheus.Collector) *metrics {
	reg := prometheus.NewRegistry()
	ms := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "paddock_http_requests_total", Help: "Requests by route, method and status.",
		}, []string{"route", "method", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "paddock_http_request_seconds", Help: "Time to the end of the answer, by route.", Buckets: seconds,
		}, []string{"route"}),
		creates: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "paddock_sandbox_create_seconds", Help: "Time until a create was recorded or refused, without the making that follows.", Buckets: seconds,
		}, []string{"outcome"}),
		clients: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "paddock_client_create_seconds", Help: "Time of a create as clients measured and reported it.", Buckets: seconds,
		}, []string{"sdk", "success"}),
	}
	reg.MustRegister(ms.requests, ms.latency, ms.creates, ms.clients, &live{m, g},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(more...)
	ms.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	return ms
}

// knownMethods bounds the label that clients choose.
var knownMethods = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true,
}

func (m *metrics) observe(route, method string, status int, took time.Duration) {
	if !knownMethods[method] {
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(route).Observe(took.Seconds())
}

func (m *metrics) created(took time.Duration, err error) {
	outcome := "accepted"
	if err != nil {
		outcome = "refused"
	}
	m.creates.WithLabelValues(outcome).Observe(took.Seconds())
}

func (m *metrics) reported(sdk string, success bool, took time.Duration) {
	m.clients.WithLabelValues(sdk, strconv.FormatBool(success)).Observe(took.Seconds())
}

func (s *Server) serveMetrics(r *request) error {
	s.metrics.handler.ServeHTTP(r.w, r.Request)
	return nil
}

// live collects what the manager and the gateway count themselves.
type live struct {
	manager Manager
	gateway *gateway.Gateway
}

var (
	descSandboxes = prometheus.NewDesc("paddock_sandboxes", "Sandboxes by state.", []string{"state"}, nil)
	descCreates   = prometheus.NewDesc("paddock_sandbox_creates_total", "Creates that passed validation.", nil, nil)
	descFailures  = prometheus.NewDesc("paddock_sandbox_create_failures_total", "Sandboxes that could not be made.", nil, nil)
	descDeletes   = prometheus.NewDesc("paddock_sandbox_deletes_total", "Sandboxes that were deleted.", nil, nil)
	descExpired   = prometheus.NewDesc("paddock_sandbox_expired_total", "Sandboxes that expired.", nil, nil)
	descExits     = prometheus.NewDesc("paddock_sandbox_exits_total", "Sandboxes whose entrypoint ended by itself.", nil, nil)
	descDenials   = prometheus.NewDesc("paddock_policy_denials_total", "What network policies refused, or would have in audit mode, by protocol.", []string{"protocol"}, nil)
	descHeld      = prometheus.NewDesc("paddock_held_requests", "Requests that wait for their sandbox to start.", nil, nil)
	descConns     = prometheus.NewDesc("paddock_gateway_connections", "Open connections into sandboxes.", nil, nil)
)

// states are all listed, so that a state without sandboxes shows as 0.
var states = []sandbox.State{sandbox.Pending, sandbox.Running, sandbox.Pausing, sandbox.Paused,
	sandbox.Resuming, sandbox.Stopping, sandbox.Terminated, sandbox.Failed}

// Describe implements prometheus.Collector.
func (l *live) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descSandboxes, descCreates, descFailures, descDeletes, descExpired, descExits, descDenials, descHeld, descConns} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *live) Collect(ch chan<- prometheus.Metric) {
	st, g := l.manager.Stats(), l.gateway.Stats()
	for _, state := range states {
		ch <- prometheus.MustNewConstMetric(descSandboxes, prometheus.GaugeValue, float64(st.ByState[state]), string(state))
	}
	for _, c := range []struct {
		desc *prometheus.Desc
		n    int64
	}{
		{descCreates, st.Creates}, {descFailures, st.CreateFailures}, {descDeletes, st.Deletes},
		{descExpired, st.Expired}, {descExits, st.Exits},
	} {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.n))
	}
	for protocol, n := range st.Denials {
		ch <- prometheus.MustNewConstMetric(descDenials, prometheus.CounterValue, float64(n), protocol)
	}
	ch <- prometheus.MustNewConstMetric(descHeld, prometheus.GaugeValue, float64(st.Held))
	ch <- prometheus.MustNewConstMetric(descConns, prometheus.GaugeValue, float64(g.Connections))
}
