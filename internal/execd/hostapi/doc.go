// Package hostapi is the protocol between the engine on the host and execd as
// PID 1 of a sandbox: which descriptors execd inherits, and the HTTP routes
// that it serves on the inherited Unix listener only. Nothing inside a sandbox
// can reach that listener, and the engine reads every answer with limits,
// because a sandbox's processes are hostile and execd is next to them.
package hostapi
