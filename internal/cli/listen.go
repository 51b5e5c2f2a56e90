package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/durable"
)

// running is a server that accepts requests.
type running struct {
	http   []*http.Server // the API's and, with a listener of its own, the gateway's
	info   serverInfo
	file   string // server.json
	lock   *dataLock
	stack  *stack
	failed chan error
}

// start listens, checks the machine and opens the stack. The data directory is
// locked, and the lock is the returned server's. key is the API key, empty for
// none. command is set when the server lives inside a command.
func start(ctx context.Context, cfg *config.Loaded, lock *dataLock, key, command string, log *slog.Logger) (_ *running, err error) {
	r := &running{lock: lock, file: filepath.Join(cfg.Storage.DataDir, serverFile), failed: make(chan error, 2)}
	// Left by a server that was killed: nobody may be sent to it.
	if err := os.Remove(r.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the traces of the last server: %w", err)
	}
	// Bound before the stack opens, so that an address in use costs nothing.
	l, err := net.Listen(network(cfg.Server.Listen), cfg.Server.Listen)
	if err != nil {
		return nil, fmt.Errorf("server.listen (%s): %w", cfg.Source("server.listen"), err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	gateway, gatewayPort, err := listenGateway(cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && gateway != nil {
			err = errors.Join(err, gateway.Close())
		}
	}()
	r.info = serverInfo{URL: "http://" + reachable(l.Addr()), PID: os.Getpid(), APIKey: key, Command: command}
	if cfg.Server.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.Server.TLSCert, cfg.Server.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("server.tls_cert and server.tls_key (%s): %w", cfg.Source("server.tls_cert"), err)
		}
		sum := sha256.Sum256(cert.Certificate[0])
		r.info.URL, r.info.CertSHA256 = "https://"+reachable(l.Addr()), hex.EncodeToString(sum[:])
		// Clients that want to upgrade a connection ask for HTTP/1.1.
		secure := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
		l = tls.NewListener(l, secure)
		if gateway != nil {
			gateway = tls.NewListener(gateway, secure)
		}
	}
	// From here on local commands find the server; what they send waits in the
	// listener's queue until there is somebody to answer.
	data, err := json.Marshal(r.info)
	if err != nil {
		return nil, err
	}
	if err := durable.Write(r.file, append(data, '\n'), 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(r.file))
		}
	}()
	if err := requireMachine(ctx, cfg); err != nil {
		return nil, err
	}
	if r.stack, err = openStack(ctx, cfg, key, gatewayPort, log); err != nil {
		return nil, err
	}
	r.serve(r.stack.api.HTTPServer(), l)
	if gateway != nil {
		r.serve(r.stack.api.IngressServer(), gateway)
	}
	return r, nil
}

func (r *running) serve(hs *http.Server, l net.Listener) {
	r.http = append(r.http, hs)
	go func() { r.failed <- hs.Serve(l) }()
}

// listenGateway opens the gateway's own listener. It returns nil when there is
// none.
func listenGateway(cfg *config.Loaded) (net.Listener, int, error) {
	if cfg.Gateway.Listen == "" {
		return nil, 0, nil
	}
	l, err := net.Listen(network(cfg.Gateway.Listen), cfg.Gateway.Listen)
	if err != nil {
		return nil, 0, fmt.Errorf("gateway.listen (%s): %w", cfg.Source("gateway.listen"), err)
	}
	return l, l.Addr().(*net.TCPAddr).Port, nil
}

// network keeps a server that is told to listen on 0.0.0.0 off IPv6, which Go
// would add.
func network(address string) string {
	host, _, _ := net.SplitHostPort(address)
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		return "tcp4"
	}
	return "tcp"
}

// reachable is the address at which commands on this machine reach a listener.
func reachable(a net.Addr) string {
	t := a.(*net.TCPAddr)
	ip := t.IP
	if ip.IsUnspecified() {
		ip = net.IPv4(127, 0, 0, 1) // "::" takes IPv4 too
	}
	return (&net.TCPAddr{IP: ip, Port: t.Port}).String()
}

// stop lets requests in flight finish for as long as drain allows, then closes
// everything in reverse and unlocks the data directory.
func (r *running) stop(drain time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	errs := []error{os.Remove(r.file)}
	// Streams have no end of their own, so running out of time is no failure;
	// their clients come back to the next server.
	if err := r.stack.api.Drain(ctx, r.http...); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		errs = append(errs, err)
	}
	errs = append(errs, r.stack.close(), r.lock.release())
	return errors.Join(errs...)
}
