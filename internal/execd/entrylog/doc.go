// Package entrylog is the bounded log of a sandbox's entrypoint: two files that
// execd writes in turn and the engine reads on the host, while execd writes or
// long after it has gone.
//
// The files, called segments, are made by the host. A segment begins with a
// header that numbers it; records follow, each with its time, its stream and a
// checksum. When the current segment is full the writer empties the other one
// and goes on there under the next number, so that between one and two
// segments of the newest output are always kept.
//
// The reader trusts nothing in the files. Every length is checked before use, a
// record that does not match its checksum is not there, and numbers only ever
// go up, so that no content makes it loop.
package entrylog
