package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// check validates the values together. Each complaint names the key, the value,
// what is allowed and where the value is from.
func (l *loader) check() {
	c := l.out.Config
	l.checkServer(&c.Server)
	l.checkGateway(&c.Gateway)
	l.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	l.oneOf("log.format", c.Log.Format, "text", "json")
	l.checkSandbox(&c.Sandbox)
	l.between("pool.size", c.Pool.Size, 0, 1024)
	l.between("pool.refill_workers", c.Pool.RefillWorkers, 1, 64)
	l.duration("image.resolve_timeout", c.Image.ResolveTimeout, time.Second, 10*time.Minute)
	l.size("image.max_unpacked_bytes", c.Image.MaxUnpackedBytes, 1<<20)
	l.between("image.downloads", c.Image.Downloads, 1, 32)
	for _, host := range c.Image.PlainHTTP {
		if host == "" || strings.ContainsAny(host, "/@ ") {
			l.wrong("image.plain_http", host, `each entry is a registry as "host" or "host:port", without a scheme or a path`)
		}
	}
	l.checkStorage(&c.Storage)
	l.checkNetwork(&c.Network)
	if hook := c.Egress.DenyWebhook; hook != "" {
		if u, err := url.Parse(hook); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			l.wrong("egress.deny_webhook", "", `want a URL such as "https://alerts.example.com/paddock"`)
		}
	}
	if c.Egress.UpstreamCAFile != "" {
		l.absolute("egress.upstream_ca_file", c.Egress.UpstreamCAFile)
	}
	l.oneOf("runtime.oci", c.Runtime.OCI, "crun", "runc")
	if c.Runtime.Path != "" {
		l.absolute("runtime.path", c.Runtime.Path)
	}
	if c.Runtime.Runsc != "" {
		l.absolute("runtime.runsc", c.Runtime.Runsc)
	}
	l.oneOf("sandbox.default_isolation", c.Sandbox.DefaultIsolation, "container", "gvisor")
	l.checkGPU(&c.GPU)
}

// gpuKind is a vendor, which is a domain name, and a class of its devices (the
// CDI specification, "kind").
var gpuKind = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

func (l *loader) checkGPU(g *GPU) {
	if g.Kind != "" && !gpuKind.MatchString(g.Kind) {
		l.wrong("gpu.kind", g.Kind, `want a vendor and a class of device, such as "nvidia.com/gpu"`)
	}
	for _, dir := range g.CDIDirs {
		l.absolute("gpu.cdi_dirs", dir)
	}
}

func (l *loader) wrong(key, value, allowed string) {
	source := l.out.Source(key)
	if k := l.keys[key]; k.secret {
		l.fail(source, "%s: %s", key, allowed)
		return
	}
	l.fail(source, "%s = %q: %s", key, value, allowed)
}

func (l *loader) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		l.wrong(key, value, "want one of "+strings.Join(allowed, ", "))
	}
}

func (l *loader) between(key string, value, low, high int) {
	if value < low || value > high {
		l.wrong(key, strconv.Itoa(value), fmt.Sprintf("want a number from %d to %d", low, high))
	}
}

func (l *loader) duration(key string, value Duration, low, high time.Duration) {
	if d := time.Duration(value); d < low || d > high {
		l.wrong(key, value.String(), fmt.Sprintf("want a duration from %s to %s", low, high))
	}
}

func (l *loader) size(key string, value, low Size) {
	if value < low {
		l.wrong(key, value.String(), fmt.Sprintf("want at least %s", low))
	}
}

func (l *loader) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		l.wrong(key, path, "want an absolute path")
	}
}

