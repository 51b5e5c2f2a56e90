package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/egress/intercept"
	"github.com/paddock-sandbox/paddock/internal/engine/local"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// openVaults opens the credentials of sandboxes and the authority with which
// they are put into requests, and tells the engine of both.
func openVaults(cfg *config.Loaded, o *local.Options, log *slog.Logger) (*vault.Vaults, *intercept.Interceptor, error) {
	vaults, err := vault.Open(cfg.Storage.DataDir, log)
	if err != nil {
		return nil, nil, err
	}
	authority, err := intercept.OpenAuthority(filepath.Join(cfg.Storage.DataDir, "ca"))
	if err != nil {
		return nil, nil, err
	}
	o.Authority = authority.PEM()
	io := intercept.Options{Authority: authority, Vaults: vaults, Logger: log}
	if path := cfg.Egress.UpstreamCAFile; path != "" {
		if io.Roots, err = intercept.LoadRoots(path); err != nil {
			return nil, nil, fmt.Errorf("egress.upstream_ca_file: %w", err)
		}
	}
	i, err := intercept.New(io)
	if err != nil {
		return nil, nil, fmt.Errorf("starting the interceptor: %w", err)
	}
	o.Interceptor = i
	return vaults, i, nil
}

// dropOrphans removes the credentials of sandboxes that no record knows: a
// server died between the two removals, or its records were put back from a
// backup.
func dropOrphans(vaults *vault.Vaults, manager *sandbox.Manager) error {
	return vaults.Retain(func(id string) bool {
		_, err := manager.Get(id)
		var known *sandbox.Error
		return !errors.As(err, &known) || known.Kind != sandbox.KindNotFound
	})
}

// dropVaults removes the credentials of all sandboxes. The keys stay.
func dropVaults(cfg *config.Loaded) error {
	vaults, err := vault.Open(cfg.Storage.DataDir, nil)
	if err != nil {
		return err
	}
	return vaults.Retain(func(string) bool { return false })
}
