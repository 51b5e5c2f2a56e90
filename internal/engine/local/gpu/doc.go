// Package gpu gives GPUs to sandboxes, as the machine's CDI specifications
// (Container Device Interface, https://tags.cncf.io/container-device-interface)
// describe them: which device nodes, files and variables a program needs to use
// one. The specifications are the administrator's, made by the vendor's tool
// (`nvidia-ctk cdi generate`), and are read anew for every sandbox that asks.
//
// A GPU belongs to one sandbox at a time: what one leaves in a GPU's memory
// must not be another's to find. Allocator keeps that book. What is to be done
// to the sandbox is in Edits, in the terms of this engine: an OCI runtime has no
// part in it, because the sandbox's root comes to be after the runtime is done.
// That is also why hooks, which are programs of the vendor that change the root,
// are replaced by code here or refused.
package gpu
