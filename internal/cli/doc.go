// Package cli is the command line of paddock: one file for each command, and
// the wiring of the server in stack.go. Commands talk to a server only through
// the client package, so they work the same against a remote server, the local
// one, and the one that `run` and `image` start inside themselves when there is
// none.
//
// Commands return errors and never exit: main turns an *ExitError into its
// code, a *UsageError into 2 and anything else into 1.
package cli
