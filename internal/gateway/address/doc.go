// Package address reads and writes the addresses of ports of sandboxes, and signs
// them.
//
// A port is named by a label, "<id>-<port>", in a host name or in a header, or
// by a path, "/<id>/<port>/…". A signed address also says until when it is valid,
// in base 36, and carries a signature, so that whoever has it needs nothing else.
// There are two kinds of signatures, which can't be taken for one another:
//
//   - The protocol's, nine characters: 32 bits of a digest and the name of a
//     key. It fits into a host name's label, and gateways elsewhere that have the
//     key know it too. It is short enough to be guessed by somebody with much
//     time, so it is used only where keys for it are configured.
//   - paddock's own, "p1" and a whole HMAC-SHA256 in base 32. It is too long for
//     a label next to the id (63 characters, RFC 1035 section 2.3.4), so with
//     host names it stands at the beginning of the path.
//
// A third kind signs the cookie that stands in for a signed address. What is
// signed begins with the kind, so that none of them can serve as another.
package address
