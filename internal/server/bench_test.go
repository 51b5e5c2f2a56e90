package server

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func drain(b testing.TB, c *http.Client, req *http.Request) {
	resp, err := c.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

func BenchmarkGet(b *testing.B) {
	f := start(b, func(o *Options) { o.Logger = quiet() })
	f.m.put("sb", sandbox.Running)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
		req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes/sb", nil)
		req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
		for pb.Next() {
			drain(b, c, req)
		}
	})
}

func BenchmarkList100(b *testing.B) {
	f := start(b, func(o *Options) { o.Logger = quiet() })
	for i := range 100 {
		f.m.put(fmt.Sprintf("sb-%d", i), sandbox.Running)
	}
	req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes?pageSize=100", nil)
	req.Header.Set("OPEN-SANDBOX-API-KEY", testKey)
	for b.Loop() {
		drain(b, http.DefaultClient, req)
	}
}

func BenchmarkProxy(b *testing.B) {
	f := start(b, func(o *Options) { o.Logger = quiet() })
	f.m.put("sb", sandbox.Running)
	f.m.dial = program(b, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "pong") })
	req, _ := http.NewRequest("GET", f.url+"/v1/sandboxes/sb/proxy/44772/ping", nil)
	req.Header.Set("OpenSandbox-Secure-Access", "token-of-sb")
	b.ReportAllocs()
	for b.Loop() {
		drain(b, http.DefaultClient, req)
	}
}

// BenchmarkIngress is BenchmarkProxy by signed addresses.
func BenchmarkIngress(b *testing.B) {
	for _, short := range []bool{false, true} {
		f := withIngress(b, func(o *Options) { o.Logger, o.Ingress.Keys = quiet(), testKeys(b, short) })
		f.m.put("sb", sandbox.Running)
		f.m.dial = program(b, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "pong") })
		later := uint64(time.Now().Add(time.Hour).Unix())
		for form, v := range forms("sb", 44772, later, f.s.opts.Ingress.Keys.Sign("sb", 44772, later)) {
			if strings.HasPrefix(form, "o") {
				continue // the old header and the same forms on another port
			}
			b.Run(fmt.Sprintf("%s/short=%v", form, short), func(b *testing.B) {
				req, _ := http.NewRequest("GET", f.url+v.path, nil)
				req.Host = v.host
				for i := 0; i < len(v.header); i += 2 {
					req.Header.Set(v.header[i], v.header[i+1])
				}
				b.ReportAllocs()
				for b.Loop() {
					drain(b, http.DefaultClient, req)
				}
			})
		}
	}
}
