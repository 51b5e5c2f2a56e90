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
	key, fresh, err = keyFile(path)
	if err != nil {
		return "", false, fmt.Errorf("the API key: %w", err)
	}
	if len(key) < 16 {
		return "", false, fmt.Errorf("%s holds no key of at least 16 characters: remove it to have a new one made", path)
	}
	return key, fresh, nil
}

// keyFile returns the key in a file, which is made, for its owner's eyes, when it
// is not there. fresh reports that.
func keyFile(path string) (key string, fresh bool, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(data)), false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	key = randomKey()
	if err := durable.Write(path, []byte(key+"\n"), 0o600); err != nil {
		return "", false, err
	}
	return key, true, nil
}

// randomKey makes a key of 256 random bits, in hexadecimal.
func randomKey() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	return hex.EncodeToString(b[:])
}
