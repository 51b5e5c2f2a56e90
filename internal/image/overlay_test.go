package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
)

// LayerDirs are what overlayfs wants: mounted as they are, whiteouts hide,
// opaque directories hide all, and directories that a layer only implies keep
// the owner and mode that they have below.
func TestLayersMount(t *testing.T) {
	s := openAt(t, filepath.Join(onDisk(t), "images"), nil)
	private := imagetest.Files(map[string]string{"private/a": "1", "gone/x": "1", "cleared/old": "1", "file": "1", "both": "low"})
	for i := range private.Entries {
		if e := &private.Entries[i]; e.Name == "private/" {
			e.Mode, e.Uid, e.Gid = 0o700, 7, 8
		}
	}
	implied := imagetest.Layer{Entries: []imagetest.Entry{
		member("private/b", '0', "", "2"),
		member(".wh.gone", '0', "", ""),
		member("cleared/.wh..wh..opq", '0', "", ""), member("cleared/new", '0', "", "2"),
		member("both", '0', "", "high"),
	}}
	img := mustImport(t, s, "x:1", imagetest.Image{Layers: []imagetest.Layer{private, implied, {Entries: []imagetest.Entry{member(".wh.file", '0', "", "")}}}})
	merged := t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(img.LayerDirs, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	want := map[string]string{"private": "dir", "private/a": "1", "private/b": "2", "cleared": "dir", "cleared/new": "2", "both": "high"}
	got := imagetest.Tree(t, merged)
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s is %q, want %q", name, got[name], content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(merged+"/private", &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o777 != 0o700 {
		t.Errorf("private is %o %d:%d, %v; want 700 7:8", st.Mode, st.Uid, st.Gid, err)
	}
}

// A real distribution image, if it has been made (scripts/starter-image.sh).
func TestStarterImage(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	path := cache + "/paddock/starter.tar"
	if _, err := os.Stat(path); err != nil || testing.Short() {
		t.Skip("needs the starter image: run scripts/starter-image.sh")
	}
	s := openAt(t, filepath.Join(onDisk(t), "images"), nil)
	s.HoldsRestored()
	img, err := s.ImportPath(t.Context(), path, "python:3.11")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/bin/bash", "/usr/bin/python", "/usr/bin/node", "/usr/bin/git", "/usr/bin/curl", "/usr/bin/ps", "/etc/ssl/certs/ca-certificates.crt"} {
		if _, err := os.Lstat(img[0].LayerDirs[0] + name); err != nil && !usrMerged(img[0].LayerDirs[0], name) {
			t.Errorf("the image lacks %s: %v", name, err)
		}
	}
	if err := s.Remove(t.Context(), "python:3.11"); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, s); len(left) != 0 {
		t.Errorf("there is still %v", left)
	}
}

// usrMerged looks for a program where distributions with a merged /usr have it.
func usrMerged(root, name string) bool {
	_, err := os.Lstat(root + "/usr" + strings.TrimPrefix(name, "/usr"))
	return err == nil
}
