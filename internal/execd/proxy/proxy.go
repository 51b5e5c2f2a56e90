package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

// dialTimeout bounds a connection attempt to loopback.
const dialTimeout = 5 * time.Second

// API forwards to loopback. It may be used in parallel.
type API struct {
	forward *httputil.ReverseProxy
}

type portKey struct{}

// New makes the API.
func New() *API {
	a := &API{}
	a.forward = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		FlushInterval: -1, // as it comes: server-sent events
		ErrorHandler:  unreachable,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				return dial(ctx, port)
			},
			DisableCompression: true, // bytes pass as they are
			MaxIdleConns:       8,
			IdleConnTimeout:    30 * time.Second,
		},
	}
	return a
}

// Routes adds the routes. All methods are forwarded.
func (a *API) Routes(mux *http.ServeMux) {
	mux.HandleFunc("/proxy/", a.serve)
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	text, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/proxy/"), "/")
	if _, err := parsePort(text); err != nil {
		http.Error(w, "Bad Request: "+err.Error(), http.StatusBadRequest)
		return
	}
	a.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), portKey{}, text)))
}

func parsePort(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", text)
	}
	return n, nil
}

func rewrite(p *httputil.ProxyRequest) {
	port, _ := p.In.Context().Value(portKey{}).(string)
	prefix := "/proxy/" + port
	p.Out.URL.Scheme = "http"
	p.Out.URL.Host = "127.0.0.1:" + port
	p.Out.URL.Path = orSlash(strings.TrimPrefix(p.In.URL.Path, prefix))
	p.Out.URL.RawPath = ""
	if p.In.URL.RawPath != "" {
		p.Out.URL.RawPath = orSlash(strings.TrimPrefix(p.In.URL.RawPath, prefix))
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	forwarded := p.In.Header.Get("X-Forwarded-For")
	if forwarded == "" {
		forwarded, _, _ = net.SplitHostPort(p.In.RemoteAddr)
	}
	if forwarded != "" {
		p.Out.Header.Set("X-Forwarded-For", forwarded)
	}
	p.Out.Header.Set("X-Forwarded-Proto", "http")
	p.Out.Header.Del("X-Forwarded-Host")
	// The token is execd's, not the service's.
	p.Out.Header.Del("X-EXECD-ACCESS-TOKEN")
}

func orSlash(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

func unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) {
		return // the client has gone
	}
	http.Error(w, "Bad Gateway: nothing answers on that port of the sandbox", http.StatusBadGateway)
}

// dial connects to a loopback port, IPv4 first.
func dial(ctx context.Context, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return c, nil
	}
	if c, err6 := d.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); err6 == nil {
		return c, nil
	}
	return nil, err
}

// Tunnel answers hostapi.DialPath.
func (a *API) Tunnel(w http.ResponseWriter, r *http.Request) {
	port, err := parsePort(r.URL.Query().Get("port"))
	if err != nil {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "%v", err)
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "The request must ask for \"Upgrade: tcp\".")
		return
	}
	service, err := dial(r.Context(), strconv.Itoa(port))
	if err != nil {
		answer.Error(w, http.StatusBadGateway, answer.RuntimeError, "%v", err)
		return
	}
	defer service.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%v", err)
		return
	}
	defer client.Close()
	if err := client.SetDeadline(time.Time{}); err != nil {
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return
	}
	early := make([]byte, buffered.Reader.Buffered())
	if _, err := io.ReadFull(buffered.Reader, early); err != nil {
		return
	}
	if _, err := service.Write(early); err != nil {
		return
	}
	Splice(client, service)
}

// Splice copies both ways until both directions have ended, passing half-closes
// on. The caller closes the connections.
func Splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(dst, src net.Conn) {
		defer wg.Done()
		_, err := io.Copy(dst, src)
		if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
			return
		}
		dst.Close()
		src.Close()
	}
	wg.Add(2)
	go one(a, b)
	go one(b, a)
	wg.Wait()
}
