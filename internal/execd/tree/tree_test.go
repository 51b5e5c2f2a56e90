package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

// patience bounds every wait of these tests. It is never reached when all is
// well.
const patience = 30 * time.Second

// rig is an API on loopback, with a directory to work in.
type rig struct {
	t   testing.TB
	api *API
	url string
	dir string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	g := guest.New(map[string]string{guest.EnvFileVar: dir + "/env"}, account.Identity{}, dir)
	r := &rig{t: t, dir: dir, api: New(func() *guest.Guest { return g })}
	mux := http.NewServeMux()
	r.api.Routes(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

func (r *rig) address(route, path string) string {
	return r.url + "/directories/" + route + "?path=" + url.QueryEscape(path)
}

// get fetches an archive.
func (r *rig) get(path string) (int, []byte) {
	r.t.Helper()
	res, err := http.Get(r.address("archive", path))
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Type") != "application/x-tar" {
		r.t.Errorf("content type %q", res.Header.Get("Content-Type"))
	}
	return res.StatusCode, b
}

// post sends an archive.
func (r *rig) post(path string, body io.Reader) (int, string) {
	r.t.Helper()
	res, err := http.Post(r.address("archive", path), "application/x-tar", body)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: did not come", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// must is for steps of a test's preparation.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets owners and makes devices")
	}
}

// grow makes a tree with one of everything.
func grow(t *testing.T, top string) {
	t.Helper()
	path := func(name string) string { return filepath.Join(top, name) }
	must(t, os.MkdirAll(path("dir/empty"), 0o755))
	must(t, os.WriteFile(path("dir/file"), []byte("content\n"), 0o640))
	must(t, os.WriteFile(path("dir/nothing"), nil, 0o604))
	must(t, os.WriteFile(path("setuid"), []byte("#!/bin/sh\n"), 0o700))
	must(t, os.Symlink("dir/file", path("link")))
	must(t, os.Symlink("/etc/passwd", path("absolute")))
	must(t, os.Symlink("nowhere", path("dangling")))
	must(t, os.Link(path("dir/file"), path("hard")))
	must(t, os.Link(path("dangling"), path("hard link to a symlink")))
	must(t, unix.Mkfifo(path("fifo"), 0o622))
	must(t, os.WriteFile(path("not \xff\xfe UTF-8"), []byte("x"), 0o644))
	must(t, os.WriteFile(path("new\nline"), []byte("x"), 0o644))
	long := "long/" + strings.Repeat(strings.Repeat("d", 120)+"/", 4)
	must(t, os.MkdirAll(path(long), 0o755))
	must(t, os.WriteFile(path(long+strings.Repeat("f", 255)), []byte("deep"), 0o644))
	must(t, os.WriteFile(path("big"), bytes.Repeat([]byte("0123456789abcdef"), 20000), 0o644))
	sparse, err := os.Create(path("sparse"))
	must(t, err)
	for i := range 5 {
		_, err = sparse.WriteAt([]byte("island"), int64(i)<<20+77)
		must(t, err)
	}
	must(t, sparse.Truncate(12<<20))
	must(t, sparse.Close())
	must(t, os.Truncate(makeFile(t, path("hole")), 1<<20))
	l, err := net.Listen("unix", path("socket"))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	if os.Geteuid() == 0 {
		must(t, os.Chown(path("dir/file"), 1234, 5678))
		must(t, os.Lchown(path("link"), 4321, 8765))
		must(t, os.Chown(path("dir/empty"), 60000, 60001))
		_ = unix.Mknod(path("device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	}
	must(t, unix.Chmod(path("setuid"), 0o6755))
	must(t, unix.Chmod(path("dir"), 0o1555))
	for i, name := range []string{"dir/file", "sparse", "fifo", "dir/empty", "link", "dir", "."} {
		when := []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9 + int64(i)*1000, Nsec: 123456789}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path(name), when, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func makeFile(t *testing.T, path string) string {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o644))
	return path
}

// describe lists all there is to know about a tree.
func describe(t *testing.T, top string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	first := make(map[uint64]string)
	must(t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(top, path)
		text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFSOCK:
			return nil
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %x", len(b), fnv(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		case unix.S_IFCHR:
			text += fmt.Sprintf(" %d", st.Rdev)
		}
		if d.IsDir() || d.Type().IsRegular() {
			text += attributes(t, path)
		}
		if st.Nlink > 1 && !d.IsDir() {
			if other, ok := first[st.Ino]; ok {
				text += " = " + other
			} else {
				first[st.Ino] = name
			}
		}
		all[name] = text
		return nil
	}))
	return all
}

// attributes shows the extended attribute that TestRoundTrip sets.
func attributes(t *testing.T, path string) string {
	value := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "user.paddock test", value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return ""
	}
	must(t, err)
	return fmt.Sprintf(" xattr %q", value[:n])
}

