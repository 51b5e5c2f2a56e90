package cli

import (
	"encoding/hex"
	"fmt"
	"path/filepath"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/server"
)

// gatewayKeyFile holds the secret that signs addresses of ports. Whoever reads
// it can make some; without it the ones that were given out are void.
const gatewayKeyFile = "gateway-key"

// ingressOptions translates the [gateway] section. port is that of its own
// listener, 0 for none.
func ingressOptions(cfg *config.Loaded, port int) (server.Ingress, error) {
	g := &cfg.Gateway
	in := server.Ingress{Mode: g.Mode, BaseDomain: g.BaseDomain, Port: port, PublicHost: g.PublicHost, Secure: g.BehindTLS}
	secret, err := gatewaySecret(filepath.Join(cfg.Storage.DataDir, gatewayKeyFile))
	if err != nil {
		return in, err
	}
	active, short := "", make(map[string][]byte, len(g.SigningKeys))
	for _, text := range g.SigningKeys {
		name, key, err := address.ParseKey(text)
		if err != nil {
			return in, fmt.Errorf("gateway.signing_keys: %w", err)
		}
		if short[name] = key; active == "" {
			active = name
		}
	}
	in.Keys, err = address.New(secret, short, active)
	return in, err
}

// gatewaySecret reads the secret, which is made when it is not there.
func gatewaySecret(path string) ([]byte, error) {
	text, _, err := keyFile(path)
	if err != nil {
		return nil, fmt.Errorf("the key of the gateway: %w", err)
	}
	secret, err := hex.DecodeString(text)
	if err != nil || len(secret) < address.MinSecret {
		return nil, fmt.Errorf("%s does not hold at least %d bytes in hexadecimal: remove it to have a new one made, which makes the signed addresses given out so far invalid", path, address.MinSecret)
	}
	return secret, nil
}
