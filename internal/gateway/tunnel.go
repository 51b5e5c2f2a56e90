package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// TunnelProtocol is what a request for a tunnel asks to upgrade to.
const TunnelProtocol = "tcp"

// CodeUpgradeRequired is of a request for a tunnel that does not ask for one.
const CodeUpgradeRequired = "SANDBOX::UPGRADE_REQUIRED"

// Tunnel makes the client's connection one to a TCP port of a sandbox, byte by
// byte in both directions, so that any protocol goes through. The end of one
// direction is passed on as such. It returns when the tunnel has ended; its
// errors are those of Proxy, before anything was answered.
//
// The port is dialed before the answer, so that 101 means that something
// listens.
func (g *Gateway) Tunnel(w http.ResponseWriter, r *http.Request, t *Target) (status int, err error) {
	if err := asksForTunnel(w, r); err != nil {
		return 0, err
	}
	leave, err := g.limits.enter(t.ID)
	if err != nil {
		return 0, err
	}
	defer leave()
	backend, err := g.dialTunnel(r.Context(), t)
	if err != nil {
		return 0, err
	}
	defer backend.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return 0, responseFailure(t, "could be reached, but the client's connection can't become a tunnel", err)
	}
	defer client.Close()
	answer := &http.Response{Header: http.Header{}}
	if err := answerUpgrade(client, buffered.Writer, w.Header(), r, answer, t, TunnelProtocol); err != nil {
		g.log.Debug("the client of a tunnel went away", "sandbox", t.ID, "port", t.Port, "error", err)
		return http.StatusSwitchingProtocols, nil
	}
	tunnel(client, buffered.Reader, backend, backend, true)
	return http.StatusSwitchingProtocols, nil
}

// asksForTunnel checks that a request can become a tunnel.
func asksForTunnel(w http.ResponseWriter, r *http.Request) error {
	if r.ProtoMajor == 1 && r.ProtoMinor >= 1 && strings.EqualFold(upgradeOf(r.Header), TunnelProtocol) && r.ContentLength == 0 {
		return nil
	}
	h := w.Header()
	h["Upgrade"] = []string{TunnelProtocol}
	h["Connection"] = []string{"Upgrade"}
	return &Error{Status: http.StatusUpgradeRequired, Code: CodeUpgradeRequired,
		Message: "A tunnel is asked for over HTTP/1.1 with the headers \"Connection: Upgrade\" and \"Upgrade: " + TunnelProtocol + "\", and without a body."}
}

// dialTunnel connects to the port, and waits for a sandbox that is being made.
func (g *Gateway) dialTunnel(ctx context.Context, t *Target) (*conn, error) {
	if t.Port == sandbox.ExecdPort {
		return nil, &sandbox.Error{Kind: sandbox.KindInvalid, Code: sandbox.CodeInvalidPort,
			Message: fmt.Sprintf("Port %d is execd's, which is reached through the proxy only.", t.Port)}
	}
	if t.Hold {
		h, err := g.hold(ctx, t)
		if err != nil {
			return nil, err
		}
		return h.take(), nil
	}
	limited, cancel := context.WithTimeout(ctx, g.opts.DialTimeout)
	defer cancel()
	c, err := g.dial(limited, t.ID, t.Port)
	if err == nil {
		return c, nil
	}
	if ctx.Err() != nil {
		return nil, ErrClientGone
	}
	var dial *dialError
	if errors.As(err, &dial) {
		err = dial.err
	}
	return nil, dialFailure(t, err)
}
