// Package store keeps the records of sandboxes in one SQLite file, so that a
// server which died at any instant finds them again.
//
// A record is stored whole, as JSON; the columns beside it are for people with
// an sqlite3 shell and for guarding against stale writes. The file is opened in
// WAL mode with synchronous=NORMAL. When a call returns, its change survives
// the death of the process, kill -9 included, because the kernel has the bytes.
// A power loss or a kernel crash may take the last changes with it (those since
// the last checkpoint at most) but never damages the file; the sandboxes of
// such a host are gone anyhow, and what comes back is marked so at the start.
//
// One process at a time may have the file open: a lock file beside it, held by
// the kernel for as long as the process lives, sees to that.
package store
