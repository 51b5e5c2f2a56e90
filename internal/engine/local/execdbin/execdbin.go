// Package execdbin carries the execd binary inside paddock, so that one file is
// all that a machine needs. `make build` puts the binary into bin/ before it
// compiles paddock; a paddock built without it says so when it starts.
package execdbin

import (
	"embed"
	"errors"
	"io/fs"
)

//go:embed all:bin
var files embed.FS

// ErrMissing is returned by Binary when paddock was built without execd.
var ErrMissing = errors.New("this paddock was built without execd; build it with `make build`")

// Binary returns the static execd binary for this architecture.
func Binary() ([]byte, error) {
	b, err := files.ReadFile("bin/execd")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	return b, err
}
