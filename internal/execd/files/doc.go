// Package files serves the files of a sandbox: information, listing, search,
// changes, uploads and downloads (behaviour.md 10.6). It acts as execd's user,
// root of the sandbox, and follows paths as any program in the sandbox would;
// it runs inside, so there is nothing to escape from.
//
// Content is streamed, never held in memory. A file is written under a
// temporary name beside its target, synced, and renamed, so that success means
// that it is there, whole.
package files
