package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/engine/local"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/server"
	"github.com/paddock-sandbox/paddock/internal/store"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// managerCloseTimeout bounds the wait for creates that are under way when a
// server stops. What is not finished by then, the next start finishes.
const managerCloseTimeout = 10 * time.Second

// stack is everything behind the listening socket, from the images up.
type stack struct {
	api *server.Server
	// closers undo what open did, in reverse.
	closers []func() error
}

// openStack opens images, engine, records, manager and API, in that order.
// gatewayPort is that of the gateway's own listener, 0 for none. The context bounds
// the opening only. The data directory is locked by the caller.
func openStack(ctx context.Context, cfg *config.Loaded, key string, gatewayPort int, log *slog.Logger) (_ *stack, err error) {
	s := &stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	images, err := openImages(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, images.Close)

	o, err := engineOptions(cfg, images, log)
	if err != nil {
		return nil, err
	}
	vaults, interceptor, err := openVaults(cfg, &o, log)
	if err != nil {
		return nil, err
	}
	engine, err := local.New(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("starting the engine: %w", err)
	}
	s.closers = append(s.closers, engine.Close)

	records, err := store.Open(recordsPath(cfg))
	if err != nil {
		return nil, fmt.Errorf("opening the records: %w", err)
	}
	s.closers = append(s.closers, records.Close)

	manager, err := s.openManager(ctx, cfg, engine, records, vaults, log)
	if err != nil {
		return nil, err
	}
	if err := dropOrphans(vaults, manager); err != nil {
		return nil, fmt.Errorf("removing credentials of deleted sandboxes: %w", err)
	}

	ingress, err := ingressOptions(cfg, gatewayPort)
	if err != nil {
		return nil, err
	}
	var isolation sandbox.Isolation // nobody's choice is not shown
	if cfg.Sandbox.DefaultIsolation != string(sandbox.IsolationContainer) {
		isolation = sandbox.Isolation(cfg.Sandbox.DefaultIsolation)
	}
	api, err := server.New(server.Options{
		Manager: manager, Images: images, Vaults: vaults, PlainCredentials: cfg.Egress.CredentialsOverHTTP,
		APIKey: key, NoAuth: cfg.Server.InsecureNoAuth,
		PublicHost: cfg.Server.PublicHost,
		MaxTimeout: time.Duration(cfg.Sandbox.MaxTimeout),
		Isolation:  isolation,
		Origins:    cfg.Server.CORSOrigins,
		Version:    Version, Logger: log,
		Collectors: []prometheus.Collector{interceptor},
		Ingress:    ingress, H2C: cfg.Gateway.H2C,
		Limits: server.Limits{
			Body: int64(cfg.Server.MaxBodyBytes), Header: int(cfg.Gateway.MaxHeaderBytes),
			PerSandbox: cfg.Gateway.MaxConnections, RatePerSandbox: float64(cfg.Gateway.RequestsPerSecond),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("starting the API: %w", err)
	}
	s.api = api
	s.closers = append(s.closers, func() error { api.Close(); return nil })
	return s, nil
}

// openManager starts the manager, and what it tells of denials.
func (s *stack) openManager(ctx context.Context, cfg *config.Loaded, engine sandbox.Engine, records sandbox.Store, vaults *vault.Vaults, log *slog.Logger) (*sandbox.Manager, error) {
	var onDenial func(sandbox.Denial, int)
	if cfg.Egress.DenyWebhook != "" {
		hook, err := server.NewDenialWebhook(cfg.Egress.DenyWebhook, log)
		if err != nil {
			return nil, fmt.Errorf("egress.deny_webhook: %w", err)
		}
		s.closers = append(s.closers, func() error { hook.Close(); return nil })
		onDenial = hook.Send
	}
	manager, err := sandbox.NewManager(ctx, sandbox.Options{
		Engine: engine, Store: records, Logger: log, OnDenial: onDenial,
		FailedRetention: time.Duration(cfg.Sandbox.FailedRetention),
		MaxTimeout:      time.Duration(cfg.Sandbox.MaxTimeout),
		MaxSandboxes:    cfg.Sandbox.MaxSandboxes,
		MaxPending:      cfg.Sandbox.MaxPending,
		Forget:          vaults.Remove,
	})
	if err != nil {
		return nil, fmt.Errorf("taking over the sandboxes: %w", err)
	}
	s.closers = append(s.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), managerCloseTimeout)
		defer cancel()
		return manager.Close(ctx)
	})
	return manager, nil
}

