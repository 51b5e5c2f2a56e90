package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

const (
	scopeUID = 4321
	scopeGID = 8765
	scoped   = "/v1/filesystem/4321/8765"
)

// open makes a directory of the test reachable for everyone, and returns it with
// a directory of the scoped user's in it.
func open(t *testing.T, dir string) (home string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("acting as other users needs root")
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	home = filepath.Join(dir, "home")
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chown(home, scopeUID, scopeGID)); err != nil {
		t.Fatal(err)
	}
	return home
}

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return sys.Uid, sys.Gid
}

// sendAs is send for the scoped user.
func sendAs(t *testing.T, base string, parts ...string) (int, string) {
	t.Helper()
	return post(t, base+scoped+"/files/upload", parts...)
}

func TestScopedFilesBelongToTheUser(t *testing.T) {
	s, dir := server(t)
	home := open(t, dir)
	if status, b := sendAs(t, s.URL, "metadata", `{"path":"home/a/b","mode":640}`, "file", "x", "metadata", `{"path":"home/c"}`, "file", "y"); status != 200 {
		t.Fatalf("upload: %d %s", status, b)
	}
	do(t, s, "POST", scoped+"/directories", `{"home/d/e":{"mode":700}}`, 200, "")
	do(t, s, "POST", scoped+"/files/mv", `[{"src":"home/c","dest":"home/new/c"}]`, 200, "")
	do(t, s, "POST", scoped+"/files/replace", `{"home/new/c":{"old":"y","new":"z"}}`, 200, "")
	err := filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		if uid, gid := owner(t, path); uid != scopeUID || gid != scopeGID {
			t.Errorf("%s is owned by %d:%d", path, uid, gid)
		}
		return err
	})
	if err != nil || read(t, filepath.Join(home, "new/c")) != "z" {
		t.Error(err)
	}
	var info map[string]Info
	json.Unmarshal([]byte(do(t, s, "GET", scoped+"/files/info?path=home/a/b", "", 200, "")), &info)
	if i := info["home/a/b"]; i.Owner != "4321" || i.Group != "8765" || i.Mode != 640 {
		t.Errorf("got %+v", i)
	}
	do(t, s, "GET", scoped+"/files/download?path=home/a/b", "", 200, "x")
	do(t, s, "GET", scoped+"/directories/list?path=home", "", 200, "home/new")
	do(t, s, "GET", scoped+"/files/search?path=home&content=x", "", 200, "home/a/b")
	do(t, s, "DELETE", scoped+"/files?path=home/a/b", "", 200, "")
	do(t, s, "DELETE", scoped+"/directories?path=home/d", "", 200, "")
	do(t, s, "POST", "/v1/filesystem/0/77/directories", `{"byroot":{}}`, 200, "")
	if uid, gid := owner(t, filepath.Join(dir, "byroot")); uid != 0 || gid != 77 {
		t.Errorf("root's directory is owned by %d:%d", uid, gid)
	}
}

func TestScopedRefusals(t *testing.T) {
	s, dir := server(t)
	home := open(t, dir)
	secret := filepath.Join(dir, "secret")
	os.WriteFile(secret, []byte("x"), 0o600)
	os.WriteFile(filepath.Join(dir, "public"), []byte("x"), 0o644)
	os.Mkdir(filepath.Join(dir, "closed"), 0o700)
	os.WriteFile(filepath.Join(dir, "closed/in"), []byte("x"), 0o666)
	// Owned by another in a directory of the user's: it may be replaced by the
	// user's own, but not written to.
	os.WriteFile(filepath.Join(home, "foreign"), []byte("x"), 0o644)
	const denied, forbidden = "permission denied", "operation not permitted"
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/files/download?path=secret", "", denied},
		{"GET", "/files/info?path=closed/in", "", denied},
		{"GET", "/directories/list?path=closed", "", denied},
		{"GET", "/files/search?path=closed", "", denied},
		{"DELETE", "/files?path=public", "", denied},
		{"DELETE", "/directories?path=closed", "", denied},
		{"POST", "/directories", `{"new":{}}`, denied},
		{"POST", "/files/permissions", `{"public":{"mode":777}}`, forbidden},
		{"POST", "/files/permissions", `{"home":{"owner":"root"}}`, forbidden},
		{"POST", "/files/mv", `[{"src":"public","dest":"home/p"}]`, denied},
		{"POST", "/files/replace", `{"public":{"old":"x","new":"y"}}`, denied},
		{"POST", "/files/replace", `{"secret":{"old":"x","new":"y"}}`, denied},
	} {
		do(t, s, c.method, scoped+c.path, c.body, 500, c.want)
	}
	for _, path := range []string{"public", "closed/in", "new", "home/foreign"} {
		if status, b := sendAs(t, s.URL, "metadata", `{"path":"`+path+`"}`, "file", "y"); status != 500 || !strings.Contains(b, denied) {
			t.Errorf("upload to %s: %d %s", path, status, b)
		}
	}
	if read(t, filepath.Join(home, "foreign")) != "x" || read(t, filepath.Join(dir, "public")) != "x" {
		t.Error("refused, but written")
	}
	for _, ids := range []string{"-1/0", "0/-1", "4294967295/0", "0/4294967295", "root/0", "0/x", "1.5/0", "99999999999/0", "%20/0"} {
		do(t, s, "GET", "/v1/filesystem/"+ids+"/files/info?path=public", "", 400, "INVALID_REQUEST_BODY")
	}
	do(t, s, "GET", "/v1/filesystem/4294967294/4294967294/files/info?path=public", "", 200, "public")
}

