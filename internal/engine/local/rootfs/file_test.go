package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// openRoot opens a directory that plays the image's root. Next to it lies
// "outside", which nothing beneath the root may reach.
func openRoot(t *testing.T) (root int, dir, outside string) {
	t.Helper()
	top := t.TempDir()
	dir, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, d := range []string{dir, outside, filepath.Join(dir, "etc"), filepath.Join(dir, "opt")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, target := range map[string]string{
		"absolute": "/etc", "up": "../../../outside", "host": outside,
		"loop": "loop", "dangling": "nowhere", "magic": "/proc/self/root/tmp",
		"opt/lib.so": "lib.so.1",
	} {
		if err := os.Symlink(target, filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc", "file"), []byte("image's"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(root) })
	return root, dir, outside
}

// expectNothing fails if something was made outside of the root.
func expectNothing(t *testing.T, outside string) {
	t.Helper()
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside of the root: %v, %v", left, err)
	}
}

func TestMakeFile(t *testing.T) {
	for _, c := range []struct {
		target string
		at     string // where the file is then; empty for an error
	}{
		{"/etc/file", "etc/file"},
		{"/etc/new", "etc/new"},
		{"/a/b/c", "a/b/c"},
		{"/absolute/x", "etc/x"},
		{"/absolute/file", "etc/file"},
		{"/etc", ""},
		{"/absolute", ""},
		{"/dangling", ""},
		{"/loop", ""},
		{"/loop/x", ""},
		{"/etc/file/x", ""},
		{"/magic/x", ""},
		{"/host/x", ""},
	} {
		t.Run(c.target, func(t *testing.T) {
			root, dir, outside := openRoot(t)
			fd, err := makeFile(root, c.target, 0)
			expectNothing(t, outside)
			if c.at == "" {
				if err == nil {
					unix.Close(fd)
				}
				if !errors.Is(err, ErrMountPoint) {
					t.Errorf("got %v, want ErrMountPoint", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			var got, want unix.Stat_t
			if err := errors.Join(unix.Fstat(fd, &got), unix.Lstat(filepath.Join(dir, c.at), &want)); err != nil {
				t.Fatal(err)
			}
			if got.Ino != want.Ino {
				t.Errorf("another file than %s was opened", c.at)
			}
		})
	}
}

func TestMakeFileUpStaysWithin(t *testing.T) {
	root, dir, outside := openRoot(t)
	// ".." at the root is the root: "up" is the image's own /outside, which
	// does not exist.
	if fd, err := makeFile(root, "/up/x", 0); err == nil {
		unix.Close(fd)
		if _, err := os.Lstat(filepath.Join(dir, "outside", "x")); err != nil {
			t.Error(err)
		}
	}
	expectNothing(t, outside)
}

func TestLink(t *testing.T) {
	for _, c := range []struct {
		path string
		at   string // where the link is then; empty for an error
		kept string // what stays at that place instead
	}{
		{path: "/new", at: "new"},
		{path: "/a/b/new", at: "a/b/new"},
		{path: "/opt/lib.so", at: "opt/lib.so"},
		{path: "/dangling", at: "dangling"},
		{path: "/absolute/x", at: "etc/x"},
		{path: "/etc/file", at: "etc/file", kept: "image's"},
		{path: "/host/x"},
		{path: "/loop/x"},
		{path: "/"},
	} {
		t.Run(c.path, func(t *testing.T) {
			root, dir, outside := openRoot(t)
			l := Link{Path: c.path, Target: "the target"}
			err := l.make(root)
			expectNothing(t, outside)
			switch {
			case c.at == "":
				if !errors.Is(err, ErrMountPoint) {
					t.Errorf("got %v, want ErrMountPoint", err)
				}
			case err != nil:
				t.Error(err)
			case c.kept != "":
				if b, err := os.ReadFile(filepath.Join(dir, c.at)); string(b) != c.kept {
					t.Errorf("the file holds %q, %v", b, err)
				}
			default:
				if got, err := os.Readlink(filepath.Join(dir, c.at)); got != l.Target {
					t.Errorf("the link says %q, %v", got, err)
				}
			}
		})
	}
}
