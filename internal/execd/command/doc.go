// Package command runs the commands of POST /command and remembers them: their
// state, and their output byte for byte.
//
// A foreground command belongs to its request. It is ended when its client
// goes; a background command runs on. Either way it is over when its own
// process is over: children that it left behind may go on and keep their
// output, but do not keep the request open.
//
// A command that is ended from outside, by its timeout, an interrupt or its
// client's going, takes everything with it that it has started, also what left
// its process group.
package command
