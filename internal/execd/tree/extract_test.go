package tree

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pack makes an archive.
func pack(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, h.Name)
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}
func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func hardlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// leftovers lists temporary files.
func leftovers(t testing.TB, top string) []string {
	t.Helper()
	var found []string
	must(t, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, ".paddock-") {
			found = append(found, path)
		}
		return err
	}))
	return found
}

// No archive makes or changes anything outside the directory.
func TestNothingEscapes(t *testing.T) {
	r := newRig(t)
	outside := filepath.Join(r.dir, "outside")
	must(t, os.MkdirAll(outside+"/dir", 0o755))
	must(t, os.WriteFile(outside+"/file", []byte("untouched"), 0o644))
	before := describe(t, outside)
	for name, tc := range map[string]struct {
		entries []tar.Header
		status  int
		want    string
	}{
		"absolute":                 {[]tar.Header{file(outside + "/new")}, 400, "absolute"},
		"dots":                     {[]tar.Header{file("../outside/new")}, 400, `\"..\"`},
		"dots inside":              {[]tar.Header{file("a/../../outside/new")}, 400, `\"..\"`},
		"dots that stay":           {[]tar.Header{file("a/../b")}, 400, `\"..\"`},
		"through a symlink":        {[]tar.Header{symlink("s", "../outside"), file("s/new")}, 400, "escapes"},
		"absolute symlink":         {[]tar.Header{symlink("s", outside), file("s/new")}, 400, "escapes"},
		"two symlinks":             {[]tar.Header{symlink("s", "t/.."), symlink("t", "../outside/dir"), file("s/new")}, 400, "escapes"},
		"directory over symlink":   {[]tar.Header{symlink("s", "../outside/dir"), dir("s")}, 409, "in its way"},
		"file over symlink":        {[]tar.Header{symlink("s", "../outside/file"), file("s")}, 200, ""},
		"hard link out":            {[]tar.Header{hardlink("h", "../outside/file"), file("h")}, 400, "hard link"},
		"hard link absolute":       {[]tar.Header{hardlink("h", outside+"/file")}, 400, "hard link"},
		"hard link through a link": {[]tar.Header{symlink("s", "../outside"), hardlink("h", "s/file")}, 400, "escapes"},
		"hard link to a link":      {[]tar.Header{symlink("s", "../outside/file"), hardlink("h", "s"), file("h")}, 200, ""},
		"hard link to nothing":     {[]tar.Header{hardlink("h", "missing")}, 400, "not there"},
		"hard link to the top":     {[]tar.Header{hardlink("h", ".")}, 400, "hard link"},
		"file in place of the top": {[]tar.Header{file("./.")}, 400, "the directory itself"},
		"link in place of the top": {[]tar.Header{symlink(".", "../outside")}, 400, "the directory itself"},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := r.post("in", bytes.NewReader(pack(t, tc.entries...)))
			if status != tc.status || !strings.Contains(answer, tc.want) {
				t.Errorf("%d %s", status, answer)
			}
			same(t, "outside", describe(t, outside), before)
			if l := leftovers(t, r.dir); l != nil {
				t.Errorf("left over: %q", l)
			}
			must(t, os.RemoveAll(r.dir+"/in"))
		})
	}
}

func TestLinksThatStay(t *testing.T) {
	r := newRig(t)
	archive := pack(t, dir("usr/lib"), symlink("lib", "usr/lib"), dir("lib"), file("lib/a"), dir("lib/sub"), file("lib/sub/b"), file("not/made/before"))
	if status, answer := r.post("in", bytes.NewReader(archive)); status != http.StatusOK || !strings.Contains(answer, `"entries":7`) {
		t.Fatalf("%d %s", status, answer)
	}
	for _, name := range []string{"usr/lib/a", "usr/lib/sub/b", "not/made/before"} {
		if _, err := os.Stat(r.dir + "/in/" + name); err != nil {
			t.Error(err)
		}
	}
	if to, err := os.Readlink(r.dir + "/in/lib"); err != nil || to != "usr/lib" {
		t.Errorf("lib is now %q, %v", to, err)
	}
}