func (l *loader) checkServer(s *Server) {
	host, port, err := net.SplitHostPort(s.Listen)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		l.wrong("server.listen", s.Listen, `want "address:port" such as "127.0.0.1:8080" or "[::1]:8080"`)
	} else if s.InsecureNoAuth && !isLoopback(host) {
		l.wrong("server.insecure_no_auth", "true", fmt.Sprintf(
			"refused because server.listen = %q (%s) is reachable from other machines. Listen on 127.0.0.1, or keep the API key",
			s.Listen, l.out.Source("server.listen")))
	}
	if s.InsecureNoAuth && s.APIKey != "" {
		l.wrong("server.insecure_no_auth", "true", "contradicts server.api_key ("+l.out.Source("server.api_key")+"): set only one of them")
	}
	if s.APIKey != "" && (len(s.APIKey) < 16 || len(s.APIKey) > 512 || strings.ContainsFunc(s.APIKey, func(r rune) bool { return r <= 0x20 || r >= 0x7f })) {
		l.wrong("server.api_key", "", "want 16 to 512 visible ASCII characters without spaces. Leave it out to have one made")
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		l.wrong("server.tls_cert", s.TLSCert, "server.tls_cert and server.tls_key belong together: set both or neither")
	}
	l.publicHost("server.public_host", s.PublicHost)
	l.size("server.max_body_bytes", s.MaxBodyBytes, 64<<10)
	l.duration("server.shutdown_timeout", s.ShutdownTimeout, 0, 10*time.Minute)
	for _, origin := range s.CORSOrigins {
		u, err := url.Parse(origin)
		if origin != "*" && (err != nil || u.Scheme == "" || u.Host == "" || strings.TrimSuffix(u.Path, "/") != "") {
			l.wrong("server.cors_origins", origin, `each entry is an origin such as "https://console.example.com", or "*"`)
		}
	}
}

func (l *loader) publicHost(key, host string) {
	if host == "" {
		return
	}
	if u, err := url.Parse("http://" + host); err != nil || u.Host != host || strings.ContainsAny(host, "/@? ") {
		l.wrong(key, host, `want "host" or "host:port", without a scheme or a path`)
	}
}

// isLoopback reports whether only this machine reaches a listening address.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func (l *loader) checkSandbox(s *Sandbox) {
	if s.MaxTimeout != 0 {
		// The contract's shortest lifetime (OpenSandbox lifecycle API).
		l.duration("sandbox.max_timeout", s.MaxTimeout, time.Minute, 10*365*24*time.Hour)
	}
	l.duration("sandbox.failed_retention", s.FailedRetention, time.Second, 30*24*time.Hour)
	l.between("sandbox.max_sandboxes", s.MaxSandboxes, 1, 1_000_000)
	l.between("sandbox.max_pending", s.MaxPending, 1, 1_000_000)
	if s.DefaultCPU != "" {
		if _, err := ParseCPU(s.DefaultCPU); err != nil {
			l.wrong("sandbox.default_cpu", s.DefaultCPU, err.Error())
		}
	}
	if s.DefaultMemory != 0 {
		l.size("sandbox.default_memory", s.DefaultMemory, 16<<20)
	}
	l.between("sandbox.default_pids", s.DefaultPIDs, 16, 4_194_304) // Linux: PID_MAX_LIMIT
}

func (l *loader) checkStorage(s *Storage) {
	l.absolute("storage.data_dir", s.DataDir)
	if s.RunDir != "" {
		l.absolute("storage.run_dir", s.RunDir)
	}
	if filepath.Clean(s.DataDir) == "/" {
		l.wrong("storage.data_dir", s.DataDir, "want a directory of its own")
	}
	for _, p := range s.AllowedHostPaths {
		l.absolute("storage.allowed_host_paths", p)
		if filepath.Clean(p) == "/" {
			l.wrong("storage.allowed_host_paths", p, "the whole machine cannot be offered to sandboxes: name directories")
		}
	}
	if s.MinFree < 0 {
		l.wrong("storage.min_free", s.MinFree.String(), "want 0 or more")
	}
}

func (l *loader) checkNetwork(n *Network) {
	// A /20 for each instance on the machine.
	if p, err := netip.ParsePrefix(n.Subnet); err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 20 || p.Masked() != p {
		l.wrong("network.subnet", n.Subnet, `want an IPv4 range from /8 to /20 that begins at its first address, such as "10.213.0.0/16"`)
	}
	for _, r := range n.AllowedRanges {
		if p, err := netip.ParsePrefix(r); err != nil || p.Masked() != p {
			l.wrong("network.allowed_ranges", r, `each entry is a range that begins at its first address, such as "10.1.2.0/24"`)
		}
	}
	for _, d := range n.DNSUpstreams {
		if _, err := ParseDNSUpstream(d); err != nil {
			l.wrong("network.dns_upstreams", d, `each entry is "address" or "address:port", such as "9.9.9.9"`)
		}
	}
}

// ParseDNSUpstream reads "address" or "address:port"; the port is 53 otherwise.
func ParseDNSUpstream(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}
