package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func member(name string, typeflag byte, link, body string) imagetest.Entry {
	return imagetest.Entry{
		Header: tar.Header{Name: name, Typeflag: typeflag, Linkname: link, Mode: 0o755},
		Body:   []byte(body),
	}
}

// Layers that try to write or read outside of their directory, each against a
// file that stands next to the store.
func TestHostilePaths(t *testing.T) {
	outside := t.TempDir()
	bait := filepath.Join(outside, "bait")
	for _, c := range []struct {
		what    string
		entries []imagetest.Entry
		// bottom comes in a layer below.
		bottom []imagetest.Entry
	}{
		{what: "dot dot", entries: []imagetest.Entry{member("../../../../../../../.."+bait, tar.TypeReg, "", "owned")}},
		{what: "absolute", entries: []imagetest.Entry{member(bait, tar.TypeReg, "", "owned")}},
		{what: "absolute link", entries: []imagetest.Entry{
			member("d", tar.TypeSymlink, outside, ""), member("d/bait", tar.TypeReg, "", "owned")}},
		{what: "relative link", entries: []imagetest.Entry{
			member("d", tar.TypeSymlink, strings.Repeat("../", 20)+outside[1:], ""), member("d/bait", tar.TypeReg, "", "owned")}},
		{what: "link to the file", entries: []imagetest.Entry{
			member("f", tar.TypeSymlink, bait, ""), member("f", tar.TypeReg, "", "owned")}},
		{what: "link in a lower layer", bottom: []imagetest.Entry{member("d", tar.TypeSymlink, outside, "")},
			entries: []imagetest.Entry{member("d/bait", tar.TypeReg, "", "owned")}},
		{what: "hard link", entries: []imagetest.Entry{
			member("h", tar.TypeLink, bait, ""), member("h", tar.TypeReg, "", "owned")}},
		{what: "hard link through a link", entries: []imagetest.Entry{
			member("d", tar.TypeSymlink, outside, ""), member("h", tar.TypeLink, "d/bait", "")}},
		{what: "hard link with dots", entries: []imagetest.Entry{member("h", tar.TypeLink, "../../../../../../../../.."+bait, "")}},
		{what: "whiteout with dots", entries: []imagetest.Entry{member(".wh..", tar.TypeReg, "", "")}},
		{what: "whiteout through a link", entries: []imagetest.Entry{
			member("d", tar.TypeSymlink, outside, ""), member("d/.wh.bait", tar.TypeReg, "", "")}},
		{what: "opaque through a link", entries: []imagetest.Entry{
			member("d", tar.TypeSymlink, outside, ""), member("d/.wh..wh..opq", tar.TypeReg, "", "")}},
		{what: "whiteout through a lower link", bottom: []imagetest.Entry{member("d", tar.TypeSymlink, outside, "")},
			entries: []imagetest.Entry{member("d/.wh.bait", tar.TypeReg, "", "")}},
		{what: "loop", entries: []imagetest.Entry{
			member("a", tar.TypeSymlink, "b", ""), member("b", tar.TypeSymlink, "a", ""), member("a/x", tar.TypeReg, "", "owned")}},
		{what: "root replaced", entries: []imagetest.Entry{member(".", tar.TypeSymlink, outside, ""), member("bait", tar.TypeReg, "", "owned")}},
		{what: "odd names", entries: []imagetest.Entry{member("a\nb\x01", tar.TypeReg, "", "x"), member("//x//./y", tar.TypeReg, "", "x")}},
	} {
		t.Run(c.what, func(t *testing.T) {
			if err := os.WriteFile(bait, []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, nil)
			img := imagetest.Image{}
			if c.bottom != nil {
				img.Layers = append(img.Layers, imagetest.Layer{Entries: c.bottom})
			}
			img.Layers = append(img.Layers, imagetest.Layer{Entries: c.entries})
			got, err := importImage(t, s, "x:1", img)
			if err != nil {
				wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageInvalid)
			}
			if data, err := os.ReadFile(bait); err != nil || string(data) != "untouched" {
				t.Errorf("the file outside is now %q, %v", data, err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Errorf("outside there is now %v, %v", entries, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(bait, &st); err != nil || st.Nlink != 1 {
				t.Errorf("the file outside has %d links, %v", st.Nlink, err)
			}
			if got == nil {
				if entries, _ := s.List(t.Context()); len(entries) != 0 {
					t.Errorf("a refused image is listed: %v", entries)
				}
			}
		})
	}
}

// Devices are left out, so that neither the host's users nor a sandbox gets
// one, and so that 0:0 does not become a whiteout.
func TestHostileFiles(t *testing.T) {
	s := openStore(t, nil)
	device := func(name string, typeflag byte, major, minor int64) imagetest.Entry {
		e := member(name, typeflag, "", "")
		e.Devmajor, e.Devminor = major, minor
		return e
	}
	attributes := member("attr", tar.TypeReg, "", "x")
	attributes.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note":                "kept",
		"SCHILY.xattr.trusted.overlay.redirect": "/etc",
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}
	setuid := member("su", tar.TypeReg, "", "x")
	setuid.Mode, setuid.Uid, setuid.Gid = 0o6755, 1234, 5678
	img := mustImport(t, s, "x:1", imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Files(map[string]string{"hidden": "still here"}),
		{Entries: []imagetest.Entry{
			device("disk", tar.TypeBlock, 8, 0), device("null", tar.TypeChar, 1, 3), device("hidden", tar.TypeChar, 0, 0),
			member("fifo", tar.TypeFifo, "", ""), attributes, setuid,
		}},
	}})
	dir := img.LayerDirs[0]
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeDevice != 0 {
			t.Errorf("%s is a device", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	attr := func(name string) string {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, "attr"), name, buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
	if got := attr("user.note"); got != "kept" {
		t.Errorf("user.note is %q", got)
	}
	if got := attr("trusted.overlay.redirect"); got != unix.ENODATA.Error() {
		t.Errorf("trusted.overlay.redirect is %q: it can point overlayfs elsewhere", got)
	}
	if got := attr("security.capability"); len(got) != 20 {
		t.Errorf("security.capability is %q", got)
	}
	info, err := os.Lstat(filepath.Join(dir, "su"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 5678 || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
		t.Errorf("su is %v %d:%d, want it as in the image", info.Mode(), st.Uid, st.Gid)
	}
	// What makes it harmless on the host: nobody else can reach it.
	for _, private := range []string{s.opts.Root} {
		if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, %v", private, info.Mode(), err)
		}
	}
}

// Layers that unpack to more than is allowed, each in another way.
func TestBombs(t *testing.T) {
	const limit = 1 << 20
	zeros := strings.Repeat("\x00", 2*limit)
	// A header that claims a large file of holes. PAX 1.0 sparse map: one
	// segment of no bytes at the end.
	sparse := func() []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		sparseMap := append([]byte("1\n1099511627776\n0\n"), make([]byte, 512-18)...)
		w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(sparseMap)), Format: tar.FormatPAX})
		w.Write(sparseMap)
		w.Close()
		data := buf.Bytes()
		// Go's writer has no sparse files, so that the records are put in front.
		records := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n37 GNU.sparse.realsize=1099511627776\n23 GNU.sparse.name=big\n"
		var head bytes.Buffer
		hw := tar.NewWriter(&head)
		hw.WriteHeader(&tar.Header{Name: "pax", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(records))})
		hw.Write([]byte(records))
		hw.Flush()
		block := head.Bytes()
		block[156] = tar.TypeXHeader
		checksum(block[:512])
		return append(block, data...)
	}()
	trailer := func() []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		w.Close()
		return append(buf.Bytes(), make([]byte, maxTrailer+1)...)
	}()
	many := make([]imagetest.Entry, 3)
	for i := range many {
		many[i] = member(string(rune('a'+i)), tar.TypeReg, "", strings.Repeat("\x00", limit/2))
	}
	for _, c := range []struct {
		what   string
		layers []imagetest.Layer
		says   string
	}{
		{"one file", []imagetest.Layer{{Compression: ociwriter.Gzip, Entries: []imagetest.Entry{member("x", tar.TypeReg, "", zeros)}}}, "1.0 MiB"},
		{"zstd", []imagetest.Layer{{Compression: ociwriter.Zstd, Entries: []imagetest.Entry{member("x", tar.TypeReg, "", zeros)}}}, "1.0 MiB"},
		{"many files", []imagetest.Layer{{Compression: ociwriter.Gzip, Entries: many}}, "1.0 MiB"},
		{"many layers", []imagetest.Layer{{Entries: many[:1]}, {Entries: many[1:2]}, {Entries: many[2:]}}, "1.0 MiB"},
		{"holes", []imagetest.Layer{{Tar: sparse}}, "1.0 MiB"},
		{"trailer", []imagetest.Layer{{Compression: ociwriter.Gzip, Tar: trailer}}, "after its end"},
	} {
		t.Run(c.what, func(t *testing.T) {
			registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
			name := registry.Push(t, imagetest.Layout(t, "", imagetest.Image{Layers: c.layers}), "bomb", "v1")
			s := openStore(t, func(o *Options) { o.MaxUnpackedBytes = limit })
			s.HoldsRestored()
			_, err := s.Ensure(t.Context(), name, nil, nil, nil)
			e := sandbox.AsError(err)
			if e.Code != sandbox.CodeImageInvalid && e.Code != sandbox.CodeImagePullFailed || !strings.Contains(e.Message, c.says) {
				t.Fatalf("got %v (%v), want a refusal that says %q", e, e.Err, c.says)
			}
			if _, err := s.Prune(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if left := remains(t, s); len(left) != 0 {
				t.Errorf("there is still %v", left)
			}
		})
	}
}

