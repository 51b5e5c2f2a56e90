// Package sandbox is paddock's domain: what a sandbox is, which states it can
// be in, and the Manager that is the single owner of every state change. It
// knows neither HTTP nor Linux nor SQL: the machinery that makes sandboxes real
// is behind the Engine interface, durable records are behind Store, and both
// are declared here because this package is what uses them.
package sandbox
