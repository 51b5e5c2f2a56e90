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
	// private.
	AllowedRanges []netip.Prefix
	// NoIPv6 leaves sandboxes without IPv6, as on a host that has none.
	NoIPv6 bool
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
		if !r.IsValid() || r.Addr().Is4In6() {
			return fmt.Errorf("allowed range %s: a range of IPv4 or IPv6 is needed", r)
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
	// subnet6 and gateway6 are not valid when sandboxes have no IPv6.
	subnet6  netip.Prefix
	gateway6 netip.Addr
	// knowsIPv6 says that the kernel does.
	knowsIPv6 bool
	log       *slog.Logger

	proxyPort   uint16
	reportGroup uint16
	// allowed are the ranges that the configuration opens, shut those that only a
	// rule does, never those that none does.
	allowed, shut, never []span

	// firewall serialises changes of the table, and guards what follows.
	firewall sync.Mutex
	policies map[netip.Addr]*installed
	// near are the networks of the host that the table closes.
	near []span
	// socket is kept open for changes of policies; nil while there is none.
	socket *socket

	// tracking guards flows, which is open between changes; nil before.
	tracking sync.Mutex
	flows    *conn
}

// New sets the network up: the packet filter first, then the gateway's address
// and forwarding. It may be called again, by a later process too, and then
// replaces the filter in one step; connections of living sandboxes go on.
func New(ctx context.Context, o Options) (*Network, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	n := newNetwork(o)
	if err := n.installFilter(ctx, o.Policies); err != nil {
		return nil, fmt.Errorf("setting up the packet filter: %w", err)
	}
	if err := n.addGateways(ctx); err != nil {
		return nil, fmt.Errorf("adding the gateway's addresses: %w", err)
	}
	if err := n.enableForwarding(); err != nil {
		return nil, fmt.Errorf("turning on IPv4 forwarding: %w", err)
	}
	if n.subnet6.IsValid() {
		if err := n.enableForwarding6(); err != nil {
			return nil, fmt.Errorf("turning on IPv6 forwarding: %w", err)
		}
	}
	return n, nil
}

// Gateways are the host's addresses as sandboxes will see them: one of IPv4 and, if
// they will have IPv6, one of that.
func (o *Options) Gateways() []netip.Addr {
	list := []netip.Addr{GatewayOf(o.Subnet)}
	if !o.NoIPv6 && usesIPv6() {
		list = append(list, within6(prefix6(o.Name, o.Subnet), list[0]))
	}
	return list
}

// allowedSpans are the ranges that the configuration opens. One that only has an
// address of those that nothing opens among its own does not open that: it must
// be named.
func allowedSpans(ranges []netip.Prefix) []span {
	closed := spans(never)
	var out []span
	for _, r := range ranges {
		list := spans([]netip.Prefix{r})
		if !slices.ContainsFunc(closed, func(c span) bool { return c.covers(list[0]) }) {
			list = without(list, closed)
		}
		out = append(out, list...)
	}
	return join(out)
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
	n.allowed = allowedSpans(o.AllowedRanges)
	n.shut = without(spans(slices.Concat(denied4, denied6)), n.allowed)
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.knowsIPv6 = knowsIPv6()
	own := []netip.Prefix{n.subnet}
	if !o.NoIPv6 && usesIPv6() {
		n.subnet6 = prefix6(o.Name, o.Subnet)
		n.gateway6 = within6(n.subnet6, n.gateway)
		own = append(own, n.subnet6)
	}
	n.never = spans(slices.Concat(never, own))
	return n
}

// GatewayOf is the gateway's address in a subnet.
func GatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// Gateway is the host's address as sandboxes see it, where the resolver
// listens.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// HasIPv6 says whether sandboxes have IPv6.
func (n *Network) HasIPv6() bool { return n.subnet6.IsValid() }

// Addr6 is the IPv6 address of the sandbox with that IPv4 address. It is not
// valid when sandboxes have no IPv6.
func (n *Network) Addr6(sandbox netip.Addr) netip.Addr {
	if !n.subnet6.IsValid() || !n.subnet.Contains(sandbox) {
		return netip.Addr{}
	}
	return within6(n.subnet6, sandbox)
}

// Sandbox is the IPv4 address, by which a sandbox is known, of the one that
// either of its addresses belongs to. It is not valid for an address outside of
// the subnets.
func (n *Network) Sandbox(a netip.Addr) netip.Addr {
	switch {
	case n.subnet.Contains(a):
		return a
	case n.subnet6.IsValid() && n.subnet6.Contains(a):
		b := a.As16()
		if four := netip.AddrFrom4([4]byte(b[12:])); n.subnet.Contains(four) {
			return four
		}
	}
	return netip.Addr{}
}

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
	n.closeFlows()
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
	if err := n.removeGateway6(c); err != nil {
		return err
	}
	_, err = c.do(message(unix.RTM_DELADDR, 0, n.gatewayAddress()))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("removing the gateway's address: %w", err)
	}
	return nil
}

// removeGateway6 removes the gateway's IPv6 address, which a process with other
// options may have made.
func (n *Network) removeGateway6(c *conn) error {
	if !n.knowsIPv6 {
		return nil
	}
	_, err := c.do(message(unix.RTM_DELADDR, 0, n.gatewayAddress6()))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("removing the gateway's IPv6 address: %w", err)
	}
	return nil
}

// addGateways puts the gateway's addresses on the loopback interface, which every
// host has; not every kernel has dummy interfaces. The kernel never picks either as
// the source of anything but what the routes to the sandboxes say: the scope of the
// one is "host", and the other is not preferred.
func (n *Network) addGateways(ctx context.Context) error {
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.do(message(unix.RTM_NEWADDR, create|replace, n.gatewayAddress())); err != nil {
		return err
	}
	if !n.subnet6.IsValid() {
		return n.removeGateway6(c)
	}
	_, err = c.do(message(unix.RTM_NEWADDR, create|replace, unpreferred(n.gatewayAddress6())))
	return err
}

func (n *Network) gatewayAddress() []byte {
	return address(loopback, n.gateway, unix.RT_SCOPE_HOST, "lo:pd"+n.name)
}

func (n *Network) gatewayAddress6() []byte {
	gateway6 := within6(prefix6(n.name, n.subnet), n.gateway)
	return address(loopback, gateway6, unix.RT_SCOPE_UNIVERSE, "")
}
