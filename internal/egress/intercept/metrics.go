package intercept

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Causes of errors that are no refusals of requests.
const (
	errHandshake = "sandbox_handshake" // most often a program that has authorities of its own
	errTooMany   = "too_many_connections"
	errProtocol  = "protocol" // one side broke the rules of HTTP/2
)

// counters are what Stats and the metrics show.
type counters struct {
	conns, open, requests, injected, masked atomic.Int64
	refused, errors                         map[string]*atomic.Int64
}

func (c *counters) init() {
	c.refused, c.errors = map[string]*atomic.Int64{}, map[string]*atomic.Int64{}
	for _, code := range []string{codePolicy, codeMisdirected, codeMalformed, codePath, codeEncoding, codeSubstitute, codeUnreachable, codeCertificate} {
		c.refused[code] = new(atomic.Int64)
	}
	for _, cause := range []string{errHandshake, errTooMany, errProtocol} {
		c.errors[cause] = new(atomic.Int64)
	}
}

var (
	descConns    = prometheus.NewDesc("paddock_intercept_connections_total", "Connections of sandboxes that were looked into.", nil, nil)
	descOpen     = prometheus.NewDesc("paddock_intercept_connections", "Connections of sandboxes that are being looked into.", nil, nil)
	descRequests = prometheus.NewDesc("paddock_intercept_requests_total", "Requests on connections that are looked into.", nil, nil)
	descInjected = prometheus.NewDesc("paddock_intercept_injected_total", "Requests into which credentials were put.", nil, nil)
	descMasked   = prometheus.NewDesc("paddock_intercept_masked_total", "Places in answers where a credential was masked.", nil, nil)
	descRefused  = prometheus.NewDesc("paddock_intercept_refused_total", "Requests that were not passed on, by the code of their answer.", []string{"cause"}, nil)
	descErrors   = prometheus.NewDesc("paddock_intercept_errors_total", "Connections that were looked into and failed, by cause.", []string{"cause"}, nil)
)

// Describe implements prometheus.Collector.
func (i *Interceptor) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConns, descOpen, descRequests, descInjected, descMasked, descRefused, descErrors} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (i *Interceptor) Collect(ch chan<- prometheus.Metric) {
	s := &i.stats
	for _, c := range []struct {
		desc *prometheus.Desc
		n    *atomic.Int64
	}{{descConns, &s.conns}, {descRequests, &s.requests}, {descInjected, &s.injected}, {descMasked, &s.masked}} {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.n.Load()))
	}
	ch <- prometheus.MustNewConstMetric(descOpen, prometheus.GaugeValue, float64(s.open.Load()))
	for code, n := range s.refused {
		ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(n.Load()), strings.ToLower(code))
	}
	for cause, n := range s.errors {
		ch <- prometheus.MustNewConstMetric(descErrors, prometheus.CounterValue, float64(n.Load()), cause)
	}
}
