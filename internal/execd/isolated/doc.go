// Package isolated answers the routes for isolated runs (behaviour.md 12). Those
// runs need mounts, and a sandbox may not mount anything: its wall is worth more
// than a second one inside it. So the capabilities say that isolation is not
// available, and the other routes answer 503, which is what the contract has for
// that case. A client that wants a fresh environment makes another sandbox.
package isolated
