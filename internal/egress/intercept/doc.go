// Package intercept looks into connections of sandboxes that the proxy hands
// over (internal/egress/proxy): those for which a credential is bound, and those
// over TLS on which a policy has conditions on requests.
//
// Towards the sandbox it is the server, with a certificate of this server's own
// authority; towards the destination it is a client that verifies the real
// certificate, and that connects to exactly the address that the sandbox did.
// One connection on the one side has one on the other, with the same protocol:
// what the destination chooses by ALPN is what the sandbox gets. So nothing is
// translated; heads are rewritten where a credential goes in or comes out, and
// bodies stream.
//
// For each request, in this order:
//
//	Host or :authority   must be the name that the connection was allowed for
//	policy               may refuse the method or path
//	vault                a matching binding puts its credentials in
//
// A credential of the host that comes back in the head of an answer, in its
// trailer, or in a body of text is masked before it enters the sandbox. It
// can't be in what is refused here: refusals are made from names only.
//
// HTTP/1 is read and written here and not by net/http: heads stay as they were
// but for what is meant to change, and what two readers could understand
// differently is refused. HTTP/2 is golang.org/x/net/http2 on both sides.
package intercept
