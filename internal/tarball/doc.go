// Package tarball packs directories as tar streams and unpacks such streams.
//
// Both sides take directories as hostile: they may change while they are walked,
// and an archive may hold any name. So files are reached from descriptors of the
// directories that hold them, and symlinks are never followed on the way out. On
// the way in they are followed only as far as they stay beneath the directory
// that the archive goes to, and each file appears under its name at once and
// complete. Holes of sparse files and extended attributes of users ("user.*")
// are kept.
//
// It is used on both ends of a copy: by execd inside a sandbox, and by the
// command line on the host.
package tarball
