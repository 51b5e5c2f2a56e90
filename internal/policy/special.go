package policy

import "net/netip"

// special are the ranges that are not globally reachable in the IANA IPv4 and
// IPv6 Special-Purpose Address Registries, multicast, and those through which
// an IPv4 address can be written as one of IPv6; and what is closed for what
// answers there. The ranges for documentation,
// which nobody has, are not among them. A sandbox reaches none of them
// unless a rule, or the server's configuration, names a range within one.
var special = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	"::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64",
	"2001::/23", "2002::/16", "5f00::/16",
	"fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
)

// never are the addresses that no rule opens: loopback, "this host", multicast,
// broadcast, and where clouds answer questions about the machine and its
// credentials.
var never = prefixes(
	"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4",
	"169.254.0.0/16",     // link-local; 169.254.169.254 and 169.254.170.2 answer on AWS, Azure, GCP
	"100.100.100.200/32", // Alibaba Cloud
	"192.0.0.192/32",     // Oracle Cloud
	"168.63.129.16/32",   // Azure's agent of the host
	"::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32",
	"fe80::/10", "ff00::/8",
	"fd00:ec2::/32",          // AWS
	"fd20:ce::254/128",       // Google Cloud
	"fd00:42::42/128",        // Scaleway
	"fd00:c1::a9fe:a9fe/128", // Oracle Cloud
	"fd00:a9fe:a9fe::1/128",  // Akamai
	"fd00:100::100:200/128",  // Alibaba Cloud
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Special reports whether an address is in a range that is closed unless it is
// named.
func Special(a netip.Addr) bool { return within(special, a) }

// Never reports whether an address is one that nothing opens.
func Never(a netip.Addr) bool { return within(never, a) }

// Opens reports whether a rule for this range opens what is closed otherwise:
// whether all of it lies within one special range.
func Opens(p netip.Prefix) bool {
	for _, s := range special {
		if s.Bits() <= p.Bits() && s.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

func within(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
