//go:build !amd64

package main

// legacy does nothing: only amd64 can enter the kernel both ways from one
// program.
func legacy() {}
