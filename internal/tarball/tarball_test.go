package tarball

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entries makes an archive; files hold the word "content".
func entries(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 7
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte("content"))
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func unpack(t testing.TB, dir string, archive []byte, o UnpackOptions) (*Result, error) {
	t.Helper()
	root, err := OpenRoot(dir)
	must(t, err)
	defer root.Close()
	return Unpack(t.Context(), bytes.NewReader(archive), root, o)
}

func names(t testing.TB, dir string) string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	return strings.Join(all, " ")
}

// What comes from a sandbox has no say on the host.
func TestForeign(t *testing.T) {
	top := t.TempDir()
	must(t, os.Mkdir(top+"/in", 0o755))
	must(t, os.Mkdir(top+"/in/private", 0o700))
	must(t, os.Symlink(top, top+"/in/out"))
	archive := entries(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeDir, Name: "private", Mode: 0o777},
		tar.Header{Typeflag: tar.TypeDir, Name: "made", Mode: 0o1750},
		tar.Header{Typeflag: tar.TypeReg, Name: "made/tool", Mode: 0o6755, Uid: 12, Gid: 13},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "made/link", Linkname: "/etc/passwd"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o666},
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
	)
	res, err := unpack(t, top+"/in", archive, UnpackOptions{Foreign: true})
	if err != nil || res.SkippedTotal != 2 || len(res.Skipped) != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	if got := names(t, top+"/in"); got != "made made/link made/tool out private" {
		t.Errorf("made: %s", got)
	}
	for name, mode := range map[string]uint32{"in": 0o755, "in/private": 0o700, "in/made": 0o750, "in/made/tool": 0o755} {
		var st unix.Stat_t
		must(t, unix.Lstat(top+"/"+name, &st))
		if st.Mode&0o7777 != mode || int(st.Uid) != os.Geteuid() {
			t.Errorf("%s: mode %o, owner %d", name, st.Mode&0o7777, st.Uid)
		}
	}
	for name, archive := range map[string][]byte{
		"a link that was there": entries(t, tar.Header{Typeflag: tar.TypeReg, Name: "out/f", Mode: 0o644}),
		"a link of the archive": entries(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, tar.Header{Typeflag: tar.TypeReg, Name: "l/f", Mode: 0o644}),
		"a hard link":           entries(t, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../f"}),
		"an absolute name":      entries(t, tar.Header{Typeflag: tar.TypeReg, Name: "/f", Mode: 0o644}),
		"two dots":              entries(t, tar.Header{Typeflag: tar.TypeReg, Name: "made/../../f", Mode: 0o644}),
	} {
		var bad *FormatError
		if _, err := unpack(t, top+"/in", archive, UnpackOptions{Foreign: true}); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := names(t, top); strings.Contains(got, " f") {
		t.Errorf("escaped: %s", got)
	}
}

// Attributes of users go through an archive, with values of any bytes, and also
// with sparse files; those of the system do not.
func TestExtendedAttributes(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(src+"/plain", []byte("x"), 0o444))
	must(t, os.WriteFile(src+"/sparse", nil, 0o644))
	must(t, os.Truncate(src+"/sparse", 1<<20))
	must(t, os.Mkdir(src+"/dir", 0o755))
	value := "a\x00b\xff=\n"
	for _, name := range []string{"", "/plain", "/sparse", "/dir"} {
		err := unix.Setxattr(src+name, "user.note", []byte(value), 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("the filesystem of temporary files has no extended attributes of users")
		}
		must(t, err)
	}
	must(t, unix.Setxattr(src+"/plain", "user.empty", nil, 0))
	var archive bytes.Buffer
	must(t, Pack(t.Context(), &archive, src, PackOptions{}))
	for r := tar.NewReader(bytes.NewReader(archive.Bytes())); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		if got := h.PAXRecords["SCHILY.xattr.user.note"]; got != value {
			t.Errorf("%s in the archive: %q", h.Name, got)
		}
	}
	_, err := unpack(t, dst, archive.Bytes(), UnpackOptions{Made: true})
	must(t, err)
	for _, name := range []string{"", "/plain", "/sparse", "/dir"} {
		got := make([]byte, 100)
		n, err := unix.Getxattr(dst+name, "user.note", got)
		if err != nil || string(got[:n]) != value {
			t.Errorf("%s: %q, %v", name, got[:max(n, 0)], err)
		}
	}
	other := entries(t, tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.kept": "z"}})
	_, err = unpack(t, dst, other, UnpackOptions{})
	must(t, err)
	list := make([]byte, 1000)
	n, err := unix.Listxattr(dst+"/f", list)
	must(t, err)
	if got := string(list[:n]); strings.Contains(got, "trusted") || strings.Contains(got, "capability") || !strings.Contains(got, "user.kept") {
		t.Errorf("attributes: %q", got)
	}
	long := entries(t, tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{
		"SCHILY.xattr.user." + strings.Repeat("n", 300): "x"}})
	var bad *FormatError
	if _, err = unpack(t, dst, long, UnpackOptions{}); !errors.As(err, &bad) {
		t.Errorf("a name that the kernel refuses: %v", err)
	}
}

