package cgroup

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGrantedDevices(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/dev/kmsg", &st); err != nil {
		t.Skip(err)
	}
	kmsg := Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}
	if f, err := os.OpenFile("/dev/kmsg", os.O_RDWR, 0); err != nil {
		t.Skip("no device here to try a grant with: ", err)
	} else {
		f.Close()
	}
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			p := parentOf(t, func() (*Parent, error) {
				return h.GrantingParent("paddocktest-grant-" + strconv.Itoa(os.Getpid()))
			})
			granted, err := p.CreateWith("granted", []Device{kmsg})
			if err != nil {
				t.Fatal(err)
			}
			plain := group(t, p, "plain")
			for _, c := range []struct {
				g    *Group
				path string
				want bool
			}{
				{granted, "/dev/kmsg", true}, {granted, "/dev/null", true}, {granted, "/dev/loop0", false},
				{plain, "/dev/kmsg", false}, {plain, "/dev/null", true},
			} {
				if _, err := os.Stat(c.path); err != nil {
					continue
				}
				cmd := command("open " + c.path)
				if err := c.g.Start(cmd); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); (err == nil) != c.want {
					t.Errorf("opening %s in the group %s: %v", c.path, c.g.ID(), err)
				}
			}
			if _, err := p.CreateWith("wrong", []Device{{Major: 1 << 12}}); err == nil {
				t.Error("a device with an impossible number was granted")
			}
			if p.life().exists("wrong") {
				t.Error("a group whose policy failed was left")
			}
			if _, err := parent(t, h).CreateWith("x", nil); err == nil {
				t.Error("a parent with a policy granted devices")
			}
		})
	}
}
