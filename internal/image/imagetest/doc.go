// Package imagetest makes small container images for tests, well-formed and
// hostile, and serves them from a real registry on loopback, Debian's
// docker-registry, with a proxy in front that can misbehave in the ways in
// which registries and networks do.
package imagetest
