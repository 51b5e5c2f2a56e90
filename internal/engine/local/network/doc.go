// Package network connects sandboxes to the host and, through it, to the
// outside.
//
// Each sandbox has a veth pair: one end is eth0 in the sandbox's network
// namespace with a /32 address, the other is on the host with a /32 route to
// that address. There is no bridge: sandboxes share no segment, and a bridge
// would end at 1,023 ports. Neighbour entries on both sides are permanent and
// the host's end does not speak ARP, so no packet waits for it and none can
// forge it. The gateway's address is on the host's loopback interface.
//
// One nftables table for each instance decides what passes; its number of rules
// does not depend on the number of sandboxes. In short:
//
//	sandbox to outside    public addresses, and allowed ranges; masqueraded
//	sandbox to sandbox    nothing
//	sandbox to host       DNS to the gateway, replies to the host's connections
//	host to sandbox       everything
//	outside to sandbox    replies
//
// A sandbox has an address of IPv4, by which it is known, and one of IPv6 that is
// made of it, unless the host has no IPv6; the rules for both are the same.
//
// A sandbox may have a policy, which says what of this it reaches, and what more:
// addresses that a rule opens, and those that the resolver learned for it, TCP to
// which goes to the proxy on the host. See policedChain.
//
// A packet whose source is not the sandbox's own address is dropped. All of
// this is on the host, out of reach of root in the sandbox.
//
// New turns on forwarding, which is a setting of the whole host and stays on after
// Teardown: another program may rely on it by then.
package network
