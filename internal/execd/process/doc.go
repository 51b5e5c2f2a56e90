// Package process starts the processes of a sandbox and collects every one that
// ends. execd is PID 1, so orphans of the whole sandbox become its children,
// and the kernel hands out each child's status exactly once: one Table per
// program owns all waiting. Nothing else in the program may call wait (os/exec
// included), or statuses would go to the wrong place.
//
// How a status finds its owner: the table looks at a dead child without
// collecting it (WNOWAIT). While the corpse is there its pid can't be reused,
// so the look-up in the registry is exact. A pid that nobody registered is
// either an orphan or a child whose start has not been registered yet; the
// table then waits for the starts under way and collects a batch.
//
// What a process leaves behind when it ends by itself stays: it may be a daemon
// that was meant to. What is left of one that is ended from outside goes with it,
// wherever it has gone (Lineage).
package process