func fnv(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, w := range want {
		if g := got[name]; g != w {
			t.Errorf("%s: %q is %q, want %q", what, name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q is too much", what, name)
		}
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// What goes out comes in again as it was, through execd and through GNU tar.
func TestRoundTrip(t *testing.T) {
	r := newRig(t)
	src := filepath.Join(r.dir, "src")
	must(t, os.Mkdir(src, 0o750))
	grow(t, src)
	for _, name := range []string{"big", "sparse", "dir/empty"} {
		err := unix.Setxattr(filepath.Join(src, name), "user.paddock test", []byte("a\x00b"), 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatal(err)
		}
	}
	want := describe(t, src)
	status, archive := r.get(src)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, archive)
	}
	if len(archive) > 4<<20 {
		t.Errorf("the archive has %d bytes: the holes are in it", len(archive))
	}
	dst := filepath.Join(r.dir, "made", "by execd")
	if status, answer := r.post(dst, bytes.NewReader(archive)); status != http.StatusOK || strings.Contains(answer, "skipped") && !strings.Contains(answer, "device") {
		t.Fatalf("%d %s", status, answer)
	}
	same(t, "execd", describe(t, dst), want)
	for _, name := range []string{"sparse", "hole"} {
		if n := allocated(t, filepath.Join(dst, name)); n > 1<<20 {
			t.Errorf("%s takes %d bytes", name, n)
		}
	}
	if os.Geteuid() == 0 {
		other := filepath.Join(r.dir, "made by tar")
		must(t, os.Mkdir(other, 0o700))
		tarCommand(t, bytes.NewReader(archive), "-C", other, "--numeric-owner", "--xattrs", "-xpf", "-")
		same(t, "tar", describe(t, other), want)
		if n := allocated(t, filepath.Join(other, "sparse")); n > 1<<20 {
			t.Errorf("sparse takes %d bytes", n)
		}
	}
	// Once more, over what is there.
	if status, answer := r.post(dst, bytes.NewReader(archive)); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	got := describe(t, dst)
	// It was there, so it is not the archive's.
	got["."] = want["."]
	same(t, "again", got, want)
}

// tarCommand runs GNU tar.
func tarCommand(t *testing.T, stdin io.Reader, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("needs tar")
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("tar %q: %v\n%s", args, err, errs.String())
	}
	return out.Bytes()
}

// Every format that GNU tar writes is understood.
func TestFormats(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	src := filepath.Join(r.dir, "src")
	must(t, os.Mkdir(src, 0o750))
	grow(t, src)
	want := describe(t, src)
	for _, format := range []string{"gnu", "pax", "gnu sparse", "pax sparse 0.0", "pax sparse 0.1", "pax sparse 1.0"} {
		kind, sparse, _ := strings.Cut(format, " ")
		args := []string{"-C", src, "--numeric-owner", "--format=" + kind, "-cf", "-"}
		if sparse != "" {
			args = append(args, "--sparse")
		}
		if v, ok := strings.CutPrefix(sparse, "sparse "); ok {
			args = append(args, "--sparse-version="+v)
		}
		archive := tarCommand(t, nil, append(args, ".")...)
		dst := filepath.Join(r.dir, format)
		if status, answer := r.post(dst, bytes.NewReader(archive)); status != http.StatusOK {
			t.Fatalf("%s: %d %s", format, status, answer)
		}
		got := describe(t, dst)
		if kind == "gnu" {
			// Times in whole seconds only.
			cut(got)
			w := make(map[string]string)
			for k, v := range want {
				w[k] = v
			}
			cut(w)
			same(t, format, got, w)
			continue
		}
		same(t, format, got, want)
	}
}

// cut drops the parts of seconds from descriptions.
func cut(all map[string]string) {
	for name, text := range all {
		dot := strings.IndexByte(text, '.')
		all[name] = text[:dot] + text[dot+10:]
	}
}

func TestArchiveOfOtherThings(t *testing.T) {
	r := newRig(t)
	must(t, os.WriteFile(r.dir+"/file", []byte("alone"), 0o640))
	must(t, os.Symlink("file", r.dir+"/link"))
	must(t, unix.Mkfifo(r.dir+"/fifo", 0o600))
	for name, want := range map[string]struct {
		entry, content string
		kind           byte
	}{
		"file":  {"file", "alone", tar.TypeReg},
		"fifo":  {"fifo", "", tar.TypeFifo},
		"/proc": {"./", "", tar.TypeDir},
	} {
		status, archive := r.get(name)
		tr := tar.NewReader(bytes.NewReader(archive))
		hdr, err := tr.Next()
		if status != http.StatusOK || err != nil || hdr.Name != want.entry || hdr.Typeflag != want.kind {
			t.Errorf("%s: %d, %+v, %v", name, status, hdr, err)
			continue
		}
		if b, err := io.ReadAll(tr); err != nil || string(b) != want.content {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if _, err := tr.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: more than one entry", name)
		}
	}
	for name, want := range map[string]int{"": 400, "missing": 404, "file/below": 400, "$UNSET": 500, "a\x00b": 400} {
		if status, answer := r.get(name); status != want || !bytes.Contains(answer, []byte(`"code"`)) {
			t.Errorf("%q: %d %s", name, status, answer)
		}
	}
}

// A tree that is too deep breaks off instead of being taken for complete.
func TestTooDeep(t *testing.T) {
	r := newRig(t)
	must(t, os.MkdirAll(r.dir+"/top/"+strings.Repeat("d/", 256+2), 0o755))
	res, err := http.Get(r.address("archive", "top"))
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode == http.StatusOK {
		t.Errorf("%d bytes that look complete", len(b))
	}
}

// A client that leaves in the middle gives its slot back; more clients than
// slots are told so.
func TestSlots(t *testing.T) {
	r := newRig(t)
	must(t, os.Truncate(makeFile(t, r.dir+"/big"), 0))
	f, err := os.OpenFile(r.dir+"/big", os.O_WRONLY, 0)
	must(t, err)
	for range 256 {
		_, err = f.Write(bytes.Repeat([]byte("x"), 256<<10))
		must(t, err)
	}
	must(t, f.Close())
	var open []io.Closer
	for range maxArchives {
		res, err := http.Get(r.address("archive", "big"))
		must(t, err)
		open = append(open, res.Body)
	}
	if status, answer := r.get("big"); status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d %.100s", status, answer)
	}
	for _, c := range open {
		c.Close()
	}
	r.until("all slots", func() bool { return len(r.api.archives) == 0 })
}
