package local

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
)

// Sandboxes share the host's /dev/null. It must not come to belong to one, whose
// root could then close it to everybody.
func TestHostNullStaysRoots(t *testing.T) {
	owner := func() uint32 {
		var st unix.Stat_t
		if err := unix.Stat(os.DevNull, &st); err != nil {
			t.Fatal(err)
		}
		return st.Uid
	}
	before := owner()
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	e.mu.Lock()
	base := e.live[id].base
	e.mu.Unlock()
	if now := owner(); now >= base && now < base+oci.IDRange {
		t.Errorf("%s belonged to %d and now to %d, the sandbox's root", os.DevNull, before, now)
	}
}
