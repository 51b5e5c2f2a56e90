// Package policy holds the rules that say which destinations a sandbox may
// reach: their form, their validation, and what they decide about a name, an
// address or a request. It is pure: it reads and writes nothing. Enforcement is
// the engine's.
//
// Rules are read from first to last and the first that matches decides; when
// none does, the default action. A rule names a domain, all domains beneath
// one, an address or a range of addresses.
package policy
