package config

import "time"

// Config is the whole configuration. Default returns the values that hold when
// nothing is set.
type Config struct {
	// Where the API listens and who may use it.
	Server Server `toml:"server"`
	// What is logged and how.
	Log Log `toml:"log"`
	// Limits and lifetimes of sandboxes.
	Sandbox Sandbox `toml:"sandbox"`
	// Sandboxes made ahead of time, so that a create takes milliseconds.
	Pool Pool `toml:"pool"`
	// Where images come from and how large they may be.
	Image Image `toml:"image"`
	// Where paddock keeps its data, and what of the host sandboxes may mount.
	Storage Storage `toml:"storage"`
	// How the ports of sandboxes are reached, besides the API's own proxy.
	Gateway Gateway `toml:"gateway"`
	// The network of sandboxes.
	Network Network `toml:"network"`
	// What becomes of what network policies refuse, and how credentials come.
	Egress Egress `toml:"egress"`
	// The OCI runtime that makes the containers.
	Runtime Runtime `toml:"runtime"`
	// The GPUs that sandboxes get with resourceLimits.gpu.
	GPU GPU `toml:"gpu"`
}

// Server is the [server] section.
type Server struct {
	// Address and port that the API listens on. Anything but a loopback
	// address is reachable from other machines: set TLS, or put a proxy with
	// TLS in front.
	Listen string `toml:"listen"`
	// Host, or host and port, that is put into the addresses of endpoints.
	// Empty means the Host header of the request. Set it when clients reach
	// the server under another name, for example through a proxy.
	PublicHost string `toml:"public_host"`
	// Key that clients must send. Empty means the key in the file "api-key" in
	// the data directory, which is made at the first start.
	APIKey string `toml:"api_key" secret:"true"`
	// Serve without an API key. Allowed on a loopback address only.
	InsecureNoAuth bool `toml:"insecure_no_auth"`
	// Certificate chain and private key in PEM files. Both or neither.
	TLSCert string `toml:"tls_cert"`
	// See tls_cert.
	TLSKey string `toml:"tls_key"`
	// Largest body of an API request. Uploads into sandboxes and image
	// archives stream and are not bounded by it.
	MaxBodyBytes Size `toml:"max_body_bytes"`
	// How long requests in flight may go on after a signal to stop. Sandboxes
	// run on in any case.
	ShutdownTimeout Duration `toml:"shutdown_timeout"`
	// Origins whose web pages may call the API from a browser, such as
	// "https://console.example.com", or "*" for any.
	CORSOrigins []string `toml:"cors_origins"`
}

// Log is the [log] section.
type Log struct {
	// Least severe messages to log: "debug", "info", "warn" or "error".
	Level string `toml:"level"`
	// "text" or "json".
	Format string `toml:"format"`
}

// Sandbox is the [sandbox] section.
type Sandbox struct {
	// Longest lifetime that a create may ask for. "0s" means no bound.
	MaxTimeout Duration `toml:"max_timeout"`
	// How long the record and the logs of a sandbox that could not be made are
	// kept.
	FailedRetention Duration `toml:"failed_retention"`
	// How many sandboxes there may be. Further creates are answered with 429.
	MaxSandboxes int `toml:"max_sandboxes"`
	// How many creates may be under way. Further ones are answered with 429.
	MaxPending int `toml:"max_pending"`
	// CPU of a sandbox that asks for none, as "500m" or "2". Empty means all
	// CPUs of the machine.
	DefaultCPU string `toml:"default_cpu"`
	// Memory of a sandbox that asks for none. 0 means as much as the machine
	// has.
	DefaultMemory Size `toml:"default_memory"`
	// Processes and threads of a sandbox that asks for no number.
	DefaultPIDs int `toml:"default_pids"`
	// Wall around a sandbox that asks for none: "container", or "gvisor", which
	// puts a kernel in user space between the sandbox and the machine's and
	// needs runsc.
	DefaultIsolation string `toml:"default_isolation"`
}