// close undoes openStack. Sandboxes run on.
func (s *stack) close() error {
	var errs []error
	for _, undo := range slices.Backward(s.closers) {
		errs = append(errs, undo())
	}
	s.closers = nil
	return errors.Join(errs...)
}

func recordsPath(cfg *config.Loaded) string {
	return filepath.Join(cfg.Storage.DataDir, "paddock.db")
}

func openImages(ctx context.Context, cfg *config.Loaded, log *slog.Logger) (*image.Store, error) {
	images, err := image.Open(ctx, image.Options{
		Root:                   filepath.Join(cfg.Storage.DataDir, "images"),
		ResolveTimeout:         time.Duration(cfg.Image.ResolveTimeout),
		MaxUnpackedBytes:       int64(cfg.Image.MaxUnpackedBytes),
		MaxConcurrentDownloads: cfg.Image.Downloads,
		DockerConfig:           cfg.Image.DockerConfig,
		PlainHTTP:              cfg.Image.PlainHTTP,
		MinFreeBytes:           int64(cfg.Storage.MinFree),
		Logger:                 log,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the images: %w", err)
	}
	return images, nil
}

// engineOptions translates the configuration, which has been checked, so that
// errors here are bugs.
func engineOptions(cfg *config.Loaded, images *image.Store, log *slog.Logger) (local.Options, error) {
	o := local.Options{
		DataDir: cfg.Storage.DataDir, RunDir: cfg.Storage.RunDir, Images: images,
		PoolSize: cfg.Pool.Size, PoolWorkers: cfg.Pool.RefillWorkers,
		AllowedHostPaths: cfg.Storage.AllowedHostPaths,
		OCIRuntime:       cfg.Runtime.OCI, OCIPath: cfg.Runtime.Path,
		RunscPath: cfg.Runtime.Runsc,
		GPUKind:   cfg.GPU.Kind, CDIDirs: cfg.GPU.CDIDirs,
		Defaults: sandbox.Limits{
			MemoryBytes: int64(cfg.Sandbox.DefaultMemory),
			PIDs:        int64(cfg.Sandbox.DefaultPIDs),
		},
		MinFreeBytes: int64(cfg.Storage.MinFree),
		NoIPv6:       !cfg.Network.IPv6,
		Logger:       log,
	}
	var err error
	if cfg.Sandbox.DefaultCPU != "" {
		if o.Defaults.CPUMillis, err = config.ParseCPU(cfg.Sandbox.DefaultCPU); err != nil {
			return o, fmt.Errorf("sandbox.default_cpu: %w", err)
		}
	}
	if o.Subnet, err = netip.ParsePrefix(cfg.Network.Subnet); err != nil {
		return o, fmt.Errorf("network.subnet: %w", err)
	}
	for _, r := range cfg.Network.AllowedRanges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return o, fmt.Errorf("network.allowed_ranges: %w", err)
		}
		o.AllowedRanges = append(o.AllowedRanges, p)
	}
	for _, d := range cfg.Network.DNSUpstreams {
		a, err := config.ParseDNSUpstream(d)
		if err != nil {
			return o, fmt.Errorf("network.dns_upstreams: %w", err)
		}
		o.DNSUpstreams = append(o.DNSUpstreams, a.String())
	}
	return o, nil
}

// dropRecords removes every record, for sandboxes that are no more.
func dropRecords(ctx context.Context, cfg *config.Loaded) error {
	records, err := store.Open(recordsPath(cfg))
	if err != nil {
		return fmt.Errorf("opening the records: %w", err)
	}
	all, err := records.All(ctx)
	errs := []error{err}
	for _, sb := range all {
		errs = append(errs, records.Delete(ctx, sb.ID))
	}
	return errors.Join(append(errs, records.Close(), dropVaults(cfg))...)
}
