// Package hooks runs the lifecycle hooks of a sandbox: the preStart command
// before its entrypoint, and periodic commands beside it. They are programs of
// the sandbox, run as its user; what they print goes to the entrypoint's log,
// bounded for each run. How periodic runs ended is kept, bounded, until the
// engine fetches it.
package hooks