// Pool is the [pool] section.
type Pool struct {
	// How many are kept ready. 0 makes each at the moment of its create,
	// which takes some 15 ms longer.
	Size int `toml:"size"`
	// How many are made at the same time when some were taken.
	RefillWorkers int `toml:"refill_workers"`
}

// Image is the [image] section.
type Image struct {
	// How long a registry may take to say whether an image exists.
	ResolveTimeout Duration `toml:"resolve_timeout"`
	// Largest size of one image after unpacking.
	MaxUnpackedBytes Size `toml:"max_unpacked_bytes"`
	// Docker's config.json with the logins of registries. Empty means
	// ~/.docker/config.json of the user that runs the server.
	DockerConfig string `toml:"docker_config"`
	// Registries, as "host" or "host:port", that are spoken to without TLS.
	// Loopback addresses need no entry.
	PlainHTTP []string `toml:"plain_http"`
	// How many layers of one image are downloaded at the same time.
	Downloads int `toml:"downloads"`
}

// Storage is the [storage] section.
type Storage struct {
	// Directory for images, records, logs and volumes. One server at a time
	// may use it.
	DataDir string `toml:"data_dir"`
	// Directory for what a reboot may take away. It should be on tmpfs. Empty
	// means /run/paddock or, where /run is on disk, /dev/shm/paddock.
	RunDir string `toml:"run_dir"`
	// Directories of the host below which a sandbox may mount. Empty means
	// that no sandbox may mount any.
	AllowedHostPaths []string `toml:"allowed_host_paths"`
	// Space that must stay free in the data directory. Below it no sandbox is
	// made and no image pulled.
	MinFree Size `toml:"min_free"`
}

// Gateway is the [gateway] section.
type Gateway struct {
	// Form of the addresses that the endpoints route gives out: "proxy"
	// (beneath the API's own path), "path" (/ID/PORT/…), "header" (the header
	// OpenSandbox-Ingress-To) or "wildcard" (a host name for each port, which
	// needs base_domain). Requests are understood in every form. Signed
	// addresses are host names with "proxy" if there is a base_domain, else
	// paths.
	Mode string `toml:"mode"`
	// Address and port for the forms "path", "header" and "wildcard". Empty
	// means that they are served by server.listen, paths beneath /ingress. The
	// certificate is that of server.tls_cert.
	Listen string `toml:"listen"`
	// Domain, or domain and port, below which each port of each sandbox has a
	// host name, ID-PORT.DOMAIN. All names below it must lead here, and a
	// certificate must hold for them. Without a port, clients are told that of
	// public_host or of the listener. Use a domain for this alone: browsers let
	// pages set cookies for the whole of a domain.
	BaseDomain string `toml:"base_domain"`
	// Host, or host and port, in the addresses of the forms "path" and
	// "header". Empty means that of the API, with the port of gateway.listen.
	PublicHost string `toml:"public_host"`
	// Keys for the protocol's short signatures, each "NAME=KEY" with a name of
	// one character (0-9, a-z) and the key in base64. The first one signs, all
	// are accepted. Empty, which is better, means long signatures with the key
	// in the file "gateway-key" in the data directory, which is made at the
	// first start.
	SigningKeys []string `toml:"signing_keys" secret:"true"`
	// Clients come by TLS that ends in a proxy in front of this server. Cookies
	// are marked Secure then, and applications are told https. Set it only when
	// there is no other way in.
	BehindTLS bool `toml:"behind_tls"`
	// Accept HTTP/2 without TLS (h2c, with prior knowledge) on server.listen
	// and gateway.listen. With TLS, HTTP/2 is always offered.
	H2C bool `toml:"h2c"`
	// Requests and connections that may be open to one sandbox. Further ones
	// are answered with 429.
	MaxConnections int `toml:"max_connections"`
	// Requests to one sandbox in a second. Further ones are answered with 429.
	// 0 means any number.
	RequestsPerSecond int `toml:"requests_per_second"`
	// Largest header of a request, to the API too. Beyond it the answer is 431.
	MaxHeaderBytes Size `toml:"max_header_bytes"`
}

