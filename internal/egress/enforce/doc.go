// Package enforce holds the policies of the living sandboxes and makes the
// resolver, the proxy and the packet filter act on one of them alike.
//
// A sandbox is known by its source address. What it may reach comes together
// from three places:
//
//	names       the resolver asks Decide about each question, and Learn puts
//	            the addresses of an allowed name into the packet filter before
//	            the sandbox hears of them
//	addresses   the packet filter has the rules about addresses, and the
//	            addresses that were learned, for as long as the answer lives
//	use         the proxy asks Judge whether the name that a connection gives
//	            is allowed and was the one whose answer held the address
//
// A change of a policy is one transaction in the packet filter; what was learned
// and is still allowed stays, and connections that are not are cut.
//
// Nothing here is stored: the engine applies the recorded policies again after a
// restart. What was learned is forgotten by then, and names must be looked up
// again.
package enforce
