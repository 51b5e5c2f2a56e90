package image

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Options configure a Store. Only Root is required.
type Options struct {
	// Root is the directory of the store. It is made with mode 0700, which is
	// what keeps set-user-id programs and devices in images out of reach of
	// the machine's other users.
	Root string
	// ResolveTimeout bounds asking a registry about an image; default 10 s.
	ResolveTimeout time.Duration
	// MaxUnpackedBytes bounds what the layers of one image may unpack to;
	// default 32 GiB. More is taken for a decompression bomb.
	MaxUnpackedBytes int64
	// MaxConcurrentDownloads is the number of layers of one image that are
	// downloaded at a time; default 4.
	MaxConcurrentDownloads int
	// DockerConfig is the path of a Docker config.json with registry
	// credentials; default ~/.docker/config.json. It need not exist.
	DockerConfig string
	// PlainHTTP lists registries (host or host:port) that are spoken to
	// without TLS. Loopback addresses are tried without TLS first, then with.
	PlainHTTP []string
	// DefaultPlatform is used when a caller names none; default linux on this
	// machine's architecture.
	DefaultPlatform *sandbox.Platform
	// MinFreeBytes of the file system that holds Root are left free by pulls
	// and imports; default none.
	MinFreeBytes int64
	// Logger receives what no caller is told; default slog.Default().
	Logger *slog.Logger
}

const (
	defaultResolveTimeout   = 10 * time.Second
	defaultMaxUnpackedBytes = 32 << 30
	defaultMaxDownloads     = 4
)

func (o Options) withDefaults() Options {
	if o.ResolveTimeout <= 0 {
		o.ResolveTimeout = defaultResolveTimeout
	}
	if o.MaxUnpackedBytes <= 0 {
		o.MaxUnpackedBytes = defaultMaxUnpackedBytes
	}
	if o.MaxConcurrentDownloads <= 0 {
		o.MaxConcurrentDownloads = defaultMaxDownloads
	}
	if o.DockerConfig == "" {
		if home, err := os.UserHomeDir(); err == nil {
			o.DockerConfig = filepath.Join(home, ".docker", "config.json")
		}
	}
	if o.DefaultPlatform == nil {
		o.DefaultPlatform = &sandbox.Platform{OS: "linux", Arch: runtime.GOARCH}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}
