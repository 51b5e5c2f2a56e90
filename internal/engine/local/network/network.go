package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options describe one instance's network.
type Options struct {
	// Name tells the instances on a host apart: 1 to 4 lower-case letters
	// and digits. It is part of the names of interfaces and of the table.
	Name string
	// Subnet holds the addresses: the gateway's is the second of it, those
	// of the sandboxes follow. /8 to /29. It must be used by nothing else.
	Subnet netip.Prefix
	// AllowedRanges are ranges that sandboxes may reach although they are
	// private. IPv4 only: sandboxes have no IPv6.
	AllowedRanges []netip.Prefix
	// Policies are those of sandboxes that live already, by address: they are in
	// force from the moment that the filter is.
	Policies map[netip.Addr]*Policy
	// ProxyPort is where the proxy listens at the gateway's address, which
	// may be before New (IP_FREEBIND). 0 means that there is none: addresses
	// that are learned are not reachable over TCP then.
	ProxyPort uint16
	// ReportGroup is the kernel's log group in which refused packets are
	// reported, see Drops. It must be no other's on this host; 0 means none.
	ReportGroup uint16
	// Logger may be nil.
	Logger *slog.Logger
}

var instanceNames = regexp.MustCompile(`^[a-z0-9]{1,4}$`)

func (o *Options) check() error {
	if !instanceNames.MatchString(o.Name) {
		return fmt.Errorf("network name %q: 1 to 4 lower-case letters and digits are allowed", o.Name)
	}
	if !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() || o.Subnet.Bits() < 8 || o.Subnet.Bits() > 29 {
		return fmt.Errorf("network subnet %s: an IPv4 range between /8 and /29 is needed", o.Subnet)
	}
	return checkRanges(o.AllowedRanges)
}

func checkRanges(ranges []netip.Prefix) error {
	for _, r := range ranges {
		if !r.IsValid() || !r.Addr().Is4() {
			return fmt.Errorf("allowed range %s: an IPv4 range is needed, sandboxes have no IPv6", r)
		}
	}
	return nil
}

// Network is an instance's network. It is safe for concurrent use. What it made
// stays on the host until Teardown, also after Close.
type Network struct {
	name    string
	prefix  string // of interface names
	subnet  netip.Prefix
	gateway netip.Addr
	hasIPv6 bool
	log     *slog.Logger

	proxyPort   uint16
	reportGroup uint16
	// shut are the ranges that only a rule opens, never those that none does.
	shut, never []span

	// firewall serialises changes of the table, and guards what follows.
	firewall sync.Mutex
	policies map[netip.Addr]*installed
	// socket is kept open for changes of policies; nil while there is none.
	socket *socket

	// tracking guards flows, which is open between changes; nil before.
	tracking sync.Mutex
	flows    *netlink.Handle
}

// New sets the network up: the packet filter first, then the gateway's address
// and forwarding. It may be called again, by a later process too, and then
// replaces the filter in one step; connections of living sandboxes go on.
func New(ctx context.Context, o Options) (*Network, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	n := newNetwork(o)
	if err := n.installFilter(ctx, o.AllowedRanges, o.Policies); err != nil {
		return nil, fmt.Errorf("setting up the packet filter: %w", err)
	}
	if err := n.addGateway(ctx); err != nil {
		return nil, fmt.Errorf("adding the gateway address %s: %w", n.gateway, err)
	}
	if err := n.enableForwarding(); err != nil {
		return nil, fmt.Errorf("turning on IPv4 forwarding: %w", err)
	}
	return n, nil
}

func newNetwork(o Options) *Network {
	n := &Network{
		name:    o.Name,
		prefix:  "pd" + o.Name + "-",
		subnet:  o.Subnet.Masked(),
		gateway: GatewayOf(o.Subnet),
		log:     o.Logger,

		proxyPort: o.ProxyPort, reportGroup: o.ReportGroup,
		policies: map[netip.Addr]*installed{},
	}
	n.shut = without(spans(denied), spans(o.AllowedRanges))
	n.never = spans(append(slices.Clone(never), n.subnet))
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	_, err := os.Stat("/proc/sys/net/ipv6")
	n.hasIPv6 = err == nil
	return n
}

