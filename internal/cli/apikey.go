package cli

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/durable"
)

// serverKey returns the API key of a server: the configured one, else that in
// the data directory, which is made when it is not there. fresh reports that.
func serverKey(cfg *config.Loaded) (key string, fresh bool, err error) {
	if cfg.Server.InsecureNoAuth {
		return "", false, nil
	}
	if cfg.Server.APIKey != "" {
		return cfg.Server.APIKey, false, nil
	}
	path := filepath.Join(cfg.Storage.DataDir, apiKeyFile)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		key := strings.TrimSpace(string(data))
		if len(key) < 16 {
			return "", false, fmt.Errorf("%s holds no key of at least 16 characters: remove it to have a new one made", path)
		}
		return key, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", false, fmt.Errorf("reading the API key: %w", err)
	}
	key, err = randomKey()
	if err != nil {
		return "", false, err
	}
	if err := durable.Write(path, []byte(key+"\n"), 0o600); err != nil {
		return "", false, fmt.Errorf("writing the API key: %w", err)
	}
	return key, true, nil
}

// randomKey makes a key of 256 random bits.
func randomKey() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("making an API key: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
