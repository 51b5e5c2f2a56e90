// Package files serves the files of a sandbox: information, listing, search,
// changes, uploads and downloads (OpenSandbox execd API), and all of these with the
// identity of another user below /v1/filesystem/{uid}/{gid} (10.7). It follows
// paths as any program in the sandbox would; it runs inside, so there is nothing
// to escape from.
//
// # Identity
//
// The plain routes act as the user of the sandbox's image, as commands do. When
// that is not root, or another identity was asked for, a request runs on a
// thread with that identity (package actas), so that the kernel checks what it
// may do. Nothing here asks who it is, but for one thing: only an owner can
// replace a file by a new one without taking it away from its owner, so others'
// files are written in place.
//
// # Content
//
// Content is streamed, never held in memory, and so are listings: neither the
// size of a file nor the number of files matters. A file is written under a
// temporary name beside its target, synced, and renamed, so that success means
// that it is there, whole.
//
// # Names that are not UTF-8
//
// Linux allows any bytes but '/' and NUL in a name; JSON can't hold them all. In
// answers such a path has U+FFFD in place of each bad byte, and a second member,
// "raw", has its exact bytes in base64. In query parameters a path is
// percent-encoded, which can express any bytes, so all routes that take one
// there work with such names. A JSON body that is not well-formed Unicode is
// refused: decoding it would change the name, and with it the file that is
// meant.
//
// # Search by content
//
// GET /files/search takes the parameter "content", an extension: only regular
// files that contain it, byte for byte, are listed, each with a member
// "matches", the lines with a hit as {line, text}. Binary files, those with a NUL
// byte near their beginning, are left out. "max_matches" bounds the lines of one
// file; "truncated" is true on a file that has more, or that turned out to be
// binary further down.
package files
