package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/config"
)

func (a *app) serveCommand() *cobra.Command {
	var listen, runDir, logLevel string
	var noAuth bool
	var set []string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server until it is told to stop (SIGTERM, SIGINT). Sandboxes run on when
it stops, and a started server takes them over.

At the first start an API key is made and written to the file api-key in the data
directory. The configuration comes from a file, the environment and flags:
` + "`paddock config --markdown`" + ` documents every key.`,
		Example: `  paddock serve
  paddock serve --listen 0.0.0.0:8443 --set server.tls_cert=/etc/paddock/cert.pem --set server.tls_key=/etc/paddock/key.pem`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			overrides, err := setFlags(cmd, set)
			if err != nil {
				return err
			}
			for _, f := range []struct{ flag, key, value string }{
				{"listen", "server.listen", listen}, {"run-dir", "storage.run_dir", runDir},
				{"log-level", "log.level", logLevel}, {"api-key", "server.api_key", a.apiKey},
				{"insecure-no-auth", "server.insecure_no_auth", fmt.Sprint(noAuth)},
			} {
				if cmd.Flags().Changed(f.flag) {
					overrides = append(overrides, config.Override{Key: f.key, Value: f.value, Source: "flag --" + f.flag})
				}
			}
			cfg, err := a.load(overrides)
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "address and port (server.listen)")
	f.StringVar(&runDir, "run-dir", "", "run directory (storage.run_dir)")
	f.StringVar(&logLevel, "log-level", "", "debug, info, warn or error (log.level)")
	f.BoolVar(&noAuth, "insecure-no-auth", false, "serve without an API key, on loopback only (server.insecure_no_auth)")
	f.StringArrayVar(&set, "set", nil, "SECTION.KEY=VALUE, any key of the configuration")
	return cmd
}

// setFlags reads --set SECTION.KEY=VALUE.
func setFlags(cmd *cobra.Command, list []string) ([]config.Override, error) {
	var out []config.Override
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, usagef(cmd, "--set %q: want SECTION.KEY=VALUE", kv)
		}
		out = append(out, config.Override{Key: key, Value: value, Source: "flag --set"})
	}
	return out, nil
}

// serve runs the server until ctx ends.
func (a *app) serve(ctx context.Context, cfg *config.Loaded) error {
	log := newLogger(a.streams.Err, cfg.Log)
	slog.SetDefault(log)
	lock, err := lockData(cfg.Storage.DataDir)
	if err != nil {
		return err
	}
	key, fresh, err := serverKey(cfg)
	if err != nil {
		return errors.Join(err, lock.release())
	}
	if fresh {
		log.Info("made an API key", "file", filepath.Join(cfg.Storage.DataDir, apiKeyFile))
	}
	if key == "" {
		log.Warn("serving without an API key: every user of this machine can use the API")
	}
	r, err := start(ctx, cfg, lock, key, "", log)
	if err != nil {
		return errors.Join(err, lock.release())
	}
	log.Info("serving", "url", r.info.URL, "version", Version, "data_dir", cfg.Storage.DataDir)
	if err := a.notifySystemd("READY=1"); err != nil {
		log.Warn("systemd does not know that the server is ready", "error", err)
	}
	select {
	case <-ctx.Done():
		log.Info("stopping, sandboxes run on")
	case err = <-r.failed:
		log.Error("the listener failed", "error", err)
	}
	if nerr := a.notifySystemd("STOPPING=1"); nerr != nil {
		log.Warn("systemd does not know that the server is stopping", "error", nerr)
	}
	return errors.Join(err, r.stop(time.Duration(cfg.Server.ShutdownTimeout)))
}

func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // checked when it was loaded
	o := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// quietLogger is for commands that do a server's work: their user sees the
// outcome anyway, and of the log only what explains an internal error.
func (a *app) quietLogger() *slog.Logger {
	return newLogger(a.streams.Err, config.Log{Level: "error", Format: "text"})
}

// serveInside starts a server in this process on a private port with a key of
// its own, for as long as the connection is open.
func (a *app) serveInside(ctx context.Context, command string) (*connection, error) {
	const source = "`paddock` without a server"
	cfg, err := a.load([]config.Override{
		{Key: "server.listen", Value: "127.0.0.1:0", Source: source},
		{Key: "server.insecure_no_auth", Value: "false", Source: source},
		{Key: "server.public_host", Value: "", Source: source},
		{Key: "server.tls_cert", Value: "", Source: source},
		{Key: "server.tls_key", Value: "", Source: source},
		{Key: "gateway.listen", Value: "", Source: source},
		// One sandbox needs no supply of shells.
		{Key: "pool.size", Value: "0", Source: source},
	})
	if err != nil {
		return nil, err
	}
	lock, err := lockData(cfg.Storage.DataDir)
	if err != nil {
		return nil, err
	}
	log := a.quietLogger()
	slog.SetDefault(log)
	key := randomKey()
	r, err := start(ctx, cfg, lock, key, command, log)
	if err != nil {
		return nil, errors.Join(err, lock.release())
	}
	c, err := client.New(client.Options{Server: r.info.URL, APIKey: key, UserAgent: userAgent()})
	if err != nil {
		return nil, errors.Join(err, r.stop(0))
	}
	return &connection{Client: c, close: func() error {
		c.Close()
		return r.stop(time.Second)
	}}, nil
}
