// Package vault keeps the credentials that sandboxes may use without seeing
// them: it validates and stores them, and decides which of them belongs into
// which request.
//
// A Vaults holds one vault for each sandbox that has one. Each is a sealed file
// below the data directory; the key lies outside the records, in a file of its
// own. API serves a sandbox's vault over HTTP, and Active hands its bindings to
// the proxy that makes the requests (internal/egress/intercept). Nothing here
// returns, logs or formats the value of a credential: see Secret.
package vault
