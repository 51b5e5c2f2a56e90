package main

// legacy asks for the process id by the kernel's 32-bit entry.
func legacy()
