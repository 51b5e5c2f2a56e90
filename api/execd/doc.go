// Package execd is the wire contract of the daemon inside each sandbox. The
// types are generated from ../execd.yaml; package api says how.
package execd
