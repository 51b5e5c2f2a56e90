// Bench measures a paddock server from outside, over HTTP, and beside it
// `crun run` of the same command on the same image in the same session. It
// needs root, bin/paddock, crun and the starter image; `make bench` sees to
// that.
package main
