// Package history keeps what commands printed, byte for byte, in files that
// have no name: nothing in the sandbox can open them, and the kernel frees them
// with their last descriptor. Each command has a ring of bounded size, and all
// rings share a budget; when either is used up the oldest bytes go, and offsets
// keep their meaning.
package history
