package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// Problem is something about the host that keeps paddock from doing all that
// it should.
type Problem struct {
	// What is wrong, as a sentence.
	What string
	// Remedy says what the administrator can do.
	Remedy string
	// Cost is what happens while it is left so.
	Cost string
}

// noSandbox is the cost of what the network can't do without.
const noSandbox = "No sandbox can be made."

// Problems lists what stands in the way of a network with these options. It
// changes nothing on the host and works before New as well as after.
func Problems(ctx context.Context, o Options) []Problem {
	if err := o.check(); err != nil {
		return []Problem{{What: "The network options are wrong: " + err.Error() + ".", Remedy: "Change the configuration.", Cost: noSandbox}}
	}
	n := newNetwork(o)
	var list []Problem
	for _, look := range []func(context.Context) (*Problem, error){
		n.filterProblem, n.vethProblem, n.forwardingProblem, n.overlapProblem, n.otherFirewallProblem,
	} {
		p, err := look(ctx)
		if err != nil {
			p = &Problem{
				What:   "The network could not be examined: " + err.Error() + ".",
				Remedy: "Run paddock as root, and in a container with the capability NET_ADMIN.",
				Cost:   noSandbox,
			}
		}
		if p != nil {
			list = append(list, *p)
		}
	}
	return list
}

// filterProblem makes the whole table under another name and takes it away
// again within one transaction, which tests all that the kernel must know.
func (n *Network) filterProblem(ctx context.Context) (*Problem, error) {
	c, err := dialNFT(ctx)
	if err != nil {
		return nil, err
	}
	probe := newNetwork(Options{Name: n.name + "-probe", Subnet: n.subnet, NoIPv6: !n.subnet6.IsValid(), ProxyPort: 1})
	if err := probe.fillTable(c); err != nil {
		return nil, err
	}
	c.DelTable(probe.nftTable())
	err = c.Flush()
	if errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	if err != nil {
		return &Problem{
			What:   "The kernel's nf_tables can't do what is needed: " + err.Error() + ".",
			Remedy: "Load or install the kernel modules nf_tables, nft_ct, nft_fib_inet, nft_masq, nft_nat, nft_chain_nat, nft_reject_inet, nft_limit and nft_connlimit.",
			Cost:   noSandbox,
		}, nil
	}
	return nil, nil
}

// vethProblem makes a pair in a network namespace of its own, that ends with
// the thread.
func (n *Network) vethProblem(ctx context.Context) (*Problem, error) {
	err := thread.Run(func() error { return tryVeth(ctx) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &Problem{
			What:   "The kernel has no veth interfaces.",
			Remedy: "Load or install the kernel module veth.",
			Cost:   noSandbox,
		}, nil
	}
	return nil, err
}

func tryVeth(ctx context.Context) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	c, err := dialHost(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	b := linkHeader(0, 0, 0)
	b.str(unix.IFLA_IFNAME, "probe")
	b.nest(unix.IFLA_LINKINFO, func(info *body) { info.str(unix.IFLA_INFO_KIND, "veth") })
	_, err = c.do(message(unix.RTM_NEWLINK, create|excl, b.b))
	return err
}

func (n *Network) forwardingProblem(context.Context) (*Problem, error) {
	b, err := os.ReadFile(forwarding)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(b)) == "1" || unix.Access(forwarding, unix.W_OK) == nil {
		return nil, nil
	}
	return &Problem{
		What:   "IPv4 forwarding is off and " + forwarding + " is not writable.",
		Remedy: "Run on the host: sysctl -w net.ipv4.ip_forward=1. In a container, mount /proc/sys read-write.",
		Cost:   "Sandboxes can't reach the outside.",
	}, nil
}

// overlapProblem looks for routes into the subnet that are not ours.
func (n *Network) overlapProblem(ctx context.Context) (*Problem, error) {
	c, err := dialHost(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	links, err := c.links()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	routes, err := c.dump(message(unix.RTM_GETROUTE, dump, routeHeader(unix.AF_INET, 0, 0, 0).b))
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for _, m := range routes {
		dst, link, err := parseRoute(m)
		if err != nil {
			return nil, err
		}
		// Every host has a default route, and our own are no problem.
		if dst.Bits() <= 0 || !dst.Overlaps(n.subnet) || strings.HasPrefix(names[link], n.prefix) {
			continue
		}
		if dst.IsSingleIP() && dst.Addr() == n.gateway && link == loopback {
			continue
		}
		return &Problem{
			What:   fmt.Sprintf("The subnet %s overlaps the route to %s by %s.", n.subnet, dst, names[link]),
			Remedy: "Set network.subnet to a range that nothing else uses.",
			Cost:   "Sandboxes can't be reached, or hide the hosts of that range.",
		}, nil
	}
	return nil, nil
}

// parseRoute returns the destination of an IPv4 route and its interface.
func parseRoute(m netlink.Message) (netip.Prefix, int, error) {
	if len(m.Data) < unix.SizeofRtMsg {
		return netip.Prefix{}, 0, errors.New("netlink: a short answer about a route")
	}
	bits, dst, link := int(m.Data[1]), netip.IPv4Unspecified(), 0
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Prefix{}, 0, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(ad.Bytes()); ok {
				dst = a
			}
		case unix.RTA_OIF:
			link = int(ad.Uint32())
		}
	}
	return netip.PrefixFrom(dst, bits), link, ad.Err()
}

// otherFirewallProblem looks for chains of others that drop what is forwarded:
// a packet has to pass all chains of a hook.
func (n *Network) otherFirewallProblem(ctx context.Context) (*Problem, error) {
	c, err := dialNFT(ctx)
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if isMissing(err) {
		return nil, nil // filterProblem tells
	}
	if err != nil {
		return nil, fmt.Errorf("listing the chains of nftables: %w", err)
	}
	for _, chain := range chains {
		if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward ||
			chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop || !filters4(chain.Table.Family) {
			continue
		}
		return &Problem{
			What: fmt.Sprintf("The chain %s of the nftables table %s drops forwarded packets by default.", chain.Name, chain.Table.Name),
			Remedy: fmt.Sprintf("Unless a rule there lets sandboxes pass already, add one. For Docker: "+
				"iptables -I DOCKER-USER -i pd%[1]s-+ -j ACCEPT; iptables -I DOCKER-USER -o pd%[1]s-+ -j ACCEPT", n.name),
			Cost: "Sandboxes may not reach the outside.",
		}, nil
	}
	return nil, nil
}

func filters4(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyINet
}
