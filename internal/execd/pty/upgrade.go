package pty

import (
	"bufio"
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/coder/websocket"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// query is what a client connects with.
type query struct {
	terminal, takeover bool
	since              int64
}

func parseQuery(values url.Values) (query, error) {
	q := query{}
	var err error
	if q.terminal, err = flag(values, "pty", true); err != nil {
		return q, err
	}
	if q.takeover, err = flag(values, "takeover", false); err != nil {
		return q, err
	}
	if since := values.Get("since"); since != "" {
		n, err := strconv.ParseInt(since, 10, 64)
		if err != nil || n < 0 {
			return q, web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "since is %q; it must be an offset of the output, in bytes, from 0 on", clip(since))
		}
		q.since = n
	}
	return q, nil
}

func flag(values url.Values, name string, absent bool) (bool, error) {
	switch v := values.Get(name); v {
	case "":
		return absent, nil
	case "0":
		return false, nil
	case "1":
		return true, nil
	default:
		return false, web.Errorf(http.StatusBadRequest, web.CodeInvalidQuery, "%s is %q; it must be 0 or 1", name, clip(v))
	}
}

// connect is GET /pty/{id}/ws.
func (a *API) connect(w http.ResponseWriter, r *http.Request) error {
	s, err := a.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		return err
	}
	c := newClient(s, a.times)
	// A handshake that fails must not cost another client its session.
	if err := s.hold(c); err != nil && !q.takeover {
		return err
	}
	defer s.release(c)
	if err := checkUpgrade(r); err != nil {
		return err
	}
	if !c.accept(w, r) {
		return nil
	}
	if q.takeover {
		s.takeOver(c)
	}
	c.serve(q.terminal, q.since)
	return nil
}

// checkUpgrade refuses what is not the opening of a WebSocket (RFC 6455, 4.2.1).
// The library checks the same, but does not answer in execd's shape.
func checkUpgrade(r *http.Request) error {
	bad := func(format string, args ...any) error {
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidBody, "this route takes WebSocket connections only: "+format, args...)
	}
	if !r.ProtoAtLeast(1, 1) {
		return bad("the request is %s; it must be HTTP/1.1", r.Proto)
	}
	if !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket") {
		return bad("send the headers \"Connection: Upgrade\" and \"Upgrade: websocket\"")
	}
	if v := r.Header.Get("Sec-WebSocket-Version"); v != "13" {
		return bad("Sec-WebSocket-Version is %q; it must be 13", clip(v))
	}
	keys := r.Header.Values("Sec-WebSocket-Key")
	if len(keys) != 1 {
		return bad("there must be one Sec-WebSocket-Key")
	}
	if key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0])); err != nil || len(key) != 16 {
		return bad("Sec-WebSocket-Key must be 16 bytes in base64")
	}
	return nil
}

func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// accept turns the request into a WebSocket. When it returns false it has
// answered.
func (c *client) accept(w http.ResponseWriter, r *http.Request) bool {
	hold := &hijack{ResponseWriter: w, conn: &c.tcp}
	conn, err := websocket.Accept(hold, r, &websocket.AcceptOptions{
		// Requests are let in by token, which a foreign page does not have.
		InsecureSkipVerify: true,
		// It would cost a megabyte of memory for each connection.
		CompressionMode: websocket.CompressionDisabled,
		OnPingReceived:  func(context.Context, []byte) bool { c.expect(); return true },
		OnPongReceived:  func(context.Context, []byte) { c.expect() },
	})
	if err != nil {
		return false
	}
	conn.SetReadLimit(maxMessage)
	c.conn = conn
	return true
}

// hijack keeps the connection that the library takes over, whose deadlines it
// leaves alone.
type hijack struct {
	http.ResponseWriter
	conn *net.Conn
}

// Hijack implements http.Hijacker.
func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	*h.conn = conn
	return conn, rw, err
}
