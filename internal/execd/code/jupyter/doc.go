// Package jupyter speaks with Jupyter kernels: it finds the kernel specs of an
// image, and exchanges messages with a kernel either over the kernel's own
// sockets or through a Jupyter server.
//
// The message format is that of the Jupyter messaging protocol 5
// (jupyter-client.readthedocs.io, "Messaging in Jupyter"). On its own sockets a
// kernel speaks ZMTP 3 (rfc.zeromq.org/spec/23); this package has the client's
// half of what kernels use of it: the NULL mechanism, DEALER and SUB sockets, one
// peer for each. The libraries for ZeroMQ take as much memory for a frame as its
// sender announces, with which any program in the sandbox could end execd.
//
// Kernels and servers run what the sandbox's user wants and are not trusted:
// what they send is parsed with limits, a message that is too long is skipped
// without being held in memory, and one that can't be understood, or whose
// signature is wrong, is dropped. Nothing runs before the first Dial.
package jupyter