func TestExtractConflicts(t *testing.T) {
	r := newRig(t)
	must(t, os.MkdirAll(r.dir+"/in/dir/sub", 0o755))
	must(t, os.WriteFile(r.dir+"/in/file", []byte("old"), 0o600))
	for name, h := range map[string]tar.Header{
		"file over directory": file("dir"),
		"link over directory": symlink("dir", "x"),
		"directory over file": dir("file"),
		"below a file":        file("file/x"),
	} {
		if status, answer := r.post("in", bytes.NewReader(pack(t, h))); status != http.StatusConflict || !strings.Contains(answer, "in its way") {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if b, err := os.ReadFile(r.dir + "/in/file"); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	if status, answer := r.post("in/file", bytes.NewReader(nil)); status != http.StatusBadRequest {
		t.Errorf("into a file: %d %s", status, answer)
	}
	must(t, unix.Mkfifo(r.dir+"/fifo", 0o600))
	if status, answer := r.post("fifo", bytes.NewReader(nil)); status != http.StatusBadRequest {
		t.Errorf("into a FIFO: %d %s", status, answer)
	}
	// What is there keeps its mode when the archive speaks of the top.
	must(t, os.Chmod(r.dir+"/in", 0o1777|os.ModeSticky))
	if status, answer := r.post("in", bytes.NewReader(pack(t, dir("./")))); status != http.StatusOK {
		t.Errorf("%d %s", status, answer)
	}
	if st, err := os.Stat(r.dir + "/in"); err != nil || st.Mode()&os.ModeSticky == 0 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestBrokenArchives(t *testing.T) {
	r := newRig(t)
	good := pack(t, file("a"), file(strings.Repeat("long", 100)))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(good)
	must(t, err)
	must(t, z.Close())
	var huge bytes.Buffer
	must(t, tar.NewWriter(&huge).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0o644, Size: 1<<40 + 1}))
	foreign := pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: 1<<32 - 1, Format: tar.FormatPAX})
	device := pack(t, tar.Header{Typeflag: tar.TypeChar, Name: "x", Devmajor: 1 << 20, Format: tar.FormatGNU})
	for name, tc := range map[string]struct {
		body []byte
		want string
	}{
		"text":        {[]byte(strings.Repeat("no archive at all ", 100)), "not a tar archive"},
		"gzip":        {zipped.Bytes(), "gzip"},
		"half header": {good[:100], "not a tar archive"},
		"cut":         {good[:len(good)-1024-300], "broken"},
		"too big":     {huge.Bytes(), "at most"},
		"owner":       {foreign, "ids"},
		"device":      {device, "Linux does not have"},
	} {
		status, answer := r.post("in", bytes.NewReader(tc.body))
		if status != http.StatusBadRequest || !strings.Contains(answer, "INVALID_FILE_CONTENT") || !strings.Contains(answer, tc.want) {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if l := leftovers(t, r.dir); l != nil {
		t.Errorf("left over: %q", l)
	}
	if status, answer := r.post("empty", bytes.NewReader(nil)); status != http.StatusOK {
		t.Errorf("an empty body is an empty archive: %d %s", status, answer)
	}
}

// A client that breaks off in the middle of a file leaves the old one whole.
func TestCutUpload(t *testing.T) {
	r := newRig(t)
	must(t, os.MkdirAll(r.dir+"/in", 0o755))
	must(t, os.WriteFile(r.dir+"/in/f", []byte("old"), 0o600))
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.address("archive", "in"), pr)
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
		}
	}()
	w := tar.NewWriter(pw)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: 1 << 20}))
	_, err = w.Write(bytes.Repeat([]byte("new"), 100000))
	must(t, err)
	r.until("the temporary file", func() bool { return len(leftovers(t, r.dir)) == 1 })
	cancel()
	pw.CloseWithError(context.Canceled)
	<-ended
	r.until("its removal", func() bool { return len(leftovers(t, r.dir)) == 0 })
	if b, err := os.ReadFile(r.dir + "/in/f"); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	r.until("all slots", func() bool { return len(r.api.archives) == 0 })
}

// What can't be made is named, and the rest is made.
func TestSkipped(t *testing.T) {
	r := newRig(t)
	archive := pack(t, file("a"), tar.Header{Typeflag: 'V', Name: "label"}, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, file("b"))
	status, answer := r.post("in", bytes.NewReader(archive))
	if status != http.StatusOK || !strings.Contains(answer, `"entries":2`) || !strings.Contains(answer, `"skipped_total":1`) || !strings.Contains(answer, `"name":"label"`) {
		t.Errorf("%d %s", status, answer)
	}
}

// A full disk is named; what was there stays, what was complete too, and nothing
// half.
func TestExtractOnAFullDisk(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	in := r.dir + "/in"
	must(t, os.Mkdir(in, 0o755))
	if err := unix.Mount("tmpfs", in, "tmpfs", 0, "size=1m,mode=755"); err != nil {
		t.Skipf("mounting a small filesystem: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(in, unix.MNT_DETACH) })
	must(t, os.WriteFile(in+"/big", []byte("old"), 0o644))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range []struct {
		name string
		size int
	}{{"first", 5}, {"big", 2 << 20}} {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(f.size)}))
		_, err := w.Write(bytes.Repeat([]byte("x"), f.size))
		must(t, err)
	}
	must(t, w.Close())
	status, answer := r.post("in", bytes.NewReader(archive.Bytes()))
	if status != http.StatusInternalServerError || !strings.Contains(answer, "no space left on device") || !strings.Contains(answer, `\"big\"`) {
		t.Errorf("%d %s", status, answer)
	}
	if l := leftovers(t, r.dir); l != nil {
		t.Errorf("left over: %q", l)
	}
	for name, want := range map[string]string{"big": "old", "first": "xxxxx"} {
		if b, err := os.ReadFile(in + "/" + name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}
