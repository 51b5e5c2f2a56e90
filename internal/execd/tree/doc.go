// Package tree serves whole directories: as a tar stream out, as a tar stream
// in, and as a stream of the changes in them.
//
// Everything about a directory is hostile, and may change while it is walked.
// So files are reached from descriptors of the directories that hold them and
// symlinks are never followed on the way out. On the way in they are followed
// only as far as they stay beneath the directory that the archive goes to, and
// each file appears under its name at once and complete.
package tree
