package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/config"
)

const (
	serverFile = "server.json"
	apiKeyFile = "api-key"
	lockFile   = "lock"
)

// serverInfo is the content of server.json in the data directory: how commands
// on the same machine find the server. It is readable by its owner only.
type serverInfo struct {
	URL string `json:"url"`
	PID int    `json:"pid"`
	// APIKey is the key in use, which may come from the configuration.
	APIKey string `json:"apiKey,omitempty"`
	// CertSHA256 is the fingerprint of the server's certificate, which need
	// not be valid for the address that local commands use.
	CertSHA256 string `json:"certSha256,omitempty"`
	// Command is set when the server lives inside another command, such as
	// "run", and ends with it.
	Command string `json:"command,omitempty"`
}

// connection is a client and what ends with it.
type connection struct {
	*client.Client
	close func() error
}

// errNoServer is returned by find when the data directory has no live server.
var errNoServer = errors.New("no server runs on this machine: start one with `paddock serve`, or name one with --server or PADDOCK_SERVER")

// connect returns a client of the server that was named, or of the local one.
func (a *app) connect(ctx context.Context) (*connection, error) {
	if conn, err := a.named(ctx); conn != nil || err != nil {
		return conn, err
	}
	dir, err := a.dataDirectory()
	if err != nil {
		return nil, err
	}
	info, err := find(ctx, dir)
	if err != nil {
		return nil, err
	}
	return a.dial(info)
}

// connectOrServe is connect, but for a machine without a server it starts one
// inside this process, for as long as the connection is open.
func (a *app) connectOrServe(ctx context.Context, command string) (*connection, error) {
	if conn, err := a.named(ctx); conn != nil || err != nil {
		return conn, err
	}
	dir, err := a.dataDirectory()
	if err != nil {
		return nil, err
	}
	info, err := find(ctx, dir)
	switch {
	case errors.Is(err, errNoServer):
		return a.serveInside(ctx, command)
	case err != nil:
		return nil, err
	case info.Command != "":
		return nil, fmt.Errorf("`paddock %s` (process %d) is using %s and no server runs: to do several things at once start `paddock serve` first", info.Command, info.PID, dir)
	}
	return a.dial(info)
}

// named returns a client of the server that --server or PADDOCK_SERVER names,
// or nil when neither does.
func (a *app) named(ctx context.Context) (*connection, error) {
	server, key := a.server, a.apiKey
	if server == "" {
		server = a.env(config.EnvServer)
	}
	if server == "" {
		return nil, nil
	}
	if key == "" {
		key = a.env(config.EnvAPIKey)
	}
	c, err := client.New(client.Options{Server: server, APIKey: key, UserAgent: userAgent()})
	if err != nil {
		return nil, err
	}
	if key == "" {
		// The local server under its own name needs no key to be passed.
		if dir, err := a.dataDirectory(); err == nil {
			if info, err := find(ctx, dir); err == nil && info.URL == c.Server() {
				return a.dial(info)
			}
		}
	}
	return &connection{Client: c, close: noClose}, nil
}

func noClose() error { return nil }

// dial makes a client of a local server.
func (a *app) dial(info *serverInfo) (*connection, error) {
	o := client.Options{Server: info.URL, APIKey: info.APIKey, UserAgent: userAgent()}
	if a.apiKey != "" {
		o.APIKey = a.apiKey
	}
	if info.CertSHA256 != "" {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.Proxy = nil
		t.DisableCompression = true
		t.TLSClientConfig = pinned(info.CertSHA256)
		// Terminals and tunnels upgrade, which HTTP/2 does not have.
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP1(true)
		o.HTTPClient = &http.Client{Transport: t}
	}
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	return &connection{Client: c, close: noClose}, nil
}

// pinned accepts exactly one certificate: the one whose fingerprint stands in
// the file that only the server's user could write.
func pinned(fingerprint string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // replaced by the comparison below
		VerifyConnection: func(s tls.ConnectionState) error {
			sum := sha256.Sum256(s.PeerCertificates[0].Raw)
			if hex.EncodeToString(sum[:]) != fingerprint {
				return errors.New("the certificate is not that of the local server")
			}
			return nil
		},
	}
}

// dataDirectory is where the local server keeps its data.
func (a *app) dataDirectory() (string, error) {
	if a.dataDir != "" {
		return filepath.Abs(a.dataDir)
	}
	cfg, err := a.load(nil)
	if err != nil {
		return "", err
	}
	return cfg.Storage.DataDir, nil
}

// load reads the configuration, with the flags that all commands share.
func (a *app) load(overrides []config.Override) (*config.Loaded, error) {
	if a.dataDir != "" {
		dir, err := filepath.Abs(a.dataDir)
		if err != nil {
			return nil, err
		}
		overrides = append(overrides, config.Override{Key: "storage.data_dir", Value: dir, Source: "flag --data-dir"})
	}
	return config.Load(config.LoadOptions{Path: a.configPath, Environ: a.environ, Overrides: overrides})
}

// env is a variable of the environment, empty for none.
func (a *app) env(name string) string {
	v, _ := a.lookupEnv(name)
	return v
}

func (a *app) lookupEnv(name string) (value string, ok bool) {
	for _, kv := range a.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// errChanging is returned by look while a server starts or stops.
var errChanging = errors.New("a server is starting or stopping")

const (
	// settleTime bounds the wait for a server that is about to say where it
	// is, or to go; settlePoll is how often to look. Both are about another
	// process's moment between taking a lock and writing a file.
	settleTime = 15 * time.Second
	settlePoll = 20 * time.Millisecond
)

// find returns the live server of a data directory, or errNoServer. It waits for
// a server that is starting or stopping.
func find(ctx context.Context, dir string) (*serverInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		info, err := look(dir)
		if !errors.Is(err, errChanging) {
			return info, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w in %s: try again in a moment", err, dir)
		case <-tick.C:
		}
	}
}

// look is find without the wait.
func look(dir string) (*serverInfo, error) {
	held, err := lockHeld(filepath.Join(dir, lockFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoServer
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the data directory %s belongs to another user: run as that user (usually root), or set PADDOCK_SERVER and PADDOCK_API_KEY", dir)
	case err != nil:
		return nil, err
	case !held:
		return nil, errNoServer
	}
	data, err := os.ReadFile(filepath.Join(dir, serverFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errChanging
	}
	if err != nil {
		return nil, fmt.Errorf("finding the local server: %w", err)
	}
	info := new(serverInfo)
	if err := json.Unmarshal(data, info); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restart the server", filepath.Join(dir, serverFile), err)
	}
	return info, nil
}
