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
	return key, true, writePrivate(path, []byte(key+"\n"))
}

// randomKey makes a key of 256 random bits.
func randomKey() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("making an API key: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// writePrivate writes a file that only its owner may read, and that is either
// there complete or not at all.
func writePrivate(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
