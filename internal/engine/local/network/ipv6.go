package network

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Settings of the host for IPv6 (Documentation/networking/ip-sysctl.rst of the
// kernel).
const (
	ipv6Settings = "/proc/sys/net/ipv6/conf"
	forwarding6  = ipv6Settings + "/all/forwarding"
)

// knowsIPv6 reports whether the kernel has IPv6.
func knowsIPv6() bool {
	_, err := os.Stat(ipv6Settings)
	return err == nil
}

// usesIPv6 reports whether interfaces that are made get IPv6, which a host turns
// off with net.ipv6.conf.all.disable_ipv6 or at boot, and whether packets of it can
// be forwarded.
func usesIPv6() bool {
	// New network namespaces begin as the module's parameter says, whatever
	// became of the host's own settings.
	if v, err := setting("/sys/module/ipv6/parameters/disable_ipv6"); err == nil && v != "0" {
		return false
	}
	if v, err := setting(forwarding6); err != nil || v != "1" && unix.Access(forwarding6, unix.W_OK) != nil {
		return false
	}
	for _, scope := range []string{"all", "default", "lo"} {
		if v, err := setting(filepath.Join(ipv6Settings, scope, "disable_ipv6")); err != nil || v != "0" {
			return false
		}
	}
	return true
}

func setting(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// enableForwarding6 turns IPv6 forwarding on. A host that forwards takes no routes
// from router advertisements any more, and forgets those that it has, unless an
// interface says that it does all the same (accept_ra = 2): the interfaces that
// take them now are told to go on.
func (n *Network) enableForwarding6() error {
	if v, err := setting(forwarding6); err != nil || v == "1" {
		return err
	}
	list, err := os.ReadDir(ipv6Settings)
	if err != nil {
		return err
	}
	for _, d := range list {
		path := filepath.Join(ipv6Settings, d.Name(), "accept_ra")
		v, err := setting(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // an interface that has gone
		}
		if err != nil {
			return err
		}
		// What "all" says counts for nothing, and "default" for interfaces to
		// come, those of sandboxes among them.
		if v != "1" || d.Name() == "all" || d.Name() == "default" {
			continue
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.WriteFile(forwarding6, []byte("1"), 0); err != nil {
		return err
	}
	n.log.Info("turned on IPv6 forwarding on this host", "setting", "net.ipv6.conf.all.forwarding")
	return nil
}

// Reaches reports whether sandboxes have the family of an address, and the host a
// route to it, with an address of its own to send from. Nothing is sent.
func (n *Network) Reaches(a netip.Addr) bool {
	if a.Is6() && !n.subnet6.IsValid() {
		return false
	}
	// Connecting a datagram socket looks the route up and no more.
	const anyPort = 9
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, anyPort)))
	if err != nil {
		return false
	}
	defer c.Close()
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	return a.Is4() || !from.IsLinkLocalUnicast() && !n.subnet6.Contains(from)
}
