package egress

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// maxResolvConf is the most that is read of a resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// maxUpstreams is how many resolvers are used, more than the three of the C
// library (MAXNS in resolv.h). Nobody waits for a tenth.
const maxUpstreams = 8

// upstreamSource is where the list of upstreams comes from.
type upstreamSource interface {
	// current is the list to use now. It may be empty. Callers must not
	// change it.
	current() []*upstream
}

// fixed is a list that never changes.
type fixed []*upstream

func (f fixed) current() []*upstream { return f }

// parseUpstreams reads addresses with or without a port.
func parseUpstreams(list []string) (fixed, error) {
	var out fixed
	for _, s := range list {
		addr, err := parseUpstream(s)
		if err != nil {
			return nil, fmt.Errorf("egress: upstream %q: it must be an IP address, or one with a port as in 192.0.2.1:53 or [2001:db8::1]:53", s)
		}
		out = append(out, &upstream{addr: addr})
	}
	return out, nil
}

func parseUpstream(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), dnsPort), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// resolvConf is the list of a resolv.conf. The file is looked at with every
// question, which costs a microsecond and needs no watcher that follows links
// and renames (the file is commonly a link to one that is replaced).
type resolvConf struct {
	path   string
	ignore func(netip.AddrPort) bool // addresses that would be a loop
	log    *slog.Logger

	mu   sync.Mutex
	seen stamp
	list []*upstream
}

// stamp tells versions of a file apart.
type stamp struct {
	dev, ino uint64
	size     int64
	// changed is the time of the inode's last change: unlike that of the
	// content nobody can set it back.
	changed unix.Timespec
}

func newResolvConf(path string, ignore func(netip.AddrPort) bool, log *slog.Logger) *resolvConf {
	r := &resolvConf{path: path, ignore: ignore, log: log}
	r.current()
	return r
}

// current keeps the last list while the file is missing or can't be read: that
// is how it looks while a network manager rewrites it.
func (r *resolvConf) current() []*upstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(r.path, &st); err != nil {
		return r.list
	}
	now := stamp{st.Dev, st.Ino, st.Size, st.Ctim}
	if r.seen == now {
		return r.list
	}
	servers, err := readResolvConf(r.path)
	if err != nil {
		r.log.Warn("cannot read the host's DNS configuration", "file", r.path, "error", err)
		r.seen = now // once per version of the file is enough
		return r.list
	}
	r.seen = now
	r.list = r.merge(servers)
	if len(r.list) == 0 {
		r.log.Warn("the host's DNS configuration names no usable resolver; names will not resolve in sandboxes", "file", r.path)
	}
	return r.list
}

// merge makes the new list, keeping what is known about upstreams that stay.
func (r *resolvConf) merge(servers []netip.AddrPort) []*upstream {
	var out []*upstream
	for _, addr := range servers {
		if r.ignore(addr) {
			continue
		}
		next := &upstream{addr: addr}
		for _, old := range r.list {
			if old.addr == addr {
				next = old
			}
		}
		if out = append(out, next); len(out) == maxUpstreams {
			break
		}
	}
	return out
}

func readResolvConf(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, err
	}
	return parseResolvConf(text)
}

// parseResolvConf takes the usable servers out of a resolv.conf (resolv.conf(5)).
// A server that isn't an address is skipped, as the C library does.
func parseResolvConf(text []byte) ([]netip.AddrPort, error) {
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	seen := map[netip.Addr]bool{}
	for _, s := range conf.Servers {
		addr, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil || seen[addr.Unmap()] {
			continue
		}
		seen[addr.Unmap()] = true
		out = append(out, netip.AddrPortFrom(addr.Unmap(), dnsPort))
	}
	return out, nil
}
