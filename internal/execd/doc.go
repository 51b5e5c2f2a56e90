// Package execd is the daemon that is PID 1 of every sandbox: it serves the
// execd API on port 44772 inside the sandbox, and the same on a Unix socket to
// the engine, with the routes of package hostapi in addition.
//
// It begins unclaimed, in a root filesystem that holds nothing but itself. The
// claim comes when the engine has switched the root to an image; it starts the
// entrypoint and opens the API. There is no way back. Started without a socket
// from an engine it is claimed by its own environment instead.
//
// Everything next to it is hostile. Its memory and descriptors can't be read by
// the sandbox's processes (it is not dumpable), every route needs the
// sandbox's token, and all that it reads in the filesystem is read with limits.
//
// A sandbox may be one of thousands on its host, so an idle execd must cost
// next to nothing: no timer runs, no buffer is held, and memory that a burst of
// work needed is given back.
package execd