// GatewayOf is the gateway's address in a subnet.
func GatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Gateway is the host's address as sandboxes see it, where the resolver
// listens.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// Capacity is the number of indexes; they begin at 0.
func (n *Network) Capacity() int { return capacity(n.subnet) }

func capacity(subnet netip.Prefix) int {
	// Less the network's own, the gateway's and the broadcast address.
	return 1<<(32-subnet.Bits()) - 3
}

// Addr is the address of the sandbox with that index.
func (n *Network) Addr(index int) (netip.Addr, error) { return AddrOf(n.subnet, index) }

// AddrOf is the address of the sandbox with that index in a subnet.
func AddrOf(subnet netip.Prefix, index int) (netip.Addr, error) {
	subnet = subnet.Masked()
	if most := capacity(subnet); index < 0 || index >= most {
		return netip.Addr{}, fmt.Errorf("sandbox index %d: %s has room for 0 to %d", index, subnet, most-1)
	}
	b := subnet.Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += 2 + uint32(index)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), nil
}

// link is the name of the host's end.
func (n *Network) link(index int) string { return n.prefix + strconv.Itoa(index) }

// forwarding is the host's switch for IPv4 forwarding.
const forwarding = "/proc/sys/net/ipv4/ip_forward"

func (n *Network) enableForwarding() error {
	b, err := os.ReadFile(forwarding)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
		return err
	}
	n.log.Info("turned on IPv4 forwarding on this host", "setting", "net.ipv4.ip_forward")
	return nil
}

// Interface is the host's end of a sandbox's pair.
type Interface struct {
	Index int
	// Alias is what Attach was given; empty if it was interrupted.
	Alias string
}

// Interfaces lists what is on the host, for finding what an earlier process
// left.
func (n *Network) Interfaces(ctx context.Context) ([]Interface, error) {
	c, err := dialHost(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	links, err := c.links()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var list []Interface
	for _, l := range links {
		number, ok := strings.CutPrefix(l.name, n.prefix)
		if !ok {
			continue
		}
		index, err := strconv.Atoi(number)
		if err != nil || n.link(index) != l.name {
			continue
		}
		list = append(list, Interface{Index: index, Alias: l.alias})
	}
	return list, nil
}

// Close closes what the process has open. The network goes on without it, and
// may be used again.
func (n *Network) Close() error {
	n.firewall.Lock()
	defer n.firewall.Unlock()
	n.tracking.Lock()
	defer n.tracking.Unlock()
	if n.flows != nil {
		n.flows.Close()
		n.flows = nil
	}
	return n.closeSocket()
}

// Teardown removes all interfaces of the instance, the table and the gateway's
// address. Idempotent. The interfaces go first, so that no sandbox is ever
// without the filter.
func (n *Network) Teardown(ctx context.Context) error {
	if err := n.removeGroup(ctx, n.group()); err != nil {
		return fmt.Errorf("removing the interfaces of the sandboxes: %w", err)
	}
	if err := n.removeFilter(ctx); err != nil {
		return fmt.Errorf("removing the packet filter: %w", err)
	}
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.do(message(unix.RTM_DELADDR, 0, n.gatewayAddress()))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("removing the gateway address %s: %w", n.gateway, err)
	}
	return nil
}

// addGateway puts the gateway's address on the loopback interface, which every
// host has; not every kernel has dummy interfaces. Its scope is "host", so that
// the kernel never picks it as the source of anything but what the routes to
// the sandboxes say.
func (n *Network) addGateway(ctx context.Context) error {
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.do(message(unix.RTM_NEWADDR, create|replace, n.gatewayAddress()))
	return err
}

func (n *Network) gatewayAddress() []byte {
	return address(loopback, n.gateway, unix.RT_SCOPE_HOST, "lo:pd"+n.name)
}
