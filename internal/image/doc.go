// Package image keeps the container images that sandboxes start from: it pulls
// them from registries, imports and exports archives, unpacks every layer once
// into a directory that all sandboxes share read-only, and removes what nobody
// uses.
//
// The parts come from containerd and run in this process: a content store for
// the blobs, a bolt database for what refers to what, the overlay snapshotter
// for the unpacked layers, and leases with a garbage collector. Everything
// below Options.Root belongs to one Store at a time.
//
// A pull is: resolve (registry.go, manifest.go), download (fetch.go), unpack
// (unpack.go), record (records.go). What is downloaded or unpacked is held by a
// lease until the image is recorded, so a process that dies half-way leaves
// either an image or leftovers that the next Open knows to be such. Layers come
// from strangers: unpack.go says what is done about that.
//
// Lookup is on the path of every create and touches memory only (index.go).
package image
