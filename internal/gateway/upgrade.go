package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// handshakeTimeout bounds writing the answer of an upgrade to the client.
const handshakeTimeout = 10 * time.Second

// farewell is how long one side of a WebSocket may take to end after the other
// has. Closing at once could destroy bytes that are still on their way.
const farewell = 5 * time.Second

// upgrade is a request to change protocols. When the sandbox agrees, the two
// connections become one tunnel; otherwise its answer is an ordinary one.
func (g *Gateway) upgrade(ctx context.Context, w http.ResponseWriter, r *http.Request, t *Target, protocol string) (int, error) {
	var backend *conn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { backend, _ = info.Conn.(*conn) },
	})
	body, hijacked := bodyOf(w, r), false
	defer func() {
		if !hijacked {
			body.finish(w)
		}
	}()
	out := g.outgoing(ctx, w, r, t, body)
	out.Header["Connection"] = []string{"Upgrade"}
	out.Header["Upgrade"] = []string{protocol}
	resp, err := g.roundTrip(out, t)
	if err != nil {
		return 0, exchangeFailure(t, r, body, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return g.refused(w, r, resp, t, body)
	}
	answered := upgradeOf(resp.Header)
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || backend == nil || !offered(protocol, answered) {
		return 0, responseFailure(t, "agreed to another protocol than was asked for", nil)
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return 0, responseFailure(t, "agreed to change protocols, but the client's connection can't", err)
	}
	hijacked = true
	defer client.Close()
	if err := answerUpgrade(client, buffered.Writer, w.Header(), r, resp, t, answered); err != nil {
		g.log.Debug("the client of an upgrade went away", "sandbox", t.ID, "port", t.Port, "error", err)
		return http.StatusSwitchingProtocols, nil
	}
	tunnel(client, buffered.Reader, stream, backend, !strings.EqualFold(answered, "websocket"))
	return http.StatusSwitchingProtocols, nil
}

// refused passes on the answer of a sandbox that does not change protocols.
func (g *Gateway) refused(w http.ResponseWriter, r *http.Request, resp *http.Response, t *Target, body *requestBody) (int, error) {
	if resp.StatusCode < 200 || resp.StatusCode > 599 {
		return 0, responseFailure(t, "answered with a status that is not valid here", nil)
	}
	copyResponseHeader(w.Header(), resp.Header, t, r)
	body.early(w)
	w.WriteHeader(resp.StatusCode)
	if err := relay(w, resp); err != nil {
		panic(http.ErrAbortHandler)
	}
	return resp.StatusCode, nil
}

// offered is whether the sandbox chose one of the protocols that the client
// asked for.
func offered(asked, answered string) bool {
	if answered == "" {
		return false
	}
	for p := range strings.SplitSeq(asked, ",") {
		if strings.EqualFold(strings.TrimSpace(p), answered) {
			return true
		}
	}
	return false
}

// answerUpgrade writes the 101 to the client.
func answerUpgrade(client net.Conn, w *bufio.Writer, h http.Header, r *http.Request, resp *http.Response, t *Target, protocol string) error {
	copyResponseHeader(h, resp.Header, t, r)
	h["Connection"] = []string{"Upgrade"}
	h["Upgrade"] = []string{protocol}
	// Deadlines of net/http's server go with its ownership.
	if err := client.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := client.SetWriteDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := w.WriteString("HTTP/1.1 101 Switching Protocols\r\n"); err != nil {
		return err
	}
	if err := h.Write(w); err != nil {
		return err
	}
	if _, err := w.WriteString("\r\n"); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return client.SetWriteDeadline(time.Time{})
}

// tunnel copies both ways until both have ended. The end of one direction is
// passed on as such. With halves the other may go on for ever; otherwise, as
// with WebSocket, it has a moment to say good-bye. An error ends both.
func tunnel(client net.Conn, fromClient io.Reader, stream io.ReadWriteCloser, backend *conn, halves bool) {
	broken := func() {
		// What breaks off must not look like an end.
		if tcp, ok := client.(*net.TCPConn); ok && halves {
			_ = tcp.SetLinger(0)
		}
		client.Close()
		backend.Close()
	}
	ended := func() {
		if !halves {
			limit := time.Now().Add(farewell)
			_ = client.SetReadDeadline(limit)
			_ = backend.SetReadDeadline(limit)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		err := pump(fromClient, func(p []byte) error {
			_, err := stream.Write(p)
			return err
		})
		if err != nil || backend.CloseWrite() != nil {
			broken()
		}
		ended()
	})
	err := pump(stream, func(p []byte) error {
		_, err := client.Write(p)
		return err
	})
	if half, ok := client.(interface{ CloseWrite() error }); err != nil || !ok || half.CloseWrite() != nil {
		broken()
	}
	ended()
	wg.Wait()
}
