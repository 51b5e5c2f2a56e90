package imagetest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Fault handles a request in place of the registry, or passes it on to next.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Proxy stands between a client and a registry and misbehaves as told.
type Proxy struct {
	// Host is its address, for image references.
	Host string

	next  http.Handler
	mu    sync.Mutex
	fault Fault
	seen  []string
}

// Proxy starts a proxy in front of the registry that passes everything on
// until SetFault says otherwise. It stops when the test ends.
func (r *Registry) Proxy(t testing.TB) *Proxy {
	t.Helper()
	backend := &url.URL{Scheme: "http", Host: r.Host}
	p := &Proxy{next: &httputil.ReverseProxy{Rewrite: func(req *httputil.ProxyRequest) {
		req.SetURL(backend)
		req.Out.Host = req.In.Host
	}}}
	server := httptest.NewServer(p)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	p.Host = server.Listener.Addr().String()
	return p
}

// SetFault changes how the proxy behaves; nil passes everything on.
func (p *Proxy) SetFault(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// Requests returns "METHOD path" of all requests so far whose path contains
// part.
func (p *Proxy) Requests(part string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, line := range p.seen {
		if strings.Contains(line, part) {
			out = append(out, line)
		}
	}
	return out
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	fault := p.fault
	line := r.Method + " " + r.URL.Path
	if ranges := r.Header.Get("Range"); ranges != "" {
		line += " " + ranges
	}
	p.seen = append(p.seen, line)
	p.mu.Unlock()
	if fault != nil {
		fault(w, r, p.next)
		return
	}
	p.next.ServeHTTP(w, r)
}

// Answer answers every request whose path contains part with a status and
// headers, given in pairs.
func Answer(part string, status int, headers ...string) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, part) {
			next.ServeHTTP(w, r)
			return
		}
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	}
}

// Cut drops the connection after n bytes of a blob, the given number of times.
func Cut(n int64, times int) Fault {
	var left atomic.Int64
	left.Store(int64(times))
	return forBlobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(offset int64, p []byte) []byte {
			if offset+int64(len(p)) <= n || left.Load() <= 0 {
				return p
			}
			left.Add(-1)
			if keep := n - offset; keep > 0 {
				w.Write(p[:keep])
				w.(http.Flusher).Flush()
			}
			panic(http.ErrAbortHandler)
		}}, r)
	})
}

// Spoil changes the byte at offset n of every blob that is so long.
func Spoil(n int64) Fault {
	return forBlobs(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&bodyWriter{ResponseWriter: w, write: func(offset int64, p []byte) []byte {
			if n < offset || n >= offset+int64(len(p)) {
				return p
			}
			spoilt := append([]byte(nil), p...)
			spoilt[n-offset] ^= 0xff
			return spoilt
		}}, r)
	})
}

// Hang holds every request whose path contains part, after closing started,
// until the client gives up or release is closed, and then passes it on.
func Hang(part string, started chan<- struct{}, release <-chan struct{}) Fault {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, part) {
			once.Do(func() { close(started) })
			select {
			case <-r.Context().Done():
				return
			case <-release:
			}
		}
		next.ServeHTTP(w, r)
	}
}

func forBlobs(f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		f(w, r, next)
	}
}

// bodyWriter lets write see and replace each piece of a body.
type bodyWriter struct {
	http.ResponseWriter
	offset int64
	write  func(offset int64, p []byte) []byte
}

func (b *bodyWriter) Write(p []byte) (int, error) {
	out := b.write(b.offset, p)
	b.offset += int64(len(p))
	if _, err := b.ResponseWriter.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *bodyWriter) Flush() { b.ResponseWriter.(http.Flusher).Flush() }
