// Package actas runs a function with the identity of another user of the
// sandbox, so that the kernel itself decides what that user may do, and owns
// what is made by it.
//
// Linux keeps credentials per thread, and only the C library makes them look
// like the process's. The function gets a thread of its own, whose effective
// ids and groups are changed for as long as it runs. The real and saved ids
// stay execd's: signals and ptrace(2), which look at those, remain refused to
// the user. With an effective user id other than 0 the thread has no effective
// capability (capabilities(7), "Effect of user ID changes on capabilities").
//
// Effective ids are used instead of setfsuid(2), which gVisor does not know and
// which would keep capabilities beyond those of files. Not a helper process
// either: that would cost an exec for each request, and a copy of every byte.
package actas
