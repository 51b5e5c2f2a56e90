// Package pty serves terminals: shells with a pseudo-terminal, or with plain
// pipes, that a client talks to over a WebSocket (OpenSandbox execd API).
//
// A session outlives its connections. What its program prints goes into a ring
// of memory first and from there to the client, so a client that comes back
// names the offset that it has seen and gets the rest, with no byte lost or
// sent twice. One client holds a session at a time; another one may take it
// over. A client that reads slowly slows the program down, as a slow terminal
// does, until it is so slow that its connection is given up; then the program
// runs on and the ring keeps the newest of its output.
//
// Three goroutines serve a running session (output, input, end), and three more
// a connection (frames out, frames in, pings). All state is guarded by
// session.mu, which nobody holds while waiting.
package pty
