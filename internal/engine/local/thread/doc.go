// Package thread runs functions on operating system threads that are used up by
// them: once a thread has entered a cgroup, or a namespace that it can't leave,
// nothing else may run on it.
package thread
