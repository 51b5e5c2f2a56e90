package gateway

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

func BenchmarkRoundTrip(b *testing.B) {
	addr := backend(b, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: {\"type\":\"init\"}\n\n")
		w.(http.Flusher).Flush()
		io.WriteString(w, "data: {\"type\":\"execution_complete\"}\n\n")
	})
	f := front(b, newGateway(b, Options{Dialer: dialTo(addr)}))
	for name, url := range map[string]string{"gateway": f.URL + "/sb/44772/command", "direct": "http://" + addr + "/command"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := http.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

func BenchmarkTransfer(b *testing.B) {
	const size = 64 << 20
	zeros := make([]byte, 1<<20)
	addr := backend(b, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			io.CopyBuffer(io.Discard, struct{ io.Reader }{r.Body}, make([]byte, 256<<10))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size / len(zeros) {
			w.Write(zeros)
		}
	})
	f := front(b, newGateway(b, Options{Dialer: dialTo(addr)}))
	run := func(name string, once func() (*http.Response, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			buf := make([]byte, 256<<10)
			for b.Loop() {
				resp, err := once()
				if err != nil {
					b.Fatal(err)
				}
				io.CopyBuffer(io.Discard, struct{ io.Reader }{resp.Body}, buf)
				resp.Body.Close()
			}
		})
	}
	for name, base := range map[string]string{"gateway": f.URL + "/sb/44772/", "direct": "http://" + addr + "/"} {
		run("download/"+name, func() (*http.Response, error) { return http.Get(base) })
		run("sized upload/"+name, func() (*http.Response, error) {
			req, err := http.NewRequest("POST", base, io.LimitReader(zeroReader{}, size))
			if err != nil {
				return nil, err
			}
			req.ContentLength = size
			return http.DefaultClient.Do(req)
		})
		run("chunked upload/"+name, func() (*http.Response, error) {
			return http.Post(base, "application/octet-stream", io.LimitReader(zeroReader{}, size))
		})
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }
