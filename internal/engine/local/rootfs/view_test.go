package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a view needs in the sandbox is made where the request says, not where a
// link of the sandbox leads.
func TestEnsureFollowsNoLink(t *testing.T) {
	for _, c := range []struct {
		path string
		says string // empty when it is made
	}{
		{path: "/new"},
		{path: "/etc/a/b"},
		{"/absolute", "symbolic link"},
		{"/absolute/new", "symbolic link"},
		{"/absolute/a/b", "symbolic link"},
		{"/up/new", "symbolic link"},
		{"/host", "symbolic link"},
		{"/dangling", "symbolic link"},
		{"/dangling/new", "symbolic link"},
		{"/loop", "symbolic link"},
		{"/magic/new", "symbolic link"},
		{"/etc/file/new", "not a directory"},
	} {
		for _, isDir := range []bool{true, false} {
			root, dir, outside := openRoot(t)
			err := ensureTarget(root, c.path, isDir)
			expectNothing(t, outside)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) || !errors.Is(err, ErrSource) && !errors.Is(err, ErrMountPoint) {
					t.Errorf("%s: got %v, want one that says %q", c.path, err, c.says)
				}
				if left, err := os.ReadDir(filepath.Join(dir, "etc")); err != nil || len(left) != 1 {
					t.Errorf("%s: /etc has %v, %v", c.path, left, err)
				}
				continue
			}
			if st, serr := os.Lstat(filepath.Join(dir, c.path)); err != nil || serr != nil || st.IsDir() != isDir {
				t.Errorf("%s: %v, %v", c.path, err, serr)
			}
		}
	}
}
