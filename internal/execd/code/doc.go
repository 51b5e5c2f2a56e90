// Package code is the code interpreter of execd: contexts that run one piece of
// code after another and keep what the code made, in every image that has the
// language (OpenSandbox code interpreter).
//
// # Contexts and drivers
//
// A context is an id, a language and a directory. Its state lives in a driver:
// a process of the language itself (python3, node, bash, …) that executes a
// small program which execd carries. A driver is started by the first run that
// needs it and serves one run at a time. When it dies, by a signal, for want of
// memory or because the code ended it, the run says so with the error
// KernelDied and the next run starts a new one, without the earlier state.
//
// What is kept from run to run is what the language keeps: variables, functions,
// imports and the like with python, javascript, typescript, ruby, r, java and
// bash. Go has no such thing: declarations are kept, and each run is a new
// program with all of them (see driver/godriver).
//
// # Kernels
//
// Where the image has Jupyter kernels, a context can have one instead of a
// driver: ipykernel for Python when the interpreter in PATH has it, any installed
// kernel by its name or its language, and the kernels of a Jupyter server that
// the environment names (backend.go decides). Both are a backend, and a kernel's
// messages become the reports of a driver, so that clients see one form of
// events. Package jupyter has the protocol.
//
// # Protocol of drivers
//
// The program of a driver is in a sealed file in memory that only the driver
// inherits. Standard output and error belong to the user's code and are sent on
// as they come; standard input is /dev/null. The driver is spoken to on
// descriptors of its own:
//
//	3  orders, execd to driver: a line "run N LENGTH", then LENGTH bytes of code
//	4  reports, driver to execd: one JSON object per line
//	5  the driver's program
//	6  a second part of it that most runs don't need
//	7  acknowledgements: a byte for each display that execd has sent on
//	8  interrupts once more, as a line "stop N" each, for drivers that can't always
//	   use the signal
//	9  the same again, for another thread
//
// The driver answers a run with the report "busy", then any number of
// "display", at most one "result", and at last "done" or "error". The driver for
// bash has other descriptors (see shell.go) but the same reports. Every report
// carries the number of its run; others are dropped. User code can write to
// these descriptors, and fools nobody but itself: reports are parsed with
// limits, and nothing but the events of its own runs follows from them.
//
// # Interrupts
//
// An interrupt is SIGINT for the driver and the processes that the run has
// started, and a line on the descriptors for interrupts. Code that does not stop
// within a grace period is ended together with its driver. A client that goes
// away interrupts its run.
package code
