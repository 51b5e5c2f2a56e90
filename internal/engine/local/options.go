package local

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Options configure the engine. Zero values get the documented defaults.
type Options struct {
	// DataDir keeps what is large: upper directories, logs, volumes.
	DataDir string
	// RunDir is on tmpfs and is gone after a reboot, as the sandboxes are.
	// Empty means DefaultRunDir.
	RunDir string
	Images *image.Store
	// PoolSize is how many shells are kept ready; 0 makes every sandbox
	// inline.
	PoolSize int
	// PoolWorkers is how many shells are made at once.
	PoolWorkers int
	// Subnet is cut into /20s, one for each instance on this machine.
	Subnet netip.Prefix
	// DNSUpstreams answer the sandboxes' questions; empty means those of the
	// host's /etc/resolv.conf.
	DNSUpstreams []string
	// NoIPv6 leaves sandboxes without IPv6.
	NoIPv6 bool
	// AllowedRanges are private ranges that every sandbox may reach.
	AllowedRanges []netip.Prefix
	// AllowedHostPaths are the directories under which host volumes may lie.
	AllowedHostPaths []string
	// Interceptor takes connections of sandboxes under a policy over whose
	// requests must be seen or changed; nil for none.
	Interceptor proxy.Interceptor
	// Authority is the certificate, in PEM, that sandboxes are made to trust whose
	// connections the Interceptor may look into; empty for none.
	Authority []byte
	// OCIRuntime is "crun" or "runc", OCIPath its binary (empty: from $PATH).
	OCIRuntime string
	OCIPath    string
	// RunscPath is gVisor's binary; empty means that it is looked for in $PATH
	// and beside this program. Without it, sandboxes behind gVisor are refused.
	RunscPath string
	// CDIDirs hold the specifications of GPUs; empty means /etc/cdi and
	// /var/run/cdi. GPUKind is the vendor and class of those to hand out, such
	// as "nvidia.com/gpu"; empty means the first found of NVIDIA's, AMD's and
	// Intel's.
	CDIDirs []string
	GPUKind string
	// Defaults are the limits of a sandbox that asks for none.
	Defaults sandbox.Limits
	// MinFreeBytes is what must stay free in the data directory; below it no
	// sandbox is made.
	MinFreeBytes int64
	// OverlayByPath attaches image layers the way that kernels before 6.13
	// need; newer ones are faster without.
	OverlayByPath bool
	// StartTimeout bounds the making of a shell, and the claim.
	StartTimeout time.Duration
	Logger       *slog.Logger

	// oomSettle is the constant of that name, but in tests.
	oomSettle time.Duration
}

func (o *Options) setDefaults() error {
	if o.DataDir == "" || o.Images == nil {
		return fmt.Errorf("the local engine needs a data directory and an image store")
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return err
	}
	o.DataDir = dir
	if o.RunDir == "" {
		o.RunDir = DefaultRunDir()
	}
	if o.PoolWorkers <= 0 {
		o.PoolWorkers = 2
	}
	if !o.Subnet.IsValid() {
		o.Subnet = netip.MustParsePrefix("10.213.0.0/16")
	}
	if !o.Subnet.Addr().Is4() || o.Subnet.Bits() > slotBits || o.Subnet.Bits() < 8 {
		return fmt.Errorf("network.subnet %s: an IPv4 range between /8 and /%d is needed", o.Subnet, slotBits)
	}
	switch o.OCIRuntime {
	case "":
		o.OCIRuntime = string(oci.Crun)
	case string(oci.Crun), string(oci.Runc):
	default:
		return fmt.Errorf("runtime.oci %q: only %q and %q are known", o.OCIRuntime, oci.Crun, oci.Runc)
	}
	if o.Defaults.PIDs == 0 {
		o.Defaults.PIDs = 4096
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = 30 * time.Second
	}
	if o.oomSettle <= 0 {
		o.oomSettle = oomSettle
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// DefaultRunDir is /run/paddock or, on a host whose /run is on disk,
// /dev/shm/paddock: the run directory is written on every create.
func DefaultRunDir() string {
	const usual, shm = "/run", "/dev/shm"
	if !onTmpfs(usual) && onTmpfs(shm) {
		return shm + "/paddock"
	}
	return usual + "/paddock"
}

func onTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}
