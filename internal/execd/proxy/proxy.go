package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// dialTimeout bounds a connection attempt. On loopback only a service with
	// a full backlog takes time.
	dialTimeout = 5 * time.Second
	// maxHeader bounds the header of a service's answer, in bytes. The service
	// is hostile, and execd's memory is the sandbox's.
	maxHeader = 1 << 20
	// copySize is how much is copied at a time, in bytes.
	copySize = 32 << 10
)

// API forwards to loopback. It may be used in parallel.
type API struct {
	forward *httputil.ReverseProxy
}

// portKey is the context's key of the port, as it is written in the path.
type portKey struct{}

// New makes the API.
func New() *API {
	a := &API{}
	a.forward = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		FlushInterval: -1, // as it comes: server-sent events
		ErrorHandler:  unreachable,
		// Its failure closes the connection to the service.
		ModifyResponse: checkUpgrade,
		// What a service does wrong is no concern of the sandbox's log.
		ErrorLog:   log.New(io.Discard, "", 0),
		BufferPool: &buffers{},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				return dial(ctx, port)
			},
			DisableCompression: true, // bytes pass as they are
			// A new connection on loopback costs microseconds. A kept one can
			// lead to a service that has given the port to another, or be
			// closed under a request that must not be sent twice.
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxHeader,
		},
	}
	return a
}

// buffers lends the memory for copying answers.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, copySize)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// Routes adds the routes. All methods are forwarded.
func (a *API) Routes(mux *http.ServeMux) {
	mux.HandleFunc("/proxy/", a.serve)
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	// The path as it was sent, because what is behind the port is the service's
	// to decode.
	rest, _ := strings.CutPrefix(r.URL.EscapedPath(), "/proxy/")
	text, _, _ := strings.Cut(rest, "/")
	if _, err := parsePort(text); err != nil {
		http.Error(w, "Bad Request: "+err.Error()+"; the path is /proxy/PORT/...", http.StatusBadRequest)
		return
	}
	// Else the server reads the request to its end before the first byte of the
	// answer goes out. A ResponseWriter that does not know it needs it not.
	_ = http.NewResponseController(w).EnableFullDuplex()
	a.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), portKey{}, text)))
}

// parsePort reads a port in digits and nothing else: no sign, no name of a
// service, and no second way to write the same port.
func parsePort(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '0' {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", text)
	}
	return int(n), nil
}

func rewrite(p *httputil.ProxyRequest) {
	port, _ := p.In.Context().Value(portKey{}).(string)
	prefix := "/proxy/" + port
	out := p.Out
	out.URL.Scheme = "http"
	out.URL.Host = "127.0.0.1:" + port
	out.URL.Path = orSlash(strings.TrimPrefix(p.In.URL.Path, prefix))
	out.URL.RawPath = ""
	if p.In.URL.RawPath != "" {
		out.URL.RawPath = orSlash(strings.TrimPrefix(p.In.URL.RawPath, prefix))
	}
	// ReverseProxy drops what it can't parse; it is the service's to judge.
	out.URL.RawQuery = p.In.URL.RawQuery
	out.Host = p.In.Host
	forwarded := p.In.Header.Get("X-Forwarded-For")
	if forwarded == "" {
		// No address on the engine's Unix socket.
		forwarded, _, _ = net.SplitHostPort(p.In.RemoteAddr)
	}
	if forwarded != "" {
		out.Header.Set("X-Forwarded-For", forwarded)
	}
	out.Header.Set("X-Forwarded-Proto", "http")
	out.Header.Del("X-Forwarded-Host")
	// The token is execd's, not the service's.
	out.Header.Del(hostapi.TokenHeader)
}

func orSlash(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

// checkUpgrade refuses a change of protocol that was not asked for. ReverseProxy
// does too, but keeps the connection open then.
func checkUpgrade(res *http.Response) error {
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil
	}
	asked, got := upgrade(res.Request.Header), upgrade(res.Header)
	if got == "" || got != asked {
		return fmt.Errorf("it changes to protocol %q, but %q was asked for", got, asked)
	}
	return nil
}

// upgrade is the protocol that a header asks for, in lower case, empty for none.
func upgrade(h http.Header) string {
	for _, v := range h["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return lowerASCII(h.Get("Upgrade"))
			}
		}
	}
	return ""
}

// lowerASCII leaves other letters alone: some of them have an ASCII letter as
// their lower case.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// unreachable answers when the service did not.
func unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
	port, _ := r.Context().Value(portKey{}).(string)
	why := "the service on port " + port + " of the sandbox did not answer as HTTP demands: " + err.Error()
	var dialing *net.OpError
	if errors.As(err, &dialing) && dialing.Op == "dial" {
		why = "nothing listens on port " + port + " of the sandbox's loopback address; start the service, or let it listen on 127.0.0.1 or 0.0.0.0"
	}
	http.Error(w, "Bad Gateway: "+why, http.StatusBadGateway)
}

// dial connects to a loopback port, IPv4 first.
func dial(ctx context.Context, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return c, nil
	}
	if c, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", port)); err6 == nil {
		return c, nil
	}
	return nil, err
}

// Tunnel answers hostapi.DialPath. It returns when both directions have ended.
func (a *API) Tunnel(w http.ResponseWriter, r *http.Request) {
	if err := a.tunnel(w, r); err != nil {
		web.Fail(w, err)
	}
}

// tunnel returns an error as long as it can be answered.
func (a *API) tunnel(w http.ResponseWriter, r *http.Request) error {
	port, err := parsePort(r.URL.Query().Get("port"))
	if err != nil {
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "%v", err)
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "the request must carry \"Connection: Upgrade\" and \"Upgrade: tcp\"")
	}
	service, err := dial(r.Context(), strconv.Itoa(port))
	if err != nil {
		return web.Errorf(http.StatusBadGateway, web.CodeRuntime, "connecting to port %d in the sandbox: %v", port, err)
	}
	defer service.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.SetDeadline(time.Time{}); err != nil {
		return nil
	}
	if _, err := io.WriteString(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return nil
	}
	// What the client sent without waiting for the answer.
	early := make([]byte, buffered.Reader.Buffered())
	if _, err := io.ReadFull(buffered.Reader, early); err != nil {
		return nil
	}
	if _, err := service.Write(early); err != nil {
		return nil
	}
	Splice(client, service)
	return nil
}

// Splice copies both ways until both directions have ended. The end of one is
// passed on and leaves the other open; an error in one ends both, because bytes
// may not be lost in silence. The caller closes the connections.
func Splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(dst, src net.Conn) {
		// Between a TCP and a Unix connection this is splice(2).
		_, err := io.Copy(dst, src)
		if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
			return
		}
		dst.Close()
		src.Close()
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
}