// checksum fills in a tar header's checksum field.
func checksum(header []byte) {
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:156], []byte{
		'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
}

func TestEntryLimits(t *testing.T) {
	l := &limits{bytes: 1 << 40, allowed: 1 << 40, entries: 2, headerBytes: 100, checkSpace: func() error { return nil }}
	if ok, err := l.entry(&tar.Header{Name: "a", Typeflag: tar.TypeReg}); !ok || err != nil {
		t.Fatalf("first entry: %v, %v", ok, err)
	}
	if _, err := l.entry(&tar.Header{Name: "b", PAXRecords: map[string]string{"k": strings.Repeat("x", 100)}}); err == nil {
		t.Error("attributes beyond the limit are accepted")
	}
	if _, err := l.entry(&tar.Header{Name: "c"}); err == nil {
		t.Error("a third entry is accepted")
	}
	if err := l.spend(-1); err == nil {
		t.Error("a negative size is accepted")
	}
}

// A layer whose content is not what the config says is refused, though its
// blob is intact.
func TestWrongDiffID(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	layer := imagetest.Files(map[string]string{"a": "1"})
	layer.DiffID = "something else"
	name := registry.Push(t, imagetest.Layout(t, "", imagetest.Image{Layers: []imagetest.Layer{layer}}), "app", "v1")
	s := openStore(t, nil)
	_, err := s.Ensure(t.Context(), name, nil, nil, nil)
	e := wantError(t, err, sandbox.KindInternal, sandbox.CodeImagePullFailed)
	if !strings.Contains(e.Message, "other content") {
		t.Errorf("message is %q", e.Message)
	}
	if dirs, _ := filepath.Glob(filepath.Join(s.opts.Root, "layers/snapshots/*/fs/a")); len(dirs) != 0 {
		collect(t, s)
		if dirs, _ = filepath.Glob(dirs[0]); len(dirs) != 0 {
			t.Errorf("the wrong layer was kept: %v", dirs)
		}
	}
}

