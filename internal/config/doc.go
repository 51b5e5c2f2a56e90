// Package config is paddock's configuration: one documented struct, filled
// from a TOML file, the environment and flags, in that order, so that a flag
// wins over the environment and that over the file. The comments on the struct
// are the user's documentation; Reference reads them for `paddock config`.
//
// Nothing is ignored silently: an unknown key or a variable that looks like a
// key is an error that names its line and suggests the nearest key, and every
// bad value is reported, not only the first.
package config

//go:generate go run ./mkdoc ../../docs/configuration.md
