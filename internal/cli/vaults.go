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
func openVaults(cfg *config.Loaded, o *local.Options, log *slog.Logger) (*vault.Vaults, error) {
	vaults, err := vault.Open(cfg.Storage.DataDir, log)
	if err != nil {
		return nil, err
	}
	authority, err := intercept.OpenAuthority(filepath.Join(cfg.Storage.DataDir, "ca"))
	if err != nil {
		return nil, err
	}
	o.Authority = authority.PEM()
	if o.Interceptor, err = intercept.New(intercept.Options{Authority: authority, Vaults: vaults, Logger: log}); err != nil {
		return nil, fmt.Errorf("starting the interceptor: %w", err)
	}
	return vaults, nil
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