func TestNoSpace(t *testing.T) {
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	name := registry.Push(t, imagetest.Layout(t, "", oneFile("a", "1")), "app", "v1")
	s := openStore(t, func(o *Options) { o.MinFreeBytes = 1 << 60 })
	_, err := s.Ensure(t.Context(), name, nil, nil, nil)
	e := wantError(t, err, sandbox.KindInternal, sandbox.CodeImagePullFailed)
	if !strings.Contains(e.Message, "disk space") {
		t.Errorf("message is %q", e.Message)
	}
}

// A disk that fills up in the middle of a layer: a small tmpfs.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a tmpfs")
	}
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	registry := imagetest.StartRegistry(t, imagetest.RegistryOptions{})
	big := imagetest.Image{Layers: []imagetest.Layer{{Compression: ociwriter.Gzip, Entries: []imagetest.Entry{member("x", tar.TypeReg, "", strings.Repeat("x", 16<<20))}}}}
	name := registry.Push(t, imagetest.Layout(t, "", big), "app", "v1")
	s := openAt(t, filepath.Join(mount, "images"), nil)
	t.Cleanup(func() { s.Close() })
	_, err := s.Ensure(t.Context(), name, nil, nil, nil)
	e := wantError(t, err, sandbox.KindInternal, sandbox.CodeImagePullFailed)
	if !strings.Contains(e.Message, "disk space") {
		t.Errorf("message is %q", e.Message)
	}
	s.HoldsRestored()
	if _, err := s.Prune(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, s); len(left) != 0 {
		t.Errorf("there is still %v", left)
	}
}

// FuzzApplyLayer unpacks arbitrary bytes next to a file that must not change.
func FuzzApplyLayer(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root: layers keep their owners")
	}
	seed := func(entries ...imagetest.Entry) {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range entries {
			h := e.Header
			h.Size = int64(len(e.Body))
			w.WriteHeader(&h)
			w.Write(e.Body)
		}
		w.Close()
		f.Add(buf.Bytes())
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		zw.Write(buf.Bytes())
		zw.Close()
		f.Add(z.Bytes())
	}
	seed(member("a", tar.TypeReg, "", "x"), member("d/", tar.TypeDir, "", ""))
	seed(member("l", tar.TypeSymlink, "../../bait", ""), member("l", tar.TypeReg, "", "x"))
	seed(member("h", tar.TypeLink, "../../bait", ""), member(".wh.x", tar.TypeReg, "", ""))
	f.Add([]byte("(\xb5/\xfd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		bait := filepath.Join(dir, "bait")
		if err := os.WriteFile(bait, []byte("untouched"), 0o600); err != nil {
			t.Fatal(err)
		}
		layer := filepath.Join(dir, "a", "layer")
		if err := os.MkdirAll(layer, 0o755); err != nil {
			t.Fatal(err)
		}
		l := &limits{bytes: 1 << 20, allowed: 1 << 20, entries: 100, headerBytes: 1 << 20, checkSpace: func() error { return nil }}
		unpackForFuzz(t.Context(), data, layer, l)
		if got, err := os.ReadFile(bait); err != nil || string(got) != "untouched" {
			t.Fatalf("the file outside is now %q, %v", got, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 2 {
			t.Fatalf("outside there is now %v", entries)
		}
	})
}
