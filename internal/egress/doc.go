// Package egress is how sandboxes reach the world, as far as the host has a say
// in it.
//
// The Resolver is the one DNS server that sandboxes can reach. It listens on the
// gateway address of their network, answers nobody outside that network, asks
// the host's own resolvers, and gives a policy the last word on every name
// (Options.Decide). It keeps no cache: the host's resolvers do, and an answer
// here must always be one that the policy has just seen.
//
// Everything that arrives is hostile: queries come from sandboxes, answers from
// wherever the host's resolver got them. Queries are parsed, checked and written
// anew, so that nothing but one question travels on, and each sandbox has a
// bounded share of what the resolver does at a time.
package egress
