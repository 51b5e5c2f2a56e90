// Package proxy is the host's end of TCP connections that sandboxes make to
// names.
//
// The packet filter sends a connection here when its destination is an address
// that was given to that sandbox as the answer to a name, or when the sandbox's
// policy denies names. The proxy learns from the kernel where the connection was
// to go, connects there itself at once, and lets the server's bytes through; the
// client's first bytes it holds until they say what they are:
//
//	TLS        the server name of the client hello must be one that the policy
//	           allows and whose answer held this address; then both sides are
//	           spliced
//	HTTP/1     likewise the host of every request; requests are read strictly
//	           and passed on as they are, byte for byte
//	HTTP/2     with prior knowledge, in the clear: an Interceptor passes each
//	           request on whose authority is allowed; without one, HTTP/1.1 is
//	           asked for
//	other      spliced if the address was given for a name, except on ports 80
//	           and 443, which have a protocol
//
// It changes no byte, has no certificate and knows no secret: an Interceptor
// gets the connections for which that is not enough.
//
// Everything that comes from a sandbox is hostile. What is read before a
// decision is bounded in size and time, as are the connections of a sandbox.
package proxy