// Network is the [network] section.
type Network struct {
	// IPv4 range from which sandboxes get their addresses. It must not overlap
	// a network that the machine uses.
	Subnet string `toml:"subnet"`
	// Give sandboxes IPv6, on a machine that has it. Their addresses are private
	// to the machine, and translated as those of IPv4 are; the machine's IPv6
	// forwarding is turned on for it.
	IPv6 bool `toml:"ipv6"`
	// Resolvers, as "address" or "address:port", that answer the questions of
	// sandboxes. Empty means those of the machine.
	DNSUpstreams []string `toml:"dns_upstreams"`
	// Private ranges that sandboxes may reach, such as "10.1.2.0/24" or
	// "fd12::/48". By default they reach public addresses only.
	AllowedRanges []string `toml:"allowed_ranges"`
}

// Egress is the [egress] section.
type Egress struct {
	// URL that is told, by POST, of what network policies refuse. Empty for
	// none. It counts as a secret, because such URLs often hold one.
	DenyWebhook string `toml:"deny_webhook" secret:"true"`
	// Take credentials for a sandbox's vault over plain HTTP from other
	// machines as well. For a server behind a proxy on another machine that
	// has TLS; without one, the credentials can be read on the way.
	CredentialsOverHTTP bool `toml:"credentials_over_http"`
	// PEM file with further certificate authorities, beside those of the
	// machine, by which destinations are verified whose connections are looked
	// into. For services with certificates of an authority of one's own. It is
	// read at start.
	UpstreamCAFile string `toml:"upstream_ca_file"`
}

// Runtime is the [runtime] section.
type Runtime struct {
	// "crun", or "runc", which starts sandboxes more slowly. The wall around
	// them is the same.
	OCI string `toml:"oci"`
	// Path of the binary. Empty means that it is looked up in PATH.
	Path string `toml:"path"`
	// Path of runsc, for sandboxes behind gVisor. Empty means that it is looked
	// up in PATH and beside paddock's own binary. Where there is none, such
	// sandboxes are refused.
	Runsc string `toml:"runsc"`
}

// GPU is the [gpu] section.
type GPU struct {
	// Vendor and class of the GPUs to hand out, as the specifications have it,
	// such as "nvidia.com/gpu". Empty means the first that is there of
	// "nvidia.com/gpu", "amd.com/gpu" and "intel.com/gpu".
	Kind string `toml:"kind"`
	// Directories with specifications of the Container Device Interface, in
	// which drivers describe the GPUs. Of two that describe the same one, that
	// in the later directory holds.
	CDIDirs []string `toml:"cdi_dirs"`
}

// Default returns the configuration that holds when nothing is set.
func Default() *Config {
	return &Config{
		Server: Server{
			Listen:          "127.0.0.1:8080",
			MaxBodyBytes:    1 << 20,
			ShutdownTimeout: Duration(10 * time.Second),
			CORSOrigins:     []string{},
		},
		Log: Log{Level: "info", Format: "text"},
		Sandbox: Sandbox{
			FailedRetention: Duration(10 * time.Minute),
			MaxSandboxes:    4000, // a /20 of addresses, less those of the host
			MaxPending:      1024,
			DefaultCPU:      "1",
			DefaultMemory:   2 << 30,
			DefaultPIDs:     4096,

			DefaultIsolation: "container",
		},
		Pool:  Pool{Size: 8, RefillWorkers: 2},
		Image: Image{ResolveTimeout: Duration(10 * time.Second), MaxUnpackedBytes: 32 << 30, PlainHTTP: []string{}, Downloads: 4},
		Storage: Storage{
			DataDir:          "/var/lib/paddock",
			AllowedHostPaths: []string{},
			MinFree:          1 << 30,
		},
		Gateway: Gateway{Mode: "proxy", SigningKeys: []string{}, MaxConnections: 4096, MaxHeaderBytes: 64 << 10},
		Network: Network{Subnet: "10.213.0.0/16", IPv6: true, DNSUpstreams: []string{}, AllowedRanges: []string{}},
		Runtime: Runtime{OCI: "crun"},
		GPU:     GPU{CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}},
	}
}
