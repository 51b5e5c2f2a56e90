// Package rootfs gives a running shell its image: it assembles an overlay of
// the image's read-only layers and a fresh upper directory, all mapped to the
// shell's own user-id range, and makes it the root of the shell's mount
// namespace together with the shell's ready /proc, /sys and /dev and the
// sandbox's volumes.
//
// Everything happens by descriptor, with the mount API of Linux 5.2 and later,
// before any code of the sandbox runs in that namespace. A path inside the
// image is only ever opened beneath the new root with symlinks refused (the
// class of CVE-2019-5736, 2021-30465, 2024-21626, 2025-31133): an image cannot
// steer the host anywhere. The work is done on operating system threads of this
// package's own (Thread), because a mount namespace, fsuid and the root
// directory belong to a thread.
package rootfs
