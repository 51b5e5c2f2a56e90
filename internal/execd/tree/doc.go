// Package tree serves whole directories: as a tar stream out, as a tar stream
// in (package tarball does both), and as a stream of the changes in them.
//
// Each request acts as the sandbox's user, or as the one that its route names, so
// the kernel decides what it may see. Everything about a directory is hostile,
// and may change while it is walked: directories are reached by descriptor.
package tree
