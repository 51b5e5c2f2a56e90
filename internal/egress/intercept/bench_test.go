package intercept

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkProxy compares connections that are looked into with ones that the
// same proxy passes on untouched, and with ones without a proxy: requests per
// second with 8 clients at once and the latency that they see, and the throughput
// of one large body. Client, proxy and destination are one process, with its
// processors in common.
func BenchmarkProxy(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		w.Header().Set("Content-Length", strconv.Itoa(size))
		for block := benchBlock; size > 0; size -= len(block) {
			w.Write(block[:min(size, len(block))])
		}
	})
	for _, http2 := range []bool{false, true} {
		for _, way := range []string{"direct", "spliced", "intercepted"} {
			name := fmt.Sprintf("http%d/%s", map[bool]int{false: 1, true: 2}[http2], way)
			b.Run(name+"/requests", func(b *testing.B) { benchRequests(b, benchRig(b, h, http2, way), http2) })
			for _, kind := range []string{"octet-stream", "json"} {
				b.Run(name+"/"+kind, func(b *testing.B) { benchBody(b, benchRig(b, h, http2, way), http2, "application/"+kind) })
			}
		}
	}
}

var benchBlock = bytes.Repeat([]byte(`{"key":"value","n":12345},`+"\n"), 1<<12)

func benchRig(b *testing.B, h http.Handler, http2 bool, way string) *rig {
	r := newRig(b, rigOptions{http2: http2, splice: way != "intercepted", direct: way == "direct"}, h)
	r.bind("", bearer)
	return r
}

func benchRequests(b *testing.B, r *rig, http2 bool) {
	const clients = 8
	took := make([][]time.Duration, clients)
	var wg sync.WaitGroup
	work := make(chan struct{}, clients)
	url := r.url("/v1/x?size=200&type=application/json")
	ready := make(chan struct{})
	for i := range clients {
		rt := r.transport(http2)
		one := func() {
			req, _ := http.NewRequest("GET", url, nil)
			resp, err := rt.RoundTrip(req)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		wg.Go(func() {
			one() // the handshake
			ready <- struct{}{}
			for range work {
				start := time.Now()
				one()
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	for range clients {
		<-ready
	}
	before := cpuTime()
	b.ResetTimer()
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) }
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	// Of client, proxy and destination together: unlike the rest it says the same
	// on a machine that has other work to do.
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(at(0.5), "p50-us")
	b.ReportMetric(at(0.95), "p95-us")
	b.ReportMetric(at(0.99), "p99-us")
}

func benchBody(b *testing.B, r *rig, http2 bool, kind string) {
	const size = 16 << 20
	rt := r.transport(http2)
	url := r.url(fmt.Sprintf("/v1/x?size=%d&type=%s", size, kind))
	b.SetBytes(size)
	before := cpuTime()
	defer func() {
		b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us/op")
	}()
	for range b.N {
		req, _ := http.NewRequest("GET", url, nil)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err != nil || n != size {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkConnect measures a connection with its handshakes and one request.
func BenchmarkConnect(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	for _, way := range []string{"direct", "spliced", "intercepted"} {
		b.Run(way, func(b *testing.B) {
			r := benchRig(b, h, false, way)
			var took []time.Duration
			before := cpuTime()
			for range b.N {
				rt := r.transport(false)
				start := time.Now()
				resp, err := rt.RoundTrip(r.request("GET", "/", ""))
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				took = append(took, time.Since(start))
				rt.CloseIdleConnections()
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-us/op")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}
