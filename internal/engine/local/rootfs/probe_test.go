package rootfs

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// On a kernel that is known to be able, the probe must say so: the slow way
// would be taken without anybody noticing.
func TestLayersByDescriptor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 6 || major == 6 && minor < 15 {
		t.Skip("Linux " + release + " may not be able")
	}
	if got := layersByDescriptor(); !got {
		t.Errorf("on Linux %s the probe found no overlay layers by descriptor", release)
	}
}
