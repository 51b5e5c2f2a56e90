// Package session keeps shells that run one command after another, so that
// variables, functions, aliases, options, the working directory and background
// jobs of one run are there in the next.
//
// A session is one long-lived bash (or sh). It reads its orders from a pipe as
// its standard input; the text of a run reaches bash in a file in memory, and is
// evaluated with standard input from /dev/null and without execd's descriptors.
// Exit code, directory and a copy of the shell's state come back on a descriptor
// of their own, never through the output, so nothing that a command prints can
// be mistaken for them.
//
// A run that ends without a report, because the shell was made unable to give
// one ("set -n", "set -r", a function named builtin), is noticed: bash reads its
// orders byte by byte, so an empty pipe means that it has read the order to
// report. Then, too, the session goes on in a new shell.
//
// A shell can't be stopped in the middle of a run without ending it. When a run
// calls exit, exceeds its timeout or loses its client, the next run gets a new
// shell that is given the state which the last finished run left: variables,
// functions, aliases, options, umask and directory with bash; exported
// variables, umask and directory with sh. Traps, positional parameters and
// descriptors that were opened with exec end with their shell. Background jobs
// of earlier runs live on, but the new shell does not list them.
//
// stdout and stderr share a pipe, as the contract says (OpenSandbox execd API), so
// their order is exact. What background jobs print between two runs is given to
// the next run, as a terminal would show it.
//
// What a user does to his own shell can spoil his session's results and nothing
// else: whatever comes on the report descriptor is only ever used for this
// session, within limits.
package session