// Files of others that the user may write to keep their owner and their inode.
func TestScopedWritesIntoFilesOfOthers(t *testing.T) {
	s, dir := server(t)
	home := open(t, dir)
	for _, path := range []string{filepath.Join(dir, "shared"), filepath.Join(home, "shared")} {
		os.WriteFile(path, []byte("old and long"), 0o666)
		os.Chmod(path, 0o666)
		before, _ := os.Stat(path)
		if status, b := sendAs(t, s.URL, "metadata", `{"path":"`+path+`","mode":666}`, "file", "new"); status != 200 {
			t.Errorf("%s: %d %s", path, status, b)
		}
		after, _ := os.Stat(path)
		if uid, _ := owner(t, path); uid != 0 || !os.SameFile(before, after) || read(t, path) != "new" {
			t.Errorf("%s: owner %d, same file %v, content %q", path, uid, os.SameFile(before, after), read(t, path))
		}
		// An upload that breaks off changes nothing.
		body := "--B\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{\"path\":\"" + path + "\"}\r\n" +
			"--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nbroken"
		resp, err := http.Post(s.URL+scoped+"/files/upload", "multipart/form-data; boundary=B", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 || read(t, path) != "new" {
			t.Errorf("%s: broken off: status %d, content %q", path, resp.StatusCode, read(t, path))
		}
	}
	if left, _ := filepath.Glob(filepath.Join(home, ".upload-*")); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

// Requests of many users at one time do not get into each other's way.
func TestScopedInParallel(t *testing.T) {
	s, dir := server(t)
	home := open(t, dir)
	os.Chmod(home, 0o777)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			id, path := 5000+i, filepath.Join(home, fmt.Sprint(i))
			status, b := post(t, fmt.Sprintf("%s/v1/filesystem/%d/%d/files/upload", s.URL, id, id+1), "metadata", `{"path":"`+path+`"}`, "file", "x")
			if status != 200 {
				t.Errorf("%d: %d %s", id, status, b)
				return
			}
			if uid, gid := owner(t, path); int(uid) != id || int(gid) != id+1 {
				t.Errorf("user %d's file is owned by %d:%d", id, uid, gid)
			}
		})
	}
	wg.Wait()
}

// Without an identity in the route, files belong to the user of the image.
func TestPlainRoutesActAsTheImagesUser(t *testing.T) {
	dir := t.TempDir()
	home := open(t, dir)
	g := guest.New(nil, account.Identity{UID: scopeUID, GID: scopeGID, Home: home}, dir)
	mux := http.NewServeMux()
	New(func() *guest.Guest { return g }).Routes(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	if status, b := send(t, s, "metadata", `{"path":"~/f"}`, "file", "x"); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	if uid, gid := owner(t, filepath.Join(home, "f")); uid != scopeUID || gid != scopeGID {
		t.Errorf("owned by %d:%d", uid, gid)
	}
	do(t, s, "POST", "/directories", `{"/byuser":{}}`, 500, "permission denied")
	do(t, s, "POST", "/v1/filesystem/0/0/files/permissions", `{"home/f":{"owner":"root"}}`, 200, "")
}
