package tree

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// shared makes the rig's directory one that every user can reach.
func (r *rig) shared() {
	r.t.Helper()
	for d := r.dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(r.t, os.Chmod(d, 0o755))
	}
}

// as makes a request of a scoped route.
func (r *rig) as(ids, method, route, path string, body io.Reader) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+"/v1/filesystem/"+ids+"/directories/"+route+"?path="+url.QueryEscape(path), body)
	must(r.t, err)
	res, err := http.DefaultClient.Do(req)
	must(r.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(r.t, err)
	return res.StatusCode, string(b)
}

// The kernel decides what a user may pack and unpack.
func TestArchiveAs(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	r.shared()
	must(t, os.MkdirAll(r.dir+"/open", 0o755))
	must(t, os.WriteFile(r.dir+"/open/f", []byte("x"), 0o644))
	must(t, os.MkdirAll(r.dir+"/closed", 0o700))
	must(t, os.MkdirAll(r.dir+"/mine", 0o700))
	must(t, os.Chown(r.dir+"/mine", 1234, 5678))
	if status, answer := r.as("1234/5678", "GET", "archive", "open", nil); status != http.StatusOK {
		t.Errorf("what everyone may read: %d %.200s", status, answer)
	}
	for _, route := range []string{"archive", "watch"} {
		if status, answer := r.as("1234/5678", "GET", route, "closed", nil); status != http.StatusInternalServerError || !strings.Contains(answer, "permission denied") {
			t.Errorf("%s of root's directory: %d %.200s", route, status, answer)
		}
	}
	archive := pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "sub/f", Mode: 0o4755, Uid: 0, Gid: 0})
	if status, answer := r.as("1234/5678", "POST", "archive", "closed/in", bytes.NewReader(archive)); status != http.StatusInternalServerError || !strings.Contains(answer, "permission denied") {
		t.Errorf("unpacking where it is forbidden: %d %s", status, answer)
	}
	if status, answer := r.as("1234/5678", "POST", "archive", "mine/in", bytes.NewReader(archive)); status != http.StatusOK {
		t.Fatalf("unpacking: %d %s", status, answer)
	}
	for _, name := range []string{"mine/in", "mine/in/sub", "mine/in/sub/f"} {
		st, err := os.Lstat(r.dir + "/" + name)
		must(t, err)
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1234 || sys.Gid != 5678 {
			t.Errorf("%s belongs to %d:%d", name, sys.Uid, sys.Gid)
		}
	}
	for ids, want := range map[string]string{"x/0": "uid is", "0/-1": "gid is", "4294967295/0": "uid is"} {
		if status, answer := r.as(ids, "GET", "archive", "open", nil); status != http.StatusBadRequest || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s", ids, status, answer)
		}
	}
}

// A watch shows what its user may see, and ends without a right to read the
// directory above.
func TestWatchAs(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	r.shared()
	r.api.heartbeat = moveWait
	must(t, os.MkdirAll(r.dir+"/top/closed", 0o755))
	must(t, os.Chmod(r.dir+"/top/closed", 0o700))
	must(t, os.Chmod(r.dir, 0o711))
	o := r.observeAt(t, "/v1/filesystem/1234/5678/directories/watch?recursive=true&path="+url.QueryEscape(r.dir+"/top"))
	must(t, os.WriteFile(r.dir+"/top/closed/secret", nil, 0o600))
	must(t, os.WriteFile(r.dir+"/top/seen", nil, 0o600))
	o.expect("create top/seen")
	must(t, os.RemoveAll(r.dir+"/top"))
	for {
		switch c := o.next(); c.Type {
		case typeEnd:
			return
		case "":
			t.Fatal("the stream ended without its last event")
		}
	}
}
