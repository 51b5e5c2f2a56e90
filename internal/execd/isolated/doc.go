// Package isolated is the wire form of isolated runs (OpenSandbox execd API): what a
// client may ask for, what it is answered, and what of that the request's checks
// guarantee.
//
// An isolated session is a second container in the sandbox's limits, with a root
// of its own. Only the host can make one, because nothing in a sandbox may mount
// or make a namespace. So the engine answers these routes, and hands those about
// runs and files to the execd in the session's container. An execd in a sandbox
// that is asked from inside says that it can't.
package isolated