// One file has the name that was asked for.
func TestPackOne(t *testing.T) {
	src := t.TempDir() + "/odd \xff"
	must(t, os.WriteFile(src, []byte("x"), 0o600))
	var archive bytes.Buffer
	must(t, Pack(t.Context(), &archive, src, PackOptions{Name: "new \xfe", NoOwners: true}))
	dst := t.TempDir()
	_, err := unpack(t, dst, archive.Bytes(), UnpackOptions{})
	must(t, err)
	if got := names(t, dst); got != "new \xfe" {
		t.Errorf("%q", got)
	}
}

func TestHoles(t *testing.T) {
	for name, content := range map[string][]byte{
		"none":       bytes.Repeat([]byte("x"), 3*page+5),
		"all":        make([]byte, 5*page+7),
		"first":      append(make([]byte, page), 'x'),
		"last":       append([]byte("x"), make([]byte, 4*page)...),
		"in between": append(append(bytes.Repeat([]byte("y"), page), make([]byte, 2*page)...), 'z'),
		"odd":        append(append(make([]byte, page-1), 'z'), make([]byte, page)...),
		"empty":      nil,
	} {
		f, err := os.Create(t.TempDir() + "/f")
		must(t, err)
		must(t, fill(t.Context(), f, bytes.NewReader(content), int64(len(content)), make([]byte, 2*page)))
		must(t, f.Close())
		if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// A file that has become shorter is filled up, so that what follows is right.
func TestShrunkFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	must(t, err)
	defer f.Close()
	_, err = f.WriteString("abc")
	must(t, err)
	var out bytes.Buffer
	a := &archiver{ctx: context.Background(), buf: make([]byte, 4)}
	must(t, a.copy(&out, f, "f", extent{1, 9}))
	if got := out.String(); got != "bc\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("%q", got)
	}
}

// Whatever comes as an archive, nothing is changed outside, nothing temporary
// stays, and it ends.
func FuzzUnpack(f *testing.F) {
	f.Add(entries(f, tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, tar.Header{Typeflag: tar.TypeReg, Name: "d/f"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "../outside"}, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "d/f"}), false)
	f.Add(entries(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: ".."}, tar.Header{Typeflag: tar.TypeReg, Name: "s/outside/file"}), true)
	f.Add(entries(f, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}, tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1, Devminor: 3}), false)
	f.Add(entries(f, tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}), true)
	f.Add(append(sparseHeader(&tar.Header{Name: "sparse", Mode: 0o644, Size: 1 << 20}, block+5), append(pad([]byte("2\n4096\n5\n1048576\n0\n")), pad([]byte("hello"))...)...), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, body []byte, foreign bool) {
		top := t.TempDir()
		must(t, os.Mkdir(top+"/in", 0o755))
		must(t, os.Mkdir(top+"/outside", 0o755))
		must(t, os.WriteFile(top+"/outside/file", []byte("untouched"), 0o644))
		root, err := OpenRoot(top + "/in")
		must(t, err)
		defer root.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		x := &extractor{ctx: ctx, root: root, opts: UnpackOptions{Made: true, Foreign: foreign}, privileged: os.Geteuid() == 0, buf: make([]byte, copySize)}
		defer x.closeParent()
		_ = x.run(bufio.NewReader(bytes.NewReader(body)))
		if b, err := os.ReadFile(top + "/outside/file"); err != nil || string(b) != "untouched" || names(t, top+"/outside") != "file" {
			t.Errorf("outside: %q, %v", b, err)
		}
		if all, err := os.ReadDir(top); err != nil || len(all) != 2 {
			t.Errorf("%v, %v", all, err)
		}
		if all := names(t, top); strings.Contains(all, ".paddock-") {
			t.Errorf("left over: %s", all)
		}
	})
}
