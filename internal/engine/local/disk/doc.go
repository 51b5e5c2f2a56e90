// Package disk makes filesystems of a fixed size in files, for sandboxes whose
// writable layer has a limit: an ext4 filesystem in a sparse file, on a loop
// device, as a detached mount.
//
// A detached mount is in no mount namespace, so nobody on the host sees it or
// can be hindered by it; it lives as long as a descriptor, or an overlay that
// was made of it, does. The loop device is told to free itself when its last
// user goes. So the kernel takes everything apart when the sandbox is gone, and
// a server that is killed at any point leaves nothing but the file.
//
// The filesystem is never mounted a second time: it has no journal, its layout
// is the same on every host (mke2fs.conf has no say), and what was not written
// back when the sandbox ends is rubbish, which Discard tells the kernel.
package disk
